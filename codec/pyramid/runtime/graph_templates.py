"""Graphs of a pyramid's network without its weights, for ONNX Runtime: a zip file beside the model file. No torch.

    encoder.onnx                pixels (B, 3 x 8 x 8, 2h, 2w) uint8, as `in_places` has them -> latents (B, C, h, w)
    predict.onnx                latents, known -> predicted
    analyse-SIDE-DIGITS.onnx    residual -> raw
    update-SIDE-DIGITS.onnx     latents, known, predicted, digits, keep -> latents, known
    decoder.features.onnx       latents, known -> features (B, F, h, w)
    decoder.pixels.onnx         latents, features -> pixels (B, 3, 16h, 16w) uint8

and `index.json`: the configuration that they were made for, how far their parts reach in cells, and for each graph the
arrays of a model file that it takes, in float32, as external initializers. Those of a level go without their `levels.I.`, so
that levels of one shape share a graph. Weights exist once, in the model file, and graphs depend on the configuration alone.
Made by `codec.pyramid.runtime.template_writer.write_graph_templates`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from bitstream.pyramid_tokens import Level
from codec.errors import ModelError
from codec.pyramid.config import NetworkConfig

ENDING = ".graphs.zip"
INDEX = "index.json"
SIDE = 8  # pixels that the encoder's graph takes as channels
MAKE = "tessera models graphs"
SHAPING = ("steps", "bit_worth", "prior_width", "prior_kernels")  # in the configuration, and not in any graph


@dataclass(frozen=True)
class GraphTemplates:
    """The graphs of one configuration."""

    graphs: dict[str, bytes]  # by name
    weights: dict[str, tuple[str, ...]]  # names of the arrays that each takes
    encoder_reach: int
    decoder_reach: int
    pixel_reach: int


def in_places(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (B, H, W, 3) -> (B, 3 x 8 x 8, H/8, W/8), those of 8x8 as channels: NumPy moves bytes into that order far faster
    than ONNX Runtime moves floats."""
    count, height, width, _ = pixels.shape
    split = pixels.reshape(count, height // SIDE, SIDE, width // SIDE, SIDE, 3).transpose(0, 5, 2, 4, 1, 3)
    return split.reshape(count, 3 * SIDE**2, height // SIDE, width // SIDE)


def over_places(weight: NDArray[Any]) -> NDArray[Any]:
    """The encoder's linear transform of 16x16 pixels (C, 3, 16, 16) -> of 2x2 such places (C, 3 x 8 x 8, 2, 2)."""
    channels, _, height, width = weight.shape
    split = weight.reshape(channels, 3, height // SIDE, SIDE, width // SIDE, SIDE).transpose(0, 1, 3, 5, 2, 4)
    return split.reshape(channels, 3 * SIDE**2, height // SIDE, width // SIDE)


def graph_templates_path(model: Path) -> Path:
    """Where the graphs of a model file are."""
    return model.with_suffix(ENDING)


def name_of(part: str, level: Level) -> str:
    """The graph of 'predict', 'analyse' or 'update' at a level."""
    return part if part == "predict" else f"{part}-{level.side}-{level.digits}"


def shape_of(config: NetworkConfig) -> dict:
    """What graphs depend on, as plain data."""
    plain = config.to_dict()
    levels = [[level.side, level.digits] for level in config.levels]
    return {name: value for name, value in plain.items() if name not in SHAPING} | {"levels": levels, "side": SIDE}


def read_graph_templates(path: Path, config: NetworkConfig) -> GraphTemplates:
    """Raises ModelError where they cannot be read, or are of a network of another shape."""
    try:
        with ZipFile(path) as file:
            index = json.loads(file.read(INDEX))
            graphs = {name: file.read(f"{name}.onnx") for name in index["weights"]}
            made = GraphTemplates(graphs, {name: tuple(names) for name, names in index["weights"].items()}, **index["reach"])
            shape = index["network"]
    except (BadZipFile, OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not the graphs of a model ({type(error).__name__}: {error}): make them with `{MAKE}`"
        raise ModelError(msg) from error
    if shape != json.loads(json.dumps(shape_of(config))):
        msg = f"{path}: graphs of another network than that of its model file: make them again with `{MAKE}`"
        raise ModelError(msg)
    return made
