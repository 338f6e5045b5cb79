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


@dataclass(frozen=True)
class Level:
    """One pass over the picture."""

    side: int  # tokens along the side of a block: 1, 2, 4, 8 or 16
    digits: int  # digits of a token
    limit: int  # digits lie in -limit..limit
    step: float  # quantizer step in latent units that training starts from


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
        """Coded tokens, a level each."""
        return tuple(rows * columns for rows, columns in self.grids)

    @property
    def tokens(self) -> int:
        """Coded tokens of the whole sequence."""
        return sum(self.counts)

    @property
    def block_tokens(self) -> int:
        """Tokens of a block that lies inside the picture: what a length is told in."""
        return sum(level.side**2 for level in self.levels)

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
            share = min(1.0, max(0.0, block_tokens / level.side**2))
            length += int(np.ceil(share * count - 1e-9))
            block_tokens -= level.side**2
        return length

    def block_tokens_of(self, length: int) -> float:
        """The inverse of `length_of`, up to its rounding."""
        kept = zip(self.levels, self.counts, self.split(length), strict=True)
        return sum(level.side**2 * part / count for level, count, part in kept)


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
