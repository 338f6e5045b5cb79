"""Blocks and cells: the squares that tokens are laid over, and an order that covers a grid of them evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL = 16  # pixels
BLOCK = 256  # pixels
BLOCK_CELLS = BLOCK // CELL


def blocks_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of blocks that cover an image, the last ones perhaps in part outside it."""
    return -(-height // BLOCK), -(-width // BLOCK)


def spread(rows: int, columns: int) -> NDArray[np.int64]:
    """(rows * columns,) rank of each place, in reading order, in an order that covers the grid evenly from the start: the
    bits of column and row interleaved (column lowest), read from lowest to highest, so that neighbours are far apart."""
    bits = max(1, int(max(rows, columns) - 1).bit_length())
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    key = np.zeros(rows * columns, dtype=np.int64)
    for bit in range(bits):
        key = (key << 2) | (((y >> bit) & 1) << 1) | ((x >> bit) & 1)
    rank = np.empty(rows * columns, dtype=np.int64)
    rank[np.argsort(key, kind="stable")] = np.arange(rows * columns)
    return rank
