"""Reproducible noise for texture: bytes that depend only on a seed and on their position in the image.

The bytes come from an integer hash, so they are the same on every machine, and tiles of an image meet without seams."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import CELL

NOISE_CHANNELS = 4  # the bytes of a word
SCALES = (8, 4, 2)  # pixels along a position
# "lowbias32" (Wellons, Prospecting for hash functions, 2018), and the increment of a Weyl sequence
MULTIPLIERS = ((16, 0x7FEB352D), (15, 0x846CA68B))
LAST_SHIFT = 16
INCREMENT = 0x9E3779B9


def texture_noise(seed: int, rows: slice, columns: slice) -> list[NDArray[np.uint8]]:
    """Noise for these cells of an image: (1, 4, n, m) for each of SCALES, and (1, 1, H, W) at full size."""
    words = [_words(_hash(np.array([seed]), index), rows, columns, scale) for index, scale in enumerate((*SCALES, SCALES[-1]))]
    *scaled, grain = [word[None, :, :, None].view(np.uint8) for word in words]
    height, width = grain.shape[1:3]
    return [
        *(np.ascontiguousarray(noise.transpose(0, 3, 1, 2)) for noise in scaled),
        grain.reshape(1, height, width, 2, 2).transpose(0, 1, 3, 2, 4).reshape(1, 1, 2 * height, 2 * width),
    ]


def _words(state: NDArray[np.uint32], rows: slice, columns: slice, scale: int) -> NDArray[np.uint32]:
    """The hash of each position (n, m) of these cells, as little-endian words."""
    ys, xs = (np.arange(cells.start * CELL // scale, cells.stop * CELL // scale) for cells in (rows, columns))
    return _hash(_hash(state, ys)[:, None], xs).astype("<u4")


def _hash(state: NDArray[np.integer], index: NDArray[np.integer] | int) -> NDArray[np.uint32]:
    """Mixes an index into a state, modulo 2^32."""
    x = state.astype(np.uint32) + np.asarray(index).astype(np.uint32) * np.uint32(INCREMENT)
    for shift, multiplier in MULTIPLIERS:
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(multiplier)
    return x ^ (x >> np.uint32(LAST_SHIFT))
