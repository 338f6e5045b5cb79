"""The parts of a pyramid's network in ONNX Runtime, on processors. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from codec.pyramid.config import NetworkConfig
from codec.pyramid.rounding import choose_digits
from codec.pyramid.runtime.graph_templates import GraphTemplates, in_places, name_of, over_places
from codec.system.context import context_threads
from codec.system.process import after_fork_in_child, fork_safe_lock, usable_cores

# Each session has threads of its own, and there are two for each level. One pool for all would do, but where ONNX Runtime has
# that, it refuses sessions that other users of the process make without it.
MOST_THREADS = 8
OPENING = fork_safe_lock()  # threads that come at once make a session once
_forks = 0  # between the process that imported this and this one: a forked child has none of its parent's threads


def _forked() -> None:
    global _forks
    _forks += 1


after_fork_in_child(_forked)


class OnnxBackend:
    """The backend on ONNX Runtime, from the weights of a model file. Sessions are created when a graph is first needed, so that
    decoding never creates the encoder's."""

    def __init__(self, config: NetworkConfig, weights: Mapping[str, NDArray[Any]], skeletons: GraphTemplates) -> None:
        self._config = config
        self._weights = weights
        self._skeletons = skeletons
        self._sessions: dict[tuple[Any, ...], Any] = {}  # those of a parent too: to end, they would wait for its threads

    @property
    def config(self) -> NetworkConfig:
        return self._config

    @property
    def encoder_reach(self) -> int:
        return self._skeletons.encoder_reach

    @property
    def decoder_reach(self) -> int:
        return self._skeletons.decoder_reach

    @property
    def pixel_reach(self) -> int:
        return self._skeletons.pixel_reach

    def zeros(self, *shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    def array(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values

    def join(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run("encoder", "", in_places(pixels))[0]

    def predict(self, index: int, latents: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._at("predict", index, latents, known)[0]

    def analyse(self, index: int, residual: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._at("analyse", index, residual)[0]

    def choose(
        self, index: int, raw: NDArray[np.float32], classes: NDArray[np.uint8], bits: NDArray[np.float32]
    ) -> NDArray[np.int8]:
        return choose_digits(raw, classes, bits, self._config.levels[index].limit, self._config.bit_worth[index])

    def update(
        self,
        index: int,
        latents: NDArray[np.float32],
        known: NDArray[np.float32],
        predicted: NDArray[np.float32],
        digits: NDArray[np.float32],
        keep: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        refined, more_known = self._at("update", index, latents, known, predicted, digits, keep)
        return refined, more_known

    def features(self, latents: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run("decoder.features", "", latents, known)[0]

    def pixels(self, latents: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.uint8]:
        return self._run("decoder.pixels", "", latents, features)[0].transpose(0, 2, 3, 1)

    def _at(self, part: str, index: int, *inputs: NDArray[np.float32]) -> list[Any]:
        return self._run(name_of(part, self._config.levels[index]), f"levels.{index}.", *inputs)

    def _run(self, graph: str, prefix: str, *inputs: NDArray[Any]) -> list[Any]:
        session = self._session(graph, prefix)
        try:
            return session.run(None, dict(zip((port.name for port in session.get_inputs()), inputs, strict=True)))
        except Exception as error:  # ONNX Runtime's errors have no common class that it names
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError from error
            raise

    def _session(self, graph: str, prefix: str) -> Any:
        """The session of a graph with the weights under `prefix`, of as many threads as this thread may have busy."""
        threads = 1 if _forks else min(context_threads() or usable_cores(), MOST_THREADS)
        key = (graph, prefix, threads, _forks)
        with OPENING:
            if key not in self._sessions:
                self._sessions[key] = self._open(graph, prefix, threads)
            return self._sessions[key]

    def _open(self, graph: str, prefix: str, threads: int) -> Any:
        names = self._skeletons.weights[graph]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(self._weight(prefix + name)) for name in names]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.enable_cpu_mem_arena = False  # each session would keep for ever what its largest image took
        options.enable_mem_pattern = False  # it plans for images of one size
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores have other work between two calls
        options.add_external_initializers(list(names), values)
        return onnxruntime.InferenceSession(self._skeletons.graphs[graph], options, providers=["CPUExecutionProvider"])

    def _weight(self, name: str) -> NDArray[np.float32]:
        weight = self._weights[name].astype(np.float32)
        return over_places(weight) if name == "encoder.linear.weight" else weight
