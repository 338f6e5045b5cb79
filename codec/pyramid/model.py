"""Model files of the pyramid: the network in fp16 under the names of `codec.pyramid.network`, and the integer entropy model
under `prior.LEVEL.*`. Imports torch only for `network` and the torch runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from bitstream.entropy_model import IntegerLayer, LevelEntropyModel
from bitstream.pyramid_tokens import PyramidCode, context_grids, fingerprint
from codec.errors import ModelError
from codec.models.base import Model, read_metadata, write_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.runtime.graph_templates import COMMAND, SUFFIX, graph_templates_path, read_graph_templates
from codec.system.device import ONNX, TORCH

if TYPE_CHECKING:
    import torch

    from codec.pyramid.network import Network
    from codec.pyramid.reference import PyramidReferencer

PREFIX = "prior."  # prefix of the entropy model's array names
MAX_BIAS = 1 << 52  # sums stay exact in float64
DEQUANTIZER = (".predict.", ".expand.", ".smooth.")  # the layers of a level that turn digits into latents


@dataclass(frozen=True)
class PyramidModel(Model):
    """A model file, opened."""

    kind = "tessera-pyramid-1"
    companions = (SUFFIX,)
    refines = True
    tiles = True
    refers = True

    @property
    def runtimes(self) -> tuple[str, ...]:
        return (ONNX, TORCH) if graph_templates_path(self.path).is_file() else (TORCH,)

    @property
    def decode_options(self) -> tuple[str, ...]:
        return ("detail", "seed") if self.config.texture_widths else ()

    @property
    def why_only_torch(self) -> str:
        command = f"{COMMAND} {self.path}"
        return f"{self.path} has no graphs for ONNX Runtime in its folder (create them with `{command}`, which needs torch)"

    @cached_property
    def config(self) -> NetworkConfig:
        return NetworkConfig.from_dict(self.metadata["network"])

    @cached_property
    def code(self) -> PyramidCode:
        self.verify()
        with self.arrays() as file:
            try:
                levels = tuple(_level_from_arrays(file, index) for index in range(len(self.config.levels)))
            except (SafetensorError, ValueError) as error:
                msg = f"the entropy model is incomplete ({error})"
                raise ModelError(msg) from error
        code = PyramidCode(self.config.levels, levels)
        for index, level in enumerate(levels):
            inputs = max(1, sum(self.config.levels[grid[0]].digits for grid in context_grids(self.config.levels, index)))
            if level.layers[0].weight.shape[1] != inputs:
                msg = f"the entropy model of level {index} does not have {inputs} inputs: get the file again"
                raise ModelError(msg, file=self.path)
        return code

    @cached_property
    def actual_fingerprint(self) -> str:
        with self.arrays() as file:
            return _fingerprint(self.code, file.keys(), file.get_tensor)

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> PyramidReferencer:
        if runtime == TORCH:
            from codec.pyramid.refinement import PyramidRefiner
            from codec.pyramid.runtime.torch_backend import TorchBackend

            return PyramidRefiner(TorchBackend(self.network(device)), self.code, tile)
        from codec.pyramid.reference import PyramidReferencer
        from codec.pyramid.runtime.onnx_backend import OnnxBackend

        weights, templates = self._weights(), read_graph_templates(graph_templates_path(self.path), self.config)
        return PyramidReferencer(OnnxBackend(self.config, weights, templates), self.code, tile)

    def network(self, device: str | torch.device) -> Network:
        """The network in float32 on `device`. Raises ModelError if the file is damaged, or does not fit its configuration."""
        import torch

        from codec.pyramid.network import Network

        with torch.device("meta"):  # takes no memory, whatever the configuration
            network = Network(self.config)
        weights = {name: torch.from_numpy(array).float() for name, array in self._weights().items()}
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            msg = f"the weights do not fit the configuration ({str(error).splitlines()[-1].strip()[:120]})"
            raise ModelError(msg, file=self.path) from error
        network.requires_grad_(False).eval()
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _weights(self) -> dict[str, NDArray[np.float16]]:
        """The network's arrays by name."""
        self.verify()
        with self.arrays() as file:
            return {name: file.get_tensor(name) for name in file.keys() if not name.startswith(PREFIX)}  # noqa: SIM118


def save_pyramid(path: Path, network: Network, code: PyramidCode, provenance: dict[str, Any]) -> PyramidModel:
    """Writes a model file atomically. `provenance` is plain data on how the model was made.

    The network's weights should already be rounded to fp16, since the code's tables were measured with them."""
    weights = {name: value.half().cpu().contiguous().numpy() for name, value in network.state_dict().items()}
    arrays: dict[str, NDArray] = dict(weights)
    for index, level in enumerate(code.entropy_models):
        arrays |= _arrays_of_level(level, index)
    metadata = {
        "kind": PyramidModel.kind,
        "fingerprint": _fingerprint(code, weights, weights.__getitem__),
        "network": network.config.to_dict(),
        "card": provenance,
    }
    write_model(path, arrays, metadata)
    return PyramidModel(path, read_metadata(path))


def as_pyramid(model: Model) -> PyramidModel:
    """Raises ModelError for a model of another family."""
    if not isinstance(model, PyramidModel):
        msg = f"a model of kind {model.kind}, and kind {PyramidModel.kind} is needed"
        raise ModelError(msg, file=model.path)
    return model


def _fingerprint(code: PyramidCode, names: Iterable[str], array_of: Callable[[str], NDArray[np.float16]]) -> str:
    """Identifies the meaning of tokens: levels, entropy model, and the network's arrays that turn digits into latents."""
    blobs = []
    for name in sorted(names):
        if name.startswith("levels.") and any(layer in name for layer in DEQUANTIZER):
            array = array_of(name)
            blobs.append(name.encode() + b"\0" + str(array.shape).encode() + array.astype("<f2").tobytes())
    return fingerprint(code, blobs).hex()


def _level_from_arrays(file: Any, index: int) -> LevelEntropyModel:
    """The entropy model of a level. Raises SafetensorError if an array is missing, ValueError if one has another type or shape
    than `_arrays_of_level` writes."""

    def array(name: str, dtype: type, rank: int) -> NDArray[Any]:
        content: NDArray[Any] = file.get_tensor(f"{PREFIX}{index}.{name}")
        if content.dtype != dtype or content.ndim != rank or not content.size:
            msg = f"{name} of level {index} is {content.dtype} {content.shape}"
            raise ValueError(msg)
        return content

    layers: list[IntegerLayer] = []
    for i, shift in enumerate(array("shifts", np.int32, 1).tolist()):
        weight, bias = array(f"{i}.weight", np.int16, 4), array(f"{i}.bias", np.int64, 1)
        if layers and weight.shape[1] != len(layers[-1].bias):
            msg = f"layer {i} of level {index} has {weight.shape[1]} inputs, and the one before {len(layers[-1].bias)} outputs"
            raise ValueError(msg)
        if max(-int(bias.min()), int(bias.max())) > MAX_BIAS:
            msg = f"layer {i} of level {index} has sums beyond 2^53"
            raise ValueError(msg)
        layers.append(IntegerLayer(weight, bias, shift))
    return LevelEntropyModel(tuple(layers), array("frequencies", np.int32, 2), array("costs", np.int32, 1))


def _arrays_of_level(level: LevelEntropyModel, index: int) -> dict[str, NDArray]:
    """The inverse of `_level_from_arrays`."""
    shifts = np.array([layer.shift for layer in level.layers], np.int32)
    arrays: dict[str, NDArray] = {"shifts": shifts, "frequencies": level.frequencies, "costs": level.costs}
    for i, layer in enumerate(level.layers):
        arrays |= {f"{i}.weight": layer.weight, f"{i}.bias": layer.bias}
    return {f"{PREFIX}{index}.{name}": array for name, array in arrays.items()}
