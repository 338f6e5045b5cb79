"""Tokens as indices into a codebook, N in a row per block, as in TiTok (arXiv 2406.07550) and One-D-Piece (2501.10064).
FORMAT.md, section 8.

Coding order goes position by position: the first token of every block, then the second of every block, and so on, so that every
prefix covers the whole image. At each position, blocks follow in Z-order (`bitstream.block_order.z_order_ranks`). The frequency
table of a token depends on its position, and in some models on the token before it in its block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK, z_order_ranks
from bitstream.entropy_model import PRECISION, frequencies_of
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import make_decoders, read_certain

CHUNK = 1 << 22  # table entries passed to the range coder in one call, to bound memory: 32 MB


@dataclass(frozen=True)
class CodebookLayout:
    """The smallest grid of blocks that covers an image of width x height pixels."""

    width: int
    height: int
    side: int  # pixels of a block
    block_tokens: int  # N, tokens per block
    group: int = 1  # tokens per group; beyond the first group of a block, the decoder uses complete groups only

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.side), -(-self.width // self.side)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        rows, columns = self.grid
        return rows * columns

    @property
    def tokens(self) -> int:
        """Tokens of all blocks."""
        return self.blocks * self.block_tokens

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(blocks,) positions of the blocks in reading order, listed in coding order."""
        return np.argsort(z_order_ranks(*self.grid))

    def length_of(self, block_tokens: float) -> int:
        """Length of the prefix that keeps this many tokens per block, without those that change nothing."""
        length = min(self.tokens, max(0, int(np.ceil(block_tokens * self.blocks - 1e-9))))
        complete, rest = divmod(length, self.blocks)
        if complete < self.group or (rest and (complete + 1) % self.group == 0):
            return length
        return complete // self.group * self.group * self.blocks if self.group > 1 else length

    def block_tokens_of(self, length: int) -> float:
        """The inverse of `length_of`, up to its rounding."""
        return length / self.blocks


@dataclass(frozen=True)
class CodebookPrefix:
    """The first tokens of an image."""

    layout: CodebookLayout
    indices: NDArray[np.int32]  # (N, rows, columns); 0 if not known
    length: int  # number of known tokens, in coding order

    @property
    def block_lengths(self) -> NDArray[np.int64]:
        """(rows, columns) number of known tokens of each block."""
        complete, rest = divmod(self.length, self.layout.blocks)
        return (complete + (z_order_ranks(*self.layout.grid) < rest)).reshape(self.layout.grid)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N, rows, columns) mask of the known tokens."""
        return np.arange(len(self.indices))[:, None, None] < self.block_lengths


def complete_prefix(layout: CodebookLayout, indices: NDArray[np.int32]) -> CodebookPrefix:
    """All tokens of an image, from the indices (N, rows, columns) of its blocks."""
    return CodebookPrefix(layout, indices, layout.tokens)


@dataclass(frozen=True)
class CodebookSequence:
    """All tokens of an image in coding order, and the table index of each."""

    code: CodebookCode
    layout: CodebookLayout
    indices: NDArray[np.int32]  # (tokens,)
    contexts: NDArray[np.int32]  # (tokens,) table indexes

    difference = None

    @property
    def length(self) -> int:
        return len(self.indices)

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token."""
        return PRECISION - np.log2(self.code.tables[self.contexts, self.indices])

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """See `bitstream.sequence.TokenSequence`."""
        for start, end in _spans(self.code, first, last):
            yield self.indices[start:end], _weights(self.code, self.contexts[start:end])

    def first(self, length: int) -> CodebookPrefix:
        """The first `length` tokens."""
        sent = np.where(np.arange(len(self.indices)) < length, self.indices, 0).reshape(self.code.block_tokens, -1)
        return _prefix(self.layout, sent, min(length, len(self.indices)))


@dataclass(frozen=True)
class CodebookCode:
    """The tables of a model: N positions in a block, indices 0..V-1."""

    tables: NDArray[np.int32]  # (tables, V) frequencies, none zero; each row sums to 2^24
    table_of: NDArray[np.int32]  # (N, K) table index by position and by class of the previous token
    classes: NDArray[np.uint8]  # (V,) class of each index, below K; before position 0 the class is 0
    side: int = BLOCK  # pixels of a block
    tail_drop: bool = True  # whether the first tokens of a block decode; otherwise a block needs all of them
    group: int = 1  # as in `CodebookLayout`

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

    @property
    def quality_stops(self) -> tuple[tuple[float, float], ...]:
        """From one token per block to all of them; without tail token drop, all at every quality."""
        return ((0.0, 1.0 if self.tail_drop else float(self.block_tokens)), (100.0, float(self.block_tokens)))

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that identify the tables and their selection."""
        digest = hashlib.sha256(b"flat")
        for array in (self.tables, self.table_of, self.classes):
            digest.update(np.array(array.shape, ">i4").tobytes() + array.astype(">i4").tobytes())
        return digest.digest()

    def layout(self, width: int, height: int) -> CodebookLayout:
        return CodebookLayout(width, height, self.side, self.block_tokens, self.group)

    def contexts(self, position: int, sent: NDArray[np.int32]) -> NDArray[np.int32]:
        """Indices (N, blocks) in coding order, known before `position` -> (blocks,) table index of each block's token at
        `position`."""
        before = self.classes[sent[position - 1]] if position else np.zeros(sent.shape[1], np.uint8)
        return self.table_of[position, before]

    def sequence(self, complete: CodebookPrefix) -> CodebookSequence:
        """Puts the indices of an image's blocks into coding order. Raises ValueError if an index is out of range."""
        indices = complete.indices
        if len(indices) != self.block_tokens or indices.min() < 0 or indices.max() >= self.values:
            span = f"{indices.min()}..{indices.max()}"
            msg = f"{indices.shape} indices in {span}, for {self.block_tokens} tokens below {self.values}"
            raise ValueError(msg)
        sent = indices.reshape(len(indices), -1)[:, complete.layout.order].astype(np.int32)
        contexts = np.concatenate([self.contexts(position, sent) for position in range(len(sent))])
        return CodebookSequence(self, complete.layout, sent.ravel(), contexts)

    def decode(self, layout: CodebookLayout, payload: bytes, length: int, partial: bool = False) -> CodebookPrefix:
        """The inverse of `sequence` and `bitstream.range_coder.encode_tokens`. See `bitstream.sequence.Code`."""
        decoders = make_decoders(payload, partial)
        sent = np.zeros((self.block_tokens, layout.blocks), np.int32)
        read = 0
        while read < length:
            position = read // layout.blocks
            contexts = self.contexts(position, sent)
            for start, end in _spans(self, 0, min(layout.blocks, length - read)):
                symbols = read_certain(decoders, _weights(self, contexts[start:end]), 1)[:, 0]
                sent[position, start : start + len(symbols)] = symbols
                read += len(symbols)
                if len(symbols) < end - start:
                    return _prefix(layout, sent, read)
        return _prefix(layout, sent, read)

    def to_arrays(self, prefix: CodebookPrefix) -> dict[str, NDArray[Any]]:
        """`indices` and `known` (N, rows, columns)."""
        return {"indices": prefix.indices, "known": prefix.known}

    def from_arrays(self, layout: CodebookLayout, arrays: Mapping[str, NDArray[Any]]) -> CodebookPrefix:
        """The inverse of `to_arrays`. Raises FormatError if an index is out of range."""
        indices = arrays["indices"]
        if indices.min() < 0 or indices.max() >= self.values:
            msg = f"indices are {indices.min()}..{indices.max()}: 0..{self.values - 1} is allowed"
            raise FormatError(msg)
        return CodebookPrefix(layout, indices, int(arrays["known"].sum()))

    def array_types(self, layout: CodebookLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of `to_arrays`."""
        shape = (self.block_tokens, *layout.grid)
        return {"indices": ("int32", shape), "known": ("bool", shape)}


def uniform_code(block_tokens: int, values: int, side: int = BLOCK, tail_drop: bool = True) -> CodebookCode:
    """All indices equally likely: log2 V bits per token."""
    table = frequencies_of(np.full((1, values), 1 / values))
    return CodebookCode(table, np.zeros((block_tokens, 1), np.int32), np.zeros(values, np.uint8), side, tail_drop)


def _prefix(layout: CodebookLayout, sent: NDArray[np.int32], length: int) -> CodebookPrefix:
    """From indices (N, blocks) in coding order."""
    indices = np.zeros_like(sent)
    indices[:, layout.order] = sent
    return CodebookPrefix(layout, indices.reshape(-1, *layout.grid), length)


def _spans(code: CodebookCode, first: int, last: int) -> Iterator[tuple[int, int]]:
    """first..last in pieces whose tables have at most CHUNK entries."""
    step = max(1, CHUNK // code.values)
    return ((start, min(last, start + step)) for start in range(first, last, step))


def _weights(code: CodebookCode, contexts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Frequencies less one (tokens, V), the input of `bitstream.range_coder`."""
    return (code.tables[contexts] - 1).astype(np.float64)
