"""What `tessera models import` does: a published checkpoint becomes a model file of ours, and tables are measured for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bitstream.flat import uniform_code
from codec.titok.blocks import tokenize_picture
from codec.titok.convert import config_of, open_checkpoint, read_checkpoint
from codec.titok.model import CODEBOOK, TitokModel, save_titok
from codec.titok.tables import Measured, measure_code
from codec.titok.tokenizer import to_unit


def import_checkpoint(
    source: str | os.PathLike[str], folder: Path, family: str | None = None, name: str | None = None
) -> TitokModel:
    """Writes the model file of a checkpoint, as `open_checkpoint` finds it, into a folder, under `name` or the model's own.

    All indices cost the same until tables are measured on photos (`calibrate`). Raises ModelError, and writes nothing, for a
    checkpoint that is not one of a published layout."""
    checkpoint = open_checkpoint(source)
    config = config_of(checkpoint, family)
    state = {key: value.numpy() for key, value in read_checkpoint(checkpoint, config).items()}
    code = uniform_code(config.block_tokens, config.codebook, config.side, config.tail_drop)
    card = {"source": Path(source).name if Path(source).exists() else str(source)}  # no paths of this machine
    return save_titok(folder / f"{name or config.name}.safetensors", config, state, code, card)


def calibrate(model: TitokModel, pictures: Iterable[NDArray[np.uint8]], device: torch.device) -> tuple[TitokModel, Measured]:
    """Measures the tables of a model on photos (H, W, 3), and writes its file again with them.

    Files that were made with the tables before have another stream id, and need the model as it was. Raises ModelError where
    the file cannot be read or written, ValueError for too few photos."""
    network = model.network(device)
    seen = [tokenize_picture(network, to_unit(picture)).reshape(model.config.block_tokens, -1).T for picture in pictures]
    with model.arrays() as file:
        names = [name for name in file.keys() if not name.startswith("code.")]  # noqa: SIM118 (not a dict)
        state: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in names}
    found = measure_code(model.code, np.concatenate(seen), state[CODEBOOK].astype(np.float32))
    card = model.metadata["card"] | {"calibrated_on_blocks": sum(map(len, seen))}
    return save_titok(model.path, model.config, state, found.code, card), found
