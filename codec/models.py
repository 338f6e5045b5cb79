"""Model files: safetensors with the configuration as plain metadata. Finding, loading, checking and writing them.

A file holds the network in fp16 under the names of `codec.pyramid.network`, and the integer prior under `prior.LEVEL.*`. Its
fingerprint is computed over what fixes the meaning of tokens: levels, integer prior, tables, and the layers that turn digits
into latents. A better encoder or decoder for the same fingerprint may ship later, and old files then look better. Its digest is
computed over all arrays, and is verified before any of them is used: damage would otherwise show only in the pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitstream.container import STREAM_ID_BYTES
from bitstream.errors import ModelError
from bitstream.prior import IntegerLayer, LevelPrior, Prior, fingerprint
from codec.pyramid.config import NetworkConfig

if TYPE_CHECKING:
    import torch

    from codec.pyramid.network import Network

BUNDLED = Path(__file__).parent / "weights"
DEFAULT = "standard"
KIND = "tessera-pyramid-1"  # the family of networks that this release can build
# Digests of bundled models whose files were written before files carried one, by stream id
DIGESTS = {"44ef": "15cc565d73054fb694c831b1bd4144d272ae41a214df37d4eef9f6c60708c439"}
MEANING = (".predict.", ".expand.", ".smooth.")  # layers that turn digits into latents: part of the stream's meaning


@dataclass(frozen=True)
class Model:
    """A model file, opened; arrays are read when they are asked for."""

    path: Path
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def stream_id(self) -> bytes:
        return bytes.fromhex(self.metadata["fingerprint"])[:STREAM_ID_BYTES]

    @cached_property
    def config(self) -> NetworkConfig:
        return NetworkConfig.from_dict(self.metadata["network"])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all arrays in the file: names, types, shapes and values. 20 ms for the bundled model."""
        with _open(self.path) as file:
            return digest_of(file.keys(), file.get_tensor)

    def verify(self) -> None:
        """Raises ModelError unless the arrays have the digest that the file states."""
        stated = self.metadata.get("digest") or DIGESTS.get(self.stream_id.hex())
        if stated is None:
            msg = f"{self.path}: states no digest, without which damage goes unnoticed: make the file again with this release"
            raise ModelError(msg)
        if self.digest != stated:
            msg = f"{self.path}: damaged, its weights hash to {self.digest[:16]} and not to {stated[:16]}: get the file again"
            raise ModelError(msg)

    @cached_property
    def prior(self) -> Prior:
        """The integer prior. Raises ModelError where the file is damaged, or its arrays do not fit the configuration."""
        self.verify()
        with _open(self.path) as file:
            try:
                priors = tuple(_read_level(file, index) for index in range(len(self.config.levels)))
            except (SafetensorError, ValueError) as error:
                msg = f"{self.path}: the prior is incomplete ({error})"
                raise ModelError(msg) from error
        return Prior(self.config.levels, priors)

    def network(self, device: torch.device) -> Network:
        """The network in float32, ready to code on `device`. Raises ModelError as `prior` does."""
        import torch

        from codec.pyramid.network import Network

        self.verify()
        with _open(self.path) as file:
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

    def check(self) -> None:
        """Raises ModelError unless the arrays have the digest and the fingerprint that the file states."""
        self.verify()
        with _open(self.path) as file:
            names = sorted(name for name in file.keys() if _is_meaning(name))  # noqa: SIM118
            blobs = [_blob(name, file.get_tensor(name)) for name in names]
        actual = fingerprint(self.prior, blobs).hex()
        if actual != self.metadata["fingerprint"]:
            msg = f"{self.path}: its fingerprint is {actual[:16]}, and it states {self.metadata['fingerprint'][:16]}: damaged"
            raise ModelError(msg)


def _is_meaning(name: str) -> bool:
    return name.startswith("levels.") and any(part in name for part in MEANING)


def _blob(name: str, array: NDArray) -> bytes:
    return name.encode() + b"\0" + str(array.shape).encode() + array.astype("<f2").tobytes()


def digest_of(names: Iterable[str], array_of: Callable[[str], NDArray]) -> str:
    """SHA-256 over arrays in the order of their names: of each its name, type and shape on a line, then its bytes."""
    digest = hashlib.sha256()
    for name in sorted(names):
        array = array_of(name)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a model file ({error})"
        raise ModelError(msg) from error


def _read_level(file: Any, index: int) -> LevelPrior:
    def get(name: str) -> NDArray:
        return file.get_tensor(f"prior.{index}.{name}")

    shifts = get("shifts")
    layers = tuple(IntegerLayer(get(f"{i}.weight"), get(f"{i}.bias"), int(shift)) for i, shift in enumerate(shifts))
    return LevelPrior(layers, get("frequencies"), get("costs"))


def _level_arrays(index: int, prior: LevelPrior) -> dict[str, NDArray]:
    """The inverse of `_read_level`."""
    arrays: dict[str, NDArray] = {"shifts": np.array([layer.shift for layer in prior.layers], np.int32)}
    for i, layer in enumerate(prior.layers):
        arrays |= {f"{i}.weight": layer.weight, f"{i}.bias": layer.bias}
    arrays |= {"frequencies": prior.frequencies, "costs": prior.costs}
    return {f"prior.{index}.{name}": array for name, array in arrays.items()}


def open_model(name: str | os.PathLike[str] = DEFAULT) -> Model:
    """A bundled model by its name, or any model file by its path. Raises ModelError where there is none."""
    path = Path(name)
    if path.suffix != ".safetensors" and not path.is_file():
        path = BUNDLED / f"{path.name}.safetensors"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.safetensors"))) or "none"
        msg = f"{name}: no such model: bundled are {known}; or give the path of a .safetensors file"
        raise ModelError(msg)
    with _open(path) as file:
        metadata = file.metadata() or {}
    try:
        plain = json.loads(metadata["tessera"])
        if plain["kind"] != KIND:
            msg = f"{path}: a model of kind {plain['kind']!r}, and this release knows {KIND!r}: update tessera"
            raise ModelError(msg)
        model = Model(path, plain)
        model.config, model.stream_id  # noqa: B018 (both must parse)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a Tessera model ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    return model


def model_for(stream_id: bytes) -> Model:
    """The bundled model that wrote files of this stream id. Raises ModelError where there is none."""
    models = [open_model(path) for path in sorted(BUNDLED.glob("*.safetensors"))]
    for model in models:
        if model.stream_id == stream_id:
            return model
    known = ", ".join(f"{model.stream_id.hex()} ({model.name})" for model in models) or "none"
    msg = f"made by a model that is not installed (stream id {stream_id.hex()}; installed: {known})"
    raise ModelError(msg, ("model",))


def save_model(path: Path, network: Network, prior: Prior, card: dict[str, Any]) -> Model:
    """Writes a model file, whole or not at all. `card` is plain data on how the model was made.

    The network's weights should already be rounded to fp16, since the prior's tables were measured with them."""
    arrays = {name: value.half().cpu().contiguous().numpy() for name, value in network.state_dict().items()}
    blobs = [_blob(name, arrays[name]) for name in sorted(arrays) if _is_meaning(name)]
    for index, level in enumerate(prior.priors):
        arrays |= _level_arrays(index, level)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes memory as it lies
    plain = {
        "kind": KIND,
        "fingerprint": fingerprint(prior, blobs).hex(),
        "digest": digest_of(arrays, arrays.__getitem__),
        "network": network.config.to_dict(),
        "card": card,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(save(arrays, {"tessera": json.dumps(plain)}))
    os.replace(temporary, path)
    return open_model(path)
