"""Model files of TiTok and One-D-Piece: the network under its published names, and the arrays of its code under `code.*`. No
torch until a network is asked for.

The fingerprint covers what turns the bytes of a file into vectors: tables, codebook and geometry. Networks whose decoder was
trained on with a frozen codebook, as the second stage of training does, decode each other's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from bitstream.codebook_tokens import CodebookCode
from codec.errors import ModelError
from codec.models.base import Calibrated, Model, read_metadata, write_model
from codec.titok.config import TitokConfig

if TYPE_CHECKING:
    import torch

    from codec.titok.network import Titok
    from codec.titok.tokenizer import TitokTokenizer

CODE = ("tables", "table_of", "classes")
CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True)
class TitokModel(Model):
    """A model file, opened."""

    kind = "tessera-titok-1"

    @cached_property
    def config(self) -> TitokConfig:
        return TitokConfig.from_dict(self.metadata["network"])

    @cached_property
    def code(self) -> CodebookCode:
        with self.arrays() as file:
            try:
                tables, table_of, classes = (file.get_tensor(f"code.{name}") for name in CODE)
            except SafetensorError as error:
                msg = f"{self.path}: the code is incomplete ({error})"
                raise ModelError(msg) from error
        code = CodebookCode(tables, table_of, classes, self.config.side, self.config.tail_drop)
        if (code.block_tokens, code.values) != (self.config.block_tokens, self.config.codebook):
            msg = f"{self.path}: its code is for {code.block_tokens} tokens of {code.values} values, its network is not"
            raise ModelError(msg)
        return code

    @classmethod
    def import_checkpoint(cls, source: str, path: Path, variant: str | None = None) -> TitokModel:
        from codec.titok.importing import import_checkpoint

        return import_checkpoint(source, path, variant)

    def calibrated(self, images: Iterable[NDArray[np.uint8]], device: str) -> Calibrated:
        from codec.titok.importing import calibrate

        return calibrate(self, images, device)

    def compute_fingerprint(self) -> str:
        with self.arrays() as file:
            return fingerprint(self.config, file.get_tensor(CODEBOOK), self.code).hex()

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> TitokTokenizer:
        from codec.titok.tokenizer import TitokTokenizer

        return TitokTokenizer(self.network(device), self.code)

    def network(self, device: str | torch.device) -> Titok:
        """The network in float32 on `device`. Raises ModelError where the file is damaged or does not fit."""
        import torch

        from codec.titok.checkpoint import check_shapes
        from codec.titok.network import Titok

        self.verify()
        with self.arrays() as file:
            names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
            check_shapes(self.path, {name: tuple(file.get_slice(name).get_shape()) for name in names}, self.config)
            state = {name: torch.from_numpy(file.get_tensor(name)).float() for name in names}
        with torch.device("meta"):
            network = Titok(self.config)
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval().to(device)


def fingerprint(config: TitokConfig, codebook: NDArray[Any], code: CodebookCode) -> bytes:
    """32 bytes that identify the meaning of tokens: SHA-256 over tables, the size of a block and the codebook (V, D)."""
    digest = hashlib.sha256(code.fingerprint)
    digest.update(np.array([config.side, config.tail_drop, *codebook.shape], ">i4").tobytes())
    digest.update(codebook.astype("<f4").tobytes())
    return digest.digest()


def save_titok(
    path: Path, config: TitokConfig, state: Mapping[str, NDArray[Any]], code: CodebookCode, card: dict[str, Any]
) -> TitokModel:
    """Writes a model file, whole or not at all. `state` is the network's arrays, and `card` plain data on where the model comes
    from."""
    plain = {
        "kind": TitokModel.kind,
        "fingerprint": fingerprint(config, state[CODEBOOK], code).hex(),
        "network": config.to_dict(),
        "card": card,
    }
    write_model(path, {**state, **{f"code.{name}": getattr(code, name) for name in CODE}}, plain)
    return TitokModel(path, read_metadata(path))
