"""Images of any size as blocks of one size, and back.

An image is covered by as few blocks as possible, so that few pixels are coded twice. The blocks are spread evenly, and overlap
by the excess. An image smaller than a block is padded by repeating its edge. When decoding, neighbours are blended across a
narrow band around the middle of their overlap; if the overlap is narrower than the band, each block continues beyond its edge
as its mirror image. This softens seams, but they may still be visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

GREY = 0.5  # colour of an image without any block


def block_starts(length: int, side: int) -> list[int]:
    """Start positions, in pixels, of the blocks along one axis of an image."""
    count = -(-length // side)
    return [round(index * (length - side) / (count - 1)) for index in range(count)] if count > 1 else [0]


def cut(pixels: NDArray[np.float32], side: int) -> Iterator[NDArray[np.float32]]:
    """The blocks (3, side, side) of an image (3, H, W), in reading order."""
    _, height, width = pixels.shape
    padding = (0, 0), (0, max(0, side - height)), (0, max(0, side - width))
    padded = np.pad(pixels, padding, "edge") if side > min(height, width) else pixels
    for top in block_starts(height, side):
        for left in block_starts(width, side):
            yield padded[:, top : top + side, left : left + side]


@dataclass
class Mosaic:
    """Assembles an image from its blocks. The inverse of `cut`, exact up to rounding if the overlap of neighbours is wider than
    their blending band."""

    height: int
    width: int
    side: int
    pixels: NDArray[np.float32] = field(init=False)  # (3, height, width)

    def __post_init__(self) -> None:
        self.pixels = np.zeros((3, self.height, self.width), np.float32)
        self._rows, self._columns = _blend_weights(self.height, self.side), _blend_weights(self.width, self.side)

    def add(self, index: int, block: NDArray[np.float32]) -> None:
        """Adds a block (3, side, side) by its number in reading order. Each block must be added exactly once, in any order."""
        top, row_weights = self._rows[index // len(self._columns)]
        left, column_weights = self._columns[index % len(self._columns)]
        radius = _blend_radius(self.side)
        mirrored = np.pad(block, ((0, 0), (radius, radius), (radius, radius)), "symmetric")
        y, x = max(0, top - radius), max(0, left - radius)  # image coordinates
        part = mirrored[:, y - top + radius :, x - left + radius :][:, : len(row_weights), : len(column_weights)]
        self.pixels[:, y : y + len(row_weights), x : x + len(column_weights)] += part * (row_weights[:, None] * column_weights)


def assemble(height: int, width: int, side: int, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """An image (3, height, width) of blocks (3, side, side), each with its number in reading order. Blocks that are missing get
    the mean colour of the others, or grey if there are none."""
    mosaic = Mosaic(height, width, side)
    colours = {}
    for index, pixels in blocks:
        mosaic.add(index, pixels)
        colours[index] = pixels.mean((1, 2))
    colour = np.mean(list(colours.values()), 0) if colours else np.full(3, GREY)
    blank = np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, side, side))
    for index in range(len(block_starts(height, side)) * len(block_starts(width, side))):
        if index not in colours:
            mosaic.add(index, blank)
    return mosaic.pixels


def _blend_radius(side: int) -> int:
    """Half the width of the blending band in pixels, such as 8 for blocks of 256 pixels."""
    return max(1, side // 32)


def _blend_weights(length: int, side: int) -> list[tuple[int, NDArray[np.float32]]]:
    """The start of each block along an axis, and its weight in each pixel from one radius before it to one radius after it,
    clipped to the image. The weights of all blocks in a pixel add up to 1."""
    starts = block_starts(length, side)
    radius = _blend_radius(side)
    middles = [(left + side + right) / 2 for left, right in pairwise(starts)]  # middles of the overlaps
    weights = []
    for index, start in enumerate(starts):
        centres = np.arange(max(0, start - radius), min(length, start + side + radius)) + 0.5  # pixel centres
        weight = np.ones(len(centres))
        if index > 0:
            weight *= np.clip(0.5 + (centres - middles[index - 1]) / (2 * radius), 0, 1)
        if index < len(middles):
            weight *= np.clip(0.5 - (centres - middles[index]) / (2 * radius), 0, 1)
        weights.append((start, weight.astype(np.float32)))
    return weights
