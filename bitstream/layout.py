"""Where tokens stand: blocks, cells, levels, and which tokens of a picture are coded. Specified in FORMAT.md, section 3.

A picture is padded at its right and bottom edge to whole blocks of 256x256 pixels. Each level lays a grid of side x side
tokens over each block; a token is coded if any cell (16x16 pixels) it covers touches the picture, so the coded tokens of a
level form one rectangle, top left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CELL = 16  # pixels
BLOCK = 256  # pixels
BLOCK_CELLS = BLOCK // CELL
ALL, EVEN, ODD = 0, 1, 2  # parts of a level's grid: a token belongs to EVEN if its row and column add up to an even number


@dataclass(frozen=True)
class Level:
    """One pass over the picture."""

    side: int  # tokens along the side of a block: 1, 2, 4, 8 or 16
    digits: int  # digits of a token
    limit: int  # digits lie in -limit..limit
    part: int = ALL  # of the grid: all tokens, or one colour of a checkerboard

    @property
    def block_tokens(self) -> int:
        """Tokens per block that lies inside the picture."""
        return self.side**2 // (1 if self.part == ALL else 2)


@dataclass(frozen=True)
class Layout:
    """The token grids of one picture of width x height pixels."""

    levels: tuple[Level, ...]
    width: int
    height: int

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells that touch the picture."""
        return -(-self.height // CELL), -(-self.width // CELL)

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks, the last ones perhaps in part outside the picture."""
        return -(-self.height // BLOCK), -(-self.width // BLOCK)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of coded tokens, a level each."""
        rows, columns = self.cells
        spans = [BLOCK_CELLS // level.side for level in self.levels]
        return tuple((-(-rows // span), -(-columns // span)) for span in spans)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Coded tokens of each level."""
        return tuple(count_of(level.part, *grid) for level, grid in zip(self.levels, self.grids, strict=True))

    @property
    def tokens(self) -> int:
        """Coded tokens of the whole sequence."""
        return sum(self.counts)

    @property
    def block_tokens(self) -> int:
        """Tokens per block that lies inside the picture: the unit in which people give a length."""
        return sum(level.block_tokens for level in self.levels)

    def split(self, length: int) -> tuple[int, ...]:
        """How many tokens of each level a sequence cut to `length` holds."""
        kept = []
        for count in self.counts:
            kept.append(min(count, max(0, length)))
            length -= count
        return tuple(kept)

    def length_of(self, block_tokens: float) -> int:
        """Length of the sequence that keeps this many tokens a block; the same share of a level in every picture."""
        length = 0
        for level, count in zip(self.levels, self.counts, strict=True):
            share = min(1.0, max(0.0, block_tokens / level.block_tokens))
            length += int(np.ceil(share * count - 1e-9))
            block_tokens -= level.block_tokens
        return length

    def block_tokens_of(self, length: int) -> float:
        """The inverse of `length_of`, up to its rounding."""
        total = 0.0
        for level, count, kept in zip(self.levels, self.counts, self.split(length), strict=True):
            total += level.block_tokens * (kept / count if count else 1.0)
            if kept < count:
                break
        return total

    def mask(self, index: int) -> NDArray[np.bool_]:
        """(n, m) which tokens of the level's grid it codes."""
        return in_part(self.levels[index].part, *self.grids[index])


def count_of(part: int, rows: int, columns: int) -> int:
    """How many tokens of a grid belong to a part of it."""
    return (rows * columns + {ALL: rows * columns, EVEN: 1, ODD: 0}[part]) // 2


def in_part(part: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """(rows, columns) which tokens of a grid belong to a part of it."""
    y, x = np.ogrid[:rows, :columns]
    return (y + x) % 2 == part - EVEN if part else np.ones((rows, columns), np.bool_)


def spread(rows: int, columns: int) -> NDArray[np.int64]:
    """(rows * columns,) rank of each token, in reading order, in an order that covers the grid evenly from the start: the
    bits of column and row interleaved (column lowest), read from lowest to highest, so that neighbours are far apart."""
    bits = max(1, int(max(rows, columns) - 1).bit_length())
    y, x = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    key = np.zeros(rows * columns, dtype=np.int64)
    for bit in range(bits):
        key = (key << 2) | (((y >> bit) & 1) << 1) | ((x >> bit) & 1)
    rank = np.empty(rows * columns, dtype=np.int64)
    rank[np.argsort(key, kind="stable")] = np.arange(rows * columns)
    return rank
