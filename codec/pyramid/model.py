"""Model files of the pyramid: the network in fp16 under the names of `codec.pyramid.network`, and the integer prior under
`prior.LEVEL.*`. The fingerprint covers levels, integer prior, tables, and the layers that turn digits into latents. No torch
until a network is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from bitstream.entropy_model import IntegerLayer, LevelEntropyModel
from bitstream.pyramid_tokens import PyramidCode, fingerprint
from codec.errors import ModelError
from codec.models.base import Model, read_metadata, write_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.runtime.graph_templates import MAKE, graph_templates_path, read_graph_templates
from codec.system.device import ONNX, TORCH

if TYPE_CHECKING:
    import torch

    from codec.pyramid.network import Network
    from codec.pyramid.tokenizer import PyramidTokenizer

MEANING = (".predict.", ".expand.", ".smooth.")  # layers that turn digits into latents: part of the stream's meaning


@dataclass(frozen=True)
class PyramidModel(Model):
    """A model file, opened."""

    kind = "tessera-pyramid-1"
    refines = True
    tiles = True

    @property
    def runtimes(self) -> tuple[str, ...]:
        return (ONNX, TORCH) if graph_templates_path(self.path).is_file() else (TORCH,)

    @property
    def needs_torch(self) -> str:
        return f"{self.path} has no graphs for ONNX Runtime beside it (`{MAKE} {self.path}` makes them, where torch is)"

    @cached_property
    def config(self) -> NetworkConfig:
        return NetworkConfig.from_dict(self.metadata["network"])

    @cached_property
    def code(self) -> PyramidCode:
        self.verify()
        with self.arrays() as file:
            try:
                priors = tuple(_read_level(file, index) for index in range(len(self.config.levels)))
            except (SafetensorError, ValueError) as error:
                msg = f"{self.path}: the prior is incomplete ({error})"
                raise ModelError(msg) from error
        return PyramidCode(self.config.levels, priors)

    def compute_fingerprint(self) -> str:
        with self.arrays() as file:
            blobs = [_blob(name, file.get_tensor(name)) for name in sorted(file.keys()) if _is_meaning(name)]
        return fingerprint(self.code, blobs).hex()

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> PyramidTokenizer:
        if runtime == ONNX:
            return self._onnx_tokenizer(tile)
        from codec.pyramid.refinement import PyramidRefiner

        return PyramidRefiner(self.network(device), self.code, tile)

    def _onnx_tokenizer(self, tile: int | None) -> PyramidTokenizer:
        from codec.pyramid.runtime.onnx_backend import OnnxBackend
        from codec.pyramid.tokenizer import PyramidTokenizer

        self.verify()
        skeletons = read_graph_templates(graph_templates_path(self.path), self.config)
        with self.arrays() as file:
            weights = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("prior.")}  # noqa: SIM118
        return PyramidTokenizer(OnnxBackend(self.config, weights, skeletons), self.code, tile)

    def network(self, device: str | torch.device) -> Network:
        """The network in float32 on `device`. Raises ModelError as `code` does."""
        import torch

        from codec.pyramid.network import Network

        self.verify()
        with self.arrays() as file:
            names = [name for name in file.keys() if not name.startswith("prior.")]  # noqa: SIM118 (not a dict)
            state = {name: torch.from_numpy(file.get_tensor(name)).float() for name in names}
        network = Network(self.config)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            msg = f"{self.path}: the weights do not fit the configuration ({str(error).splitlines()[-1].strip()[:120]})"
            raise ModelError(msg) from error
        network.requires_grad_(False).eval()
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def save_pyramid(path: Path, network: Network, code: PyramidCode, card: dict[str, Any]) -> PyramidModel:
    """Writes a model file, whole or not at all. `card` is plain data on how the model was made.

    The network's weights should already be rounded to fp16, since the prior's tables were measured with them."""
    arrays = {name: value.half().cpu().contiguous().numpy() for name, value in network.state_dict().items()}
    blobs = [_blob(name, arrays[name]) for name in sorted(arrays) if _is_meaning(name)]
    for index, level in enumerate(code.priors):
        arrays |= _level_arrays(index, level)
    plain = {
        "kind": PyramidModel.kind,
        "fingerprint": fingerprint(code, blobs).hex(),
        "network": network.config.to_dict(),
        "card": card,
    }
    write_model(path, arrays, plain)
    return PyramidModel(path, read_metadata(path))


def _is_meaning(name: str) -> bool:
    return name.startswith("levels.") and any(part in name for part in MEANING)


def _blob(name: str, array: NDArray) -> bytes:
    return name.encode() + b"\0" + str(array.shape).encode() + array.astype("<f2").tobytes()


def _read_level(file: Any, index: int) -> LevelEntropyModel:
    def get(name: str) -> NDArray:
        return file.get_tensor(f"prior.{index}.{name}")

    shifts = get("shifts")
    layers = tuple(IntegerLayer(get(f"{i}.weight"), get(f"{i}.bias"), int(shift)) for i, shift in enumerate(shifts))
    return LevelEntropyModel(layers, get("frequencies"), get("costs"))


def _level_arrays(index: int, prior: LevelEntropyModel) -> dict[str, NDArray]:
    """The inverse of `_read_level`."""
    arrays: dict[str, NDArray] = {"shifts": np.array([layer.shift for layer in prior.layers], np.int32)}
    for i, layer in enumerate(prior.layers):
        arrays |= {f"{i}.weight": layer.weight, f"{i}.bias": layer.bias}
    arrays |= {"frequencies": prior.frequencies, "costs": prior.costs}
    return {f"prior.{index}.{name}": array for name, array in arrays.items()}
