"""Blocks and cells, the squares of the token grids, and an order in which every prefix covers a grid evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL = 16  # pixels
BLOCK = 256  # pixels
BLOCK_CELLS = BLOCK // CELL


def blocks_of(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of blocks that cover an image. The last row and column may extend beyond it."""
    return -(-height // BLOCK), -(-width // BLOCK)


def z_order_ranks(rows: int, columns: int) -> NDArray[np.int64]:
    """(rows * columns,) rank of each position, in reading order, by its bit-reversed Morton key. Every prefix of this order
    covers the grid evenly. The ranks of a 4x4 grid:

         0  4  1  5
         8 12  9 13
         2  6  3  7
        10 14 11 15

    The key interleaves the bits of row and column, the lowest bit first (FORMAT.md, section 4)."""
    bits = max(1, int(max(rows, columns) - 1).bit_length())
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    key = np.zeros(rows * columns, dtype=np.int64)
    for bit in range(bits):
        key = (key << 2) | (((y >> bit) & 1) << 1) | ((x >> bit) & 1)
    rank = np.empty(rows * columns, dtype=np.int64)
    rank[np.argsort(key, kind="stable")] = np.arange(rows * columns)
    return rank
