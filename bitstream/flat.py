"""Tokens that are indices into a codebook, N per block in one row: what TiTok (arXiv 2406.07550) and One-D-Piece (2501.10064)
make of a picture.

Tokens are sent position by position over all blocks: the first token of every block, then the second of every block, and so on,
so that every prefix covers the whole picture. Blocks follow each other as `bitstream.layout.spread` says, far apart at first.
Each token is coded with a frequency table that its position, and if the tables ask for it the token before in its block, picks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bitstream.coder import decoders_of, read_certain
from bitstream.errors import ModelError
from bitstream.layout import spread
from bitstream.prior import PRECISION

ENTRIES = 1 << 22  # of tables handed to the coder in one go, to bound memory: 32 MB


@dataclass(frozen=True)
class FlatCode:
    """The tables of a model: N positions in a block, indices 0..V-1."""

    tables: NDArray[np.int32]  # (tables, V) frequencies, none zero; each row sums to 2^24
    table_of: NDArray[np.int32]  # (N, K) the table of a position after a token of each class
    classes: NDArray[np.uint8]  # (V,) class of each index, below K; tokens at position 0 count as after class 0

    def __post_init__(self) -> None:
        problem = None
        if self.tables.ndim != 2 or self.table_of.ndim != 2 or self.tables.size == 0 or self.table_of.size == 0:
            problem = f"tables of {self.tables.shape}, picked by {self.table_of.shape}"
        elif self.tables.min() < 1 or (self.tables.sum(1, dtype=np.int64) != 1 << PRECISION).any():
            problem = "frequencies that are not positive with a sum of 2^24"
        elif self.table_of.min() < 0 or self.table_of.max() >= len(self.tables):
            problem = f"a position with table {self.table_of.max()} of {len(self.tables)}"
        elif self.classes.shape != (self.values,) or self.classes.max() >= self.table_of.shape[1]:
            problem = f"classes of {self.classes.shape} up to {self.classes.max()}, for {self.values} indices"
        if problem:
            msg = f"the code has {problem}"
            raise ModelError(msg)

    @property
    def block_tokens(self) -> int:
        """N, tokens per block."""
        return len(self.table_of)

    @property
    def values(self) -> int:
        """V, the number of indices."""
        return self.tables.shape[1]

    def pick(self, position: int, before: NDArray[np.int32] | None) -> NDArray[np.int32]:
        """The tokens before (blocks,), none at position 0 -> the table of each block's token at this position (blocks,)."""
        return self.table_of[position, 0 if before is None else self.classes[before]]

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that identify the tables and how they are picked."""
        digest = hashlib.sha256(b"flat")
        for array in (self.tables, self.table_of, self.classes):
            digest.update(np.array(array.shape, ">i4").tobytes() + array.astype(">i4").tobytes())
        return digest.digest()


def uniform_code(block_tokens: int, values: int) -> FlatCode:
    """Every index alike: log2 V bits per token."""
    table = frequencies_of(np.full((1, values), 1 / values))
    return FlatCode(table, np.zeros((block_tokens, 1), np.int32), np.zeros(values, np.uint8))


def frequencies_of(weights: NDArray[np.float64]) -> NDArray[np.int32]:
    """Counts or probabilities (tables, V) -> frequencies that sum to 2^24, none zero."""
    total = 1 << PRECISION
    share = weights / weights.sum(1, keepdims=True) * (total - weights.shape[1])
    frequencies = np.floor(share).astype(np.int32) + 1
    frequencies[np.arange(len(weights)), frequencies.argmax(1)] += total - frequencies.sum(1)
    return frequencies


@dataclass(frozen=True)
class FlatTokens:
    """The tokens of a picture of rows x columns blocks, as far as they are known."""

    indices: NDArray[np.int32]  # (N, rows, columns); 0 where not known
    length: int  # known tokens, in the order they are sent

    @property
    def block_lengths(self) -> NDArray[np.int64]:
        """(rows, columns) how many tokens of each block are known."""
        _, rows, columns = self.indices.shape
        whole, rest = divmod(self.length, rows * columns)
        return (whole + (spread(rows, columns) < rest)).reshape(rows, columns)


@dataclass(frozen=True)
class FlatSequence:
    """All tokens of a picture in the order they are sent, with the tables that they are coded with."""

    code: FlatCode
    indices: NDArray[np.int32]  # (tokens,)
    picked: NDArray[np.int32]  # (tokens,) tables

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token under the tables."""
        return PRECISION - np.log2(self.code.tables[self.picked, self.indices])

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """Indices and frequencies less one (tokens, V) of tokens first..last, some at a time."""
        for part in _parts(self.code, first, last):
            yield self.indices[part], _weights(self.code, self.picked[part])


def flat_sequence(code: FlatCode, indices: NDArray[np.int32]) -> FlatSequence:
    """Puts the indices (N, rows, columns) of a picture's blocks into the order they are sent. Raises ValueError for indices
    that the code has no tokens for."""
    if len(indices) != code.block_tokens or indices.min() < 0 or indices.max() >= code.values:
        msg = f"{indices.shape} indices in {indices.min()}..{indices.max()}, for {code.block_tokens} tokens below {code.values}"
        raise ValueError(msg)
    sent = indices.reshape(len(indices), -1)[:, _order(*indices.shape[1:])].astype(np.int32)
    picked = [code.pick(position, sent[position - 1] if position else None) for position in range(len(sent))]
    return FlatSequence(code, sent.ravel(), np.concatenate([np.broadcast_to(pick, sent.shape[1:]) for pick in picked]))


def decode_flat(code: FlatCode, grid: tuple[int, int], payload: bytes, length: int, partial: bool = False) -> FlatTokens:
    """The inverse of `bitstream.coder.encode_tokens` for the first `length` tokens of a grid of (rows, columns) blocks.

    With `partial` the payload may have been cut, and only tokens that are certain are read. Raises FormatError for bytes that
    no encoder writes."""
    decoders = decoders_of(payload, partial)
    order = _order(*grid)
    sent = np.zeros((code.block_tokens, len(order)), np.int32)
    read = 0
    while read < length:
        position = read // len(order)
        wanted = min(len(order), length - read)
        before = sent[position - 1, :wanted] if position else None
        picked = np.broadcast_to(code.pick(position, before), wanted)
        for part in _parts(code, 0, wanted):
            found = read_certain(decoders, _weights(code, picked[part]), 1)[:, 0]
            sent[position, part.start : part.start + len(found)] = found
            read += len(found)
            if len(found) < part.stop - part.start:
                length = read  # all that follows is unknown
                break
    indices = np.zeros_like(sent)
    indices[:, order] = sent
    return FlatTokens(indices.reshape(-1, *grid), read)


def _order(rows: int, columns: int) -> NDArray[np.int64]:
    """(blocks,) places in reading order of the blocks as they are sent."""
    return np.argsort(spread(rows, columns))


def _parts(code: FlatCode, first: int, last: int) -> Iterator[slice]:
    step = max(1, ENTRIES // code.values)
    return (slice(start, min(last, start + step)) for start in range(first, last, step))


def _weights(code: FlatCode, picked: NDArray[np.int32]) -> NDArray[np.float64]:
    return (code.tables[picked] - 1).astype(np.float64)
