"""The pyramid's network with ONNX Runtime, on processors. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.pyramid.config import NetworkConfig
from codec.pyramid.runtime.graph_templates import GraphTemplates, graph_name, space_to_depth
from codec.system.context import context_threads
from codec.system.device import load_onnxruntime
from codec.system.process import after_fork_in_child, fork_safe_lock, usable_cores

onnxruntime = load_onnxruntime()

# Each session has its own threads, and each level has two sessions. ONNX Runtime can share one global thread pool, but then
# refuses the sessions that other code in the process creates without it.
MAX_THREADS = 8
GROW_AS_REQUESTED = 1  # a strategy of arenas
OPENING = fork_safe_lock()  # concurrent threads create a session once
_forks = 0  # forks since this module was imported: a forked child has none of its parent's threads


def _count_fork() -> None:
    global _forks
    _forks += 1


after_fork_in_child(_count_fork)


# All sessions share one arena, which grows to what the largest call needs. With an arena each, every session would keep the
# memory of its largest image; without any, large arrays are mapped anew for every operation, which takes a tenth of the time.
onnxruntime.create_and_register_allocator(
    onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT),
    onnxruntime.OrtArenaCfg(0, GROW_AS_REQUESTED, -1, -1),
)


class OnnxBackend:
    """`codec.pyramid.runtime.backend.Backend` from graph templates and the weights of a model file. A session is created when
    its graph first runs, so decoding never creates the encoder's."""

    def __init__(self, config: NetworkConfig, weights: Mapping[str, NDArray[Any]], templates: GraphTemplates) -> None:
        self.config = config
        self._weights = weights
        self._templates = templates
        # Sessions of a parent process are kept: their destructors would wait for its threads.
        self._sessions: dict[tuple[Any, ...], Any] = {}

    def zeros(self, *shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    def array(self, values: NDArray) -> NDArray[np.float32]:
        return values.astype(np.float32)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run("encoder", None, space_to_depth(pixels.transpose(0, 3, 1, 2)))[0]

    def predict(self, index: int, latents: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run("predict", index, latents, known)[0]

    def analyse(self, index: int, residual: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run("analyse", index, residual)[0]

    def choose(
        self, raw: NDArray[np.float32], contexts: NDArray[np.uint8], bits: NDArray[np.float32], limit: int, rdo_lambda: float
    ) -> NDArray[np.int8]:
        """`codec.pyramid.network.choose_digits` in NumPy, digit for digit the same."""
        magnitude = np.abs(raw)
        nearest = np.minimum(np.rint(magnitude), np.float32(limit))
        smaller = np.maximum(nearest - np.float32(1), np.float32(0))
        rows, table = contexts.astype(np.intp) * bits.shape[1], bits.ravel()
        saved = table[rows + nearest.astype(np.intp)] - table[rows + smaller.astype(np.intp)]
        error = np.square(magnitude - smaller) - np.square(magnitude - nearest)
        return (np.sign(raw) * np.where(error < np.float32(rdo_lambda) * saved, smaller, nearest)).astype(np.int8)

    def update(
        self,
        index: int,
        latents: NDArray[np.float32],
        known: NDArray[np.float32],
        predicted: NDArray[np.float32],
        digits: NDArray[np.float32],
        keep: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        refined, more_known = self._run("update", index, latents, known, predicted, digits, keep)
        return refined, more_known

    def features(self, latents: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run("decoder.features", None, latents, known)[0]

    def pixels(
        self,
        latents: NDArray[np.float32],
        features: NDArray[np.float32],
        detail: float = 0.0,
        noise: Sequence[NDArray[np.uint8]] = (),
    ) -> NDArray[np.uint8]:
        if detail:
            strength = np.full(1, detail, np.float32)
            pixels = self._run("decoder.textured", None, latents, features, strength, *noise)[0]
        else:
            pixels = self._run("decoder.pixels", None, latents, features)[0]
        return pixels.transpose(0, 2, 3, 1)

    def _run(self, part: str, index: int | None, *inputs: NDArray[Any]) -> list[Any]:
        """The outputs of a part of the network; with an `index`, of a part of that level."""
        graph = part if index is None else graph_name(part, self.config.levels[index])
        session = self._session(graph, "" if index is None else f"levels.{index}.")
        try:
            return session.run(None, dict(zip((port.name for port in session.get_inputs()), inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's errors have no public base class
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError from error
            raise

    def _session(self, graph: str, prefix: str) -> Any:
        """The session of a graph with the weights under `prefix`, with the number of threads that this thread may use."""
        threads = 1 if _forks else min(context_threads() or usable_cores(), MAX_THREADS)
        key = (graph, prefix, threads, _forks)
        with OPENING:
            if key not in self._sessions:
                names = self._templates.weight_names[graph]
                weights = {name: self._weights[prefix + name].astype(np.float32) for name in names}
                if (linear := "encoder.linear.weight") in weights:
                    weights[linear] = space_to_depth(weights[linear])
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3  # errors
                if _forks:  # a thread of the parent may have held the lock of the shared arena
                    options.enable_cpu_mem_arena = False
                else:
                    options.add_session_config_entry("session.use_env_allocators", "1")
                options.enable_mem_pattern = False  # it assumes images of one size
                options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores have other work
                values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
                options.add_external_initializers(list(names), values)
                self._sessions[key] = onnxruntime.InferenceSession(
                    self._templates.graphs[graph], options, providers=["CPUExecutionProvider"]
                )
            return self._sessions[key]
