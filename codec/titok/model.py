"""Model files of TiTok and One-D-Piece: the network under its published names, and the arrays of its code under `code.*`.

The fingerprint covers the meaning of tokens: tables, codebook and geometry. Two networks with the same encoder and
codebook, whose decoders differ, decode each other's files. No torch until a network is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from bitstream.codebook_tokens import CodebookCode, complete_prefix, uniform_code
from codec.errors import ModelError
from codec.models.base import Calibration, Model, read_metadata, write_model
from codec.titok.coding_tables import measure_code
from codec.titok.config import TitokConfig

if TYPE_CHECKING:
    import torch

    from codec.titok.network import Titok
    from codec.titok.tokenizer import TitokTokenizer

CODE_ARRAYS = ("tables", "table_of", "classes")
CODEBOOK = "quantize.embedding.weight"


@dataclass(frozen=True)
class TitokModel(Model):
    """A model file of this family."""

    kind = "tessera-titok-1"

    @cached_property
    def config(self) -> TitokConfig:
        return TitokConfig.from_dict(self.metadata["network"])

    @cached_property
    def code(self) -> CodebookCode:
        with self.arrays() as file:
            try:
                tables, table_of, classes = (file.get_tensor(f"code.{name}") for name in CODE_ARRAYS)
            except SafetensorError as error:
                msg = f"{self.path}: the code is incomplete ({error})"
                raise ModelError(msg) from error
        if (tables.dtype, table_of.dtype, classes.dtype) != (np.int32, np.int32, np.uint8):
            msg = (
                f"{self.path}: its code has arrays of {tables.dtype}, {table_of.dtype} and {classes.dtype}: get the file again"
            )
            raise ModelError(msg)
        code = CodebookCode(tables, table_of, classes, self.config.side, self.config.tail_drop)
        if (code.block_tokens, code.values) != (self.config.block_tokens, self.config.codebook):
            msg = f"{self.path}: its code has {code.block_tokens} tokens of {code.values} values, and its network has others"
            raise ModelError(msg)
        return code

    def compute_fingerprint(self) -> str:
        with self.arrays() as file:
            return fingerprint(self.config, file.get_tensor(CODEBOOK), self.code).hex()

    def tokenizer(self, runtime: str, device: str, tile: int | None = None) -> TitokTokenizer:
        from codec.titok.tokenizer import TitokTokenizer

        return TitokTokenizer(self.network(device), self.code)

    def network(self, device: str | torch.device) -> Titok:
        """The network in float32 on `device`. Raises ModelError if the file is damaged or does not fit its configuration."""
        import torch

        from codec.titok.checkpoint import check_shapes
        from codec.titok.network import Titok

        self.verify()
        weights = self._weights()
        check_shapes(self.path, {name: array.shape for name, array in weights.items()}, self.config)
        with torch.device("meta"):
            network = Titok(self.config)
        network.load_state_dict({name: torch.from_numpy(array).float() for name, array in weights.items()}, assign=True)
        return network.requires_grad_(False).eval().to(device)

    def _weights(self) -> dict[str, NDArray[Any]]:
        """The network's arrays in their stored types. The file is opened for each: the pages that were read would otherwise
        stay in memory beside the arrays, and double it."""
        with self.arrays() as file:
            names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
        weights = {}
        for name in names:
            with self.arrays() as file:
                weights[name] = file.get_tensor(name)
        return weights

    @classmethod
    def import_checkpoint(
        cls, source: str, path: Path, variant: str | None = None, check_name: Callable[[str], None] = lambda _: None
    ) -> TitokModel:
        """See `Model`; `variant` is one-d-piece or titok. All indices cost the same until `calibrate` has measured tables."""
        from codec.titok.checkpoint import network_config, open_checkpoint, read_checkpoint

        checkpoint = open_checkpoint(source)
        config = network_config(checkpoint, variant)
        check_name(config.name)
        weights = {name: tensor.numpy() for name, tensor in read_checkpoint(checkpoint, config).items()}
        code = uniform_code(config.block_tokens, config.codebook, config.side, config.tail_drop)
        provenance = {"source": Path(source).name if Path(source).exists() else str(source)}  # without folders of this machine
        return save_titok(path if path.suffix else path / f"{config.name}.safetensors", config, weights, code, provenance)

    def calibrate(self, images: Iterable[NDArray[np.uint8]], device: str) -> Calibration:
        """See `Model`. The new tables change the stream id: older files need the old model."""
        from codec.titok.tokenizer import tokenize_blocks

        blocks, photos = tokenize_blocks(self.network(device), images)
        weights = self._weights()
        measurement = measure_code(self.code, blocks, photos, weights[CODEBOOK].astype(np.float32))
        layout = self.code.layout(len(blocks) * self.config.side, self.config.side)  # one image, a row of blocks
        bits_before = self.code.sequence(complete_prefix(layout, blocks.T[:, None, :])).bits().mean()
        provenance = self.metadata["card"] | {"calibrated_on_blocks": len(blocks)}
        model = save_titok(self.path, self.config, weights, measurement.code, provenance)
        return Calibration(model, measurement.bits, float(bits_before))


def save_titok(
    path: Path, config: TitokConfig, weights: Mapping[str, NDArray[Any]], code: CodebookCode, provenance: dict[str, Any]
) -> TitokModel:
    """Writes a model file atomically. `provenance` is plain data on how the model was made."""
    metadata = {
        "kind": TitokModel.kind,
        "fingerprint": fingerprint(config, weights[CODEBOOK], code).hex(),
        "network": config.to_dict(),
        "card": provenance,
    }
    write_model(path, {**weights, **{f"code.{name}": getattr(code, name) for name in CODE_ARRAYS}}, metadata)
    return TitokModel(path, read_metadata(path))


def fingerprint(config: TitokConfig, codebook: NDArray[Any], code: CodebookCode) -> bytes:
    """SHA-256 of tables, block size and codebook (V, D): 32 bytes that identify the meaning of tokens."""
    digest = hashlib.sha256(code.fingerprint)
    digest.update(np.array([config.side, config.tail_drop, *codebook.shape], ">i4").tobytes())
    digest.update(codebook.astype("<f4").tobytes())
    return digest.digest()
