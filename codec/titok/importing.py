"""What `tessera models import` does: a published checkpoint becomes a model file of ours, and tables are measured for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookPrefix, uniform_code, whole_of
from codec.models.base import Calibrated
from codec.titok.checkpoint import config_of, open_checkpoint, read_checkpoint
from codec.titok.coding_tables import measure_code
from codec.titok.model import CODEBOOK, TitokModel, save_titok
from codec.titok.tokenizer import indices_of


def import_checkpoint(source: str | os.PathLike[str], path: Path, family: str | None = None) -> TitokModel:
    """Writes the model file of a checkpoint, as `open_checkpoint` finds it. A `path` that is a folder gets a file with the
    model's own name. `family` is one-d-piece or titok, for checkpoints that do not say it.

    All indices cost the same until tables are measured on photos (`calibrate`). Raises ModelError, and writes nothing, for a
    checkpoint that is not one of a published layout."""
    checkpoint = open_checkpoint(source)
    config = config_of(checkpoint, family)
    state = {key: value.numpy() for key, value in read_checkpoint(checkpoint, config).items()}
    code = uniform_code(config.block_tokens, config.codebook, config.side, config.tail_drop)
    card = {"source": Path(source).name if Path(source).exists() else str(source)}  # no paths of this machine
    return save_titok(path if path.suffix else path / f"{config.name}.safetensors", config, state, code, card)


def calibrate(model: TitokModel, images: Iterable[NDArray[np.uint8]], device: str) -> Calibrated:
    """Measures the tables of a model on photos (H, W, 3), and writes its file again with them.

    Files that were made with the tables before have another stream id, and need the model as it was. Raises ModelError where
    the file cannot be read or written, ImageError for too few photos."""
    network = model.network(device)
    blocks = indices_of(network, images)
    with model.arrays() as file:
        names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
        state: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in names}
    found = measure_code(model.code, blocks, state[CODEBOOK].astype(np.float32))
    card = model.metadata["card"] | {"calibrated_on_blocks": len(blocks)}
    before = model.code.sequence(_in_row(model, blocks)).bits().mean()
    return Calibrated(save_titok(model.path, model.config, state, found.code, card), found.bits, float(before))


def _in_row(model: TitokModel, blocks: NDArray[np.int32]) -> CodebookPrefix:
    """Indices (blocks, N) as those of one image that is a row of blocks."""
    layout = model.code.layout(len(blocks) * model.config.side, model.config.side)
    return whole_of(layout, blocks.T[:, None, :])
