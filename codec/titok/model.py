"""Model files of this family: safetensors with plain metadata, as those of `codec.models`.

A file holds the network under its published names and the code's arrays under `code.*`. Its fingerprint covers what turns a
picture's bytes into vectors: tables, codebook and geometry. Networks that were trained on with a frozen codebook, as the second
stage of training does, decode each other's files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitstream.errors import ModelError
from bitstream.flat import FlatCode, uniform_code
from codec.models import digest_of
from codec.titok.blocks import tokenize_picture
from codec.titok.config import TitokConfig
from codec.titok.convert import check_shapes, config_of, open_checkpoint, read_checkpoint
from codec.titok.network import Titok
from codec.titok.tables import Measured, measure_code

KIND = "tessera-titok-1"
CODE = ("tables", "table_of", "classes")


@dataclass(frozen=True)
class TitokModel:
    """A model file, opened; arrays are read when they are asked for."""

    path: Path
    metadata: dict[str, Any]

    @cached_property
    def config(self) -> TitokConfig:
        return TitokConfig.from_dict(self.metadata["network"])

    def verify(self) -> None:
        """Raises ModelError unless the arrays have the digest that the file states. 1 s per GB on one core, or less."""
        with _open(self.path) as file:
            found = digest_of(file.keys(), lambda name: file.get_tensor(name).numpy())
        if found != self.metadata["digest"]:
            stated = self.metadata["digest"]
            msg = f"{self.path}: damaged, its weights hash to {found[:16]} and not to {stated[:16]}: import it again"
            raise ModelError(msg)

    @cached_property
    def code(self) -> FlatCode:
        """The tables. Raises ModelError where the file lacks them or they do not fit each other."""
        with _open(self.path) as file:
            try:
                code = FlatCode(*(file.get_tensor(f"code.{name}").numpy() for name in CODE))
            except SafetensorError as error:
                msg = f"{self.path}: the code is incomplete ({error})"
                raise ModelError(msg) from error
        if (code.block_tokens, code.values) != (self.config.block_tokens, self.config.codebook):
            msg = f"{self.path}: its code is for {code.block_tokens} tokens of {code.values} values, its network is not"
            raise ModelError(msg)
        return code

    def network(self, device: torch.device) -> Titok:
        """The network in float32, ready to code on `device`. Raises ModelError where the file is damaged or does not fit."""
        self.verify()
        with _open(self.path) as file:
            names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
            check_shapes(self.path, {name: tuple(file.get_slice(name).get_shape()) for name in names}, self.config)
            state = {name: file.get_tensor(name).float() for name in names}
        with torch.device("meta"):
            network = Titok(self.config)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval().to(device)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        msg = f"{path}: not a model file ({error})"
        raise ModelError(msg) from error


def open_titok(path: Path) -> TitokModel:
    """A model file of this family by its path. Raises ModelError for anything else."""
    with _open(path) as file:
        metadata = file.metadata() or {}
    try:
        plain = json.loads(metadata["tessera"])
        if plain["kind"] != KIND:
            msg = f"{path}: a model of kind {plain['kind']!r}, not {KIND!r}"
            raise ModelError(msg)
        model = TitokModel(path, plain)
        model.config, bytes.fromhex(plain["fingerprint"]), plain["digest"]  # all must parse
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a Tessera model ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    return model


def fingerprint(config: TitokConfig, codebook: Tensor, code: FlatCode) -> bytes:
    """32 bytes that identify the meaning of tokens: SHA-256 over tables, the size of a block and the codebook (V, D)."""
    digest = hashlib.sha256(code.fingerprint)
    digest.update(np.array([config.side, config.tail_drop, *codebook.shape], ">i4").tobytes())
    digest.update(codebook.float().numpy().astype("<f4").tobytes())
    return digest.digest()


def save_titok(path: Path, config: TitokConfig, state: dict[str, Tensor], code: FlatCode, card: dict[str, Any]) -> TitokModel:
    """Writes a model file, whole or not at all. `card` is plain data on where the model comes from."""
    arrays = state | {f"code.{name}": torch.from_numpy(getattr(code, name)) for name in CODE}
    plain = {
        "kind": KIND,
        "fingerprint": fingerprint(config, state["quantize.embedding.weight"], code).hex(),
        "digest": digest_of(arrays, lambda name: arrays[name].numpy()),
        "network": config.to_dict(),
        "card": card,
    }
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, temporary, {"tessera": json.dumps(plain)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        msg = f"{path}: cannot be written ({error}): check space and permissions"
        raise ModelError(msg) from error
    return open_titok(path)


def import_checkpoint(source: str | os.PathLike[str], folder: Path, family: str | None = None) -> TitokModel:
    """Writes the model file of a checkpoint, as `open_checkpoint` finds it, into a folder, under the model's name.

    All indices cost the same until `code` is measured on photos. Raises ModelError, and writes nothing, for a checkpoint that
    is not one of a published layout."""
    checkpoint = open_checkpoint(source)
    config = config_of(checkpoint, family)
    state = read_checkpoint(checkpoint, config)
    code = uniform_code(config.block_tokens, config.codebook)
    card = {"source": Path(source).name if Path(source).exists() else str(source)}  # no paths of this machine
    return save_titok(folder / f"{config.name}.safetensors", config, state, code, card)


def calibrate(model: TitokModel, pictures: Iterable[NDArray[np.float32]], device: torch.device) -> tuple[TitokModel, Measured]:
    """Measures the tables of a model on photos (3, H, W) in [0, 1], and writes its file again with them.

    Files that were made with the tables before have another stream id, and need the model as it was. Raises ModelError where
    the file cannot be read or written, ValueError for too few photos."""
    network = model.network(device)
    seen = [tokenize_picture(network, picture).reshape(model.config.block_tokens, -1).T for picture in pictures]
    with _open(model.path) as file:
        state = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("code.")}  # noqa: SIM118
    found = measure_code(np.concatenate(seen), state["quantize.embedding.weight"].float().numpy())
    card = model.metadata["card"] | {"calibrated_on_blocks": sum(map(len, seen))}
    return save_titok(model.path, model.config, state, found.code, card), found
