"""Tokens of D digits with L_d levels each, in rows or on a grid. FORMAT.md, section 9.

One code serves finite scalar quantisation (FSQ, arXiv 2309.15505: a few digits of 5 or 8 levels), lookup-free and binary
spherical quantisation (2310.05737, 2406.07548: one digit of 2 levels per bit), and codebooks that are too large for a table of
all indices (one digit, coded as two symbols). Symbols are coded one by one, each with a small table.

Rows: N tokens in a row per block, in the order of `bitstream.codebook_tokens`. Grid: one token per cell of a few pixels, in
Z-order (`bitstream.block_order.z_order_ranks`): the cells at multiples of 2s in both directions come before those of s. Cells
with the same s and the same relation to known cells form a pass, whose tokens are read together:

    K 1 K 1 K
    2 3 2 3 2    K: known before; 1: between two known cells of its row; 2: of its column; 3: between four
    K 1 K 1 K
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK, z_order_ranks
from bitstream.codebook_tokens import CodebookLayout
from bitstream.entropy_model import PRECISION, frequencies_of
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import make_decoders, read_certain

CHUNK = 1 << 20  # table entries passed to the range coder in one call, to bound memory: 8 MB
MAX_LEVELS = 1 << 18
SYMBOL_LEVELS = 512  # a digit of more levels is coded as two symbols
DISTANCES = 4  # grids have tables of their own for s = 1, 2, 4, and for all s from 8
GRID_CONTEXTS = 1 + 3 * DISTANCES  # rows of `picks`: the first cell, then passes 1, 2, 3 for each s, the smallest first


@dataclass(frozen=True)
class Run:
    """Tokens that are read together, because none of them depends on another."""

    pick: int  # row of `picks`
    positions: NDArray[np.int64]  # (n,) positions in reading order, listed in coding order
    neighbours: tuple[NDArray[np.int64], ...]  # positions (n,) of tokens known before, nearest first; may be empty


@dataclass(frozen=True)
class RowLayout(CodebookLayout):
    """N tokens in a row for each block."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens of a block, rows and columns of blocks."""
        return (self.block_tokens, *self.grid)

    def runs(self) -> Iterator[Run]:
        """One run per position. The neighbour is the token before, in the same block."""
        for position in range(self.block_tokens):
            here = position * self.blocks + self.order
            yield Run(position, here, (here - self.blocks,) if position else ())


@dataclass(frozen=True)
class GridLayout:
    """The smallest grid of cells that covers an image of width x height pixels."""

    width: int
    height: int
    cell: int  # pixels

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    @property
    def tokens(self) -> int:
        """One for each cell."""
        rows, columns = self.shape
        return rows * columns

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(tokens,) positions of the cells in reading order, listed in coding order."""
        return np.argsort(z_order_ranks(*self.shape))

    def length_of(self, block_tokens: float) -> int:
        """Length of the prefix that keeps this many tokens per block of 256x256 pixels: the same share of any image."""
        share = block_tokens / (BLOCK // self.cell) ** 2
        return min(self.tokens, max(0, int(np.ceil(share * self.tokens - 1e-9))))

    def block_tokens_of(self, length: int) -> float:
        """The inverse of `length_of`, up to its rounding."""
        return length / self.tokens * (BLOCK // self.cell) ** 2

    def runs(self) -> Iterator[Run]:
        """One run per pass. The neighbours of a cell are the known cells at distance s in its row, then in its column."""
        rows, columns = self.shape
        y, x = np.divmod(self.order, columns)
        step = np.maximum(1, (y | x) & -1 * (y | x))  # the lowest bit that is set in either
        kind = 2 * (y & step > 0) + (x & step > 0)
        starts = np.flatnonzero(np.diff(4 * step + kind, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(step)], strict=True):
            s, k, here = int(step[start]), int(kind[start]), self.order[start:end]
            y_run, x_run = y[start:end], x[start:end]
            neighbours = []
            if k & 1:
                neighbours += [here - s, np.where(x_run + s < columns, here + s, here - s)]
            if k & 2:
                above = here - s * columns
                neighbours += [above, np.where(y_run + s < rows, here + s * columns, above)]
            yield Run(3 * min(DISTANCES - 1, s.bit_length() - 1) + k if k else 0, here, tuple(neighbours))


DigitLayout: TypeAlias = RowLayout | GridLayout


@dataclass(frozen=True)
class DigitPrefix:
    """The first tokens of an image."""

    layout: DigitLayout
    digits: NDArray[np.int32]  # (D, *positions), positions being the shape of the layout; 0 if not known
    length: int  # number of known tokens, in coding order

    @property
    def known(self) -> NDArray[np.bool_]:
        """(*positions) mask of the known tokens."""
        known = np.zeros(self.layout.tokens, np.bool_)
        read = 0
        for run in self.layout.runs():
            known[run.positions[: self.length - read]] = True
            read += len(run.positions)
            if read >= self.length:
                break
        return known.reshape(self.layout.shape)


def complete_prefix(layout: DigitLayout, digits: NDArray[np.int32]) -> DigitPrefix:
    """All tokens of an image, from their digits (D, *positions)."""
    return DigitPrefix(layout, digits, layout.tokens)


def symbol_levels(levels: tuple[int, ...]) -> tuple[int, ...]:
    """Levels of each symbol of a token: those of its digits. A single digit of more than SYMBOL_LEVELS has two symbols: its
    rank divided by the lowest power of two that is at least the square root of its levels, and the remainder."""
    if len(levels) > 1 or levels[0] <= SYMBOL_LEVELS:
        return levels
    divisor = 1 << ((levels[0] - 1).bit_length() + 1) // 2
    return -(-levels[0] // divisor), divisor


@dataclass(frozen=True)
class DigitSequence:
    """All tokens of an image in coding order, and the table index of each of their symbols."""

    code: DigitCode
    layout: DigitLayout
    symbols: NDArray[np.int32]  # (tokens, symbols)
    contexts: NDArray[np.int32]  # (tokens, symbols) table indexes

    difference = None

    @property
    def length(self) -> int:
        return len(self.symbols)

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token."""
        return (PRECISION - np.log2(self.code.tables[self.contexts, self.symbols])).sum(1)

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """See `bitstream.sequence.TokenSequence`."""
        step = self.code.chunk_tokens
        for start in range(first, last, step):
            chunk = slice(start, min(last, start + step))
            yield self.symbols[chunk].ravel(), self.code.coder_tables[self.contexts[chunk].ravel()]

    def first(self, length: int) -> DigitPrefix:
        """The first `length` tokens."""
        length = min(length, len(self.symbols))
        symbols = np.zeros_like(self.symbols).T
        order = np.concatenate([run.positions for run in self.layout.runs()])[:length]
        symbols[:, order] = self.symbols[:length].T
        return self.code.prefix(self.layout, symbols, length)


@dataclass(frozen=True)
class DigitCode:
    """The tables of a model, and how they are picked.

    The table of symbol i of a token is `first + neighbour_step * sum_j classes[j, i, symbol i of neighbour j] + symbol_step *
    symbol i-1 of the same token`. `picks` has the first table and both steps, for each position in a row or each pass of a
    grid."""

    levels: tuple[int, ...]  # (D,) digit d is in 0..levels[d]-1
    tables: NDArray[np.int32]  # (T, S) frequencies, none zero; each row sums to 2^24. A symbol may have fewer levels than S
    picks: NDArray[np.int32]  # (N or GRID_CONTEXTS, symbols, 3): first table, neighbour step, symbol step
    classes: NDArray[np.int32]  # (neighbours, symbols, S) class of each value of a neighbour; the first neighbours are used
    ranks: NDArray[np.int32]  # (L_0,) number of each value of a digit coded as two symbols, similar values close; or empty
    cell: int | None = None  # pixels of a grid's cells; None for rows
    side: int = BLOCK  # pixels of a block, for rows
    tail_drop: bool = True  # whether the first tokens decode; otherwise an image needs all of them

    def __post_init__(self) -> None:
        if problem := self._problem():
            msg = f"the code has {problem}"
            raise ModelError(msg)

    def _problem(self) -> str | None:
        if types := {a.dtype.name for a in (self.tables, self.picks, self.classes, self.ranks)} - {"int32"}:
            return f"arrays of {', '.join(sorted(types))}: int32 is needed"
        if not self.levels or min(self.levels) < 1 or max(self.levels) > MAX_LEVELS:
            return f"digits of {self.levels} levels"
        if max(self.levels) > SYMBOL_LEVELS and len(self.levels) > 1:
            return f"digits of {self.levels} levels: only a single digit may have more than {SYMBOL_LEVELS}"
        symbols = self.symbol_levels
        if self.cell is not None and (self.cell < 1 or BLOCK % self.cell):
            return f"cells of {self.cell} pixels: a divisor of {BLOCK} is needed"
        if self.tables.ndim != 2 or not len(self.tables) or self.tables.shape[1] != max(symbols):
            return f"tables of {self.tables.shape} for symbols of {symbols} levels"
        if self.tables.min() < 1 or (self.tables.sum(1, dtype=np.int64) != 1 << PRECISION).any():
            return "frequencies that are not positive with a sum of 2^24"
        contexts = len(self.picks) if self.cell is None else GRID_CONTEXTS
        if self.picks.shape != (contexts, len(symbols), 3) or not contexts or self.picks.min() < 0:
            return f"{self.picks.shape} picks for {len(symbols)} symbols"
        neighbours = 1 if self.cell is None else 4
        if self.classes.ndim != 3 or len(self.classes) > neighbours or self.classes.shape[1:] != (len(symbols), max(symbols)):
            return f"classes of {self.classes.shape} for {len(symbols)} symbols"
        if self.classes.size and self.classes.min() < 0:
            return "negative classes"
        if self.picks[:, 0, 2].any():
            return "a first symbol that depends on the symbol before it"
        if (last := self._last_table()) >= len(self.tables):
            return f"a symbol with table {last} of {len(self.tables)}"
        if symbols == self.levels:
            return "ranks of digits that are coded as they are" if self.ranks.size else None
        values = self.levels[0]
        if self.ranks.shape != (values,) or not np.array_equal(np.sort(self.ranks), np.arange(values)):
            return f"ranks of {self.ranks.shape} that are not a permutation of {values} values"
        return None

    def _last_table(self) -> int:
        """The highest table index that `picks` and `classes` can lead to."""
        first, neighbour_step, symbol_step = self.picks.astype(np.int64).transpose(2, 0, 1)
        available = np.minimum(1, np.arange(len(self.picks)))  # neighbours of each row of `picks`
        if self.cell is not None:
            available = np.array([0, *(2, 2, 4) * DISTANCES])
        highest = self.classes.max(2, initial=0).astype(np.int64)  # (neighbours, symbols)
        total = np.concatenate([np.zeros_like(first[:1]), highest.cumsum(0)])[np.minimum(available, len(self.classes))]
        before = np.array([0, *self.symbol_levels[:-1]]) - 1
        return int((first + neighbour_step * total + symbol_step * np.maximum(0, before)).max())

    @cached_property
    def symbol_levels(self) -> tuple[int, ...]:
        """See `symbol_levels`."""
        return symbol_levels(self.levels)

    @property
    def divisor(self) -> int:
        """Levels of the second symbol of a large digit."""
        return self.symbol_levels[1]

    @property
    def block_tokens(self) -> int:
        """Tokens per block of 256x256 pixels; in rows, per block."""
        return len(self.picks) if self.cell is None else (BLOCK // self.cell) ** 2

    @property
    def quality_stops(self) -> tuple[tuple[float, float], ...]:
        """Rows: from one token per block to all of them. Grid: all tokens from the default quality on, and every fourth at 0,
        since missing cells are only filled in. Without tail token drop, all at every quality."""
        complete = float(self.block_tokens)
        if not self.tail_drop:
            return ((0.0, complete), (100.0, complete))
        return (
            ((0.0, 1.0), (100.0, complete)) if self.cell is None else ((0.0, complete / 4), (50.0, complete), (100.0, complete))
        )

    @cached_property
    def coder_tables(self) -> NDArray[np.float64]:
        """The frequencies less one, the input of `bitstream.range_coder`."""
        return (self.tables - 1).astype(np.float64)

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose tables have at most CHUNK entries."""
        return max(1, CHUNK // (len(self.symbol_levels) * self.tables.shape[1]))

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that identify digits, layout, tables and their selection."""
        digest = hashlib.sha256(b"digits" + int(self.cell or 0).to_bytes(4, "big"))
        for array in (np.array(self.levels), self.tables, self.picks, self.classes, self.ranks):
            digest.update(np.array(array.shape, ">i4").tobytes() + array.astype(">i4").tobytes())
        return digest.digest()

    def layout(self, width: int, height: int) -> DigitLayout:
        if self.cell is None:
            return RowLayout(width, height, self.side, self.block_tokens)
        return GridLayout(width, height, self.cell)

    def symbols(self, digits: NDArray[np.int32]) -> NDArray[np.int32]:
        """Digits (D, tokens) -> symbols (symbols, tokens)."""
        if self.symbol_levels == self.levels:
            return digits.astype(np.int32)
        return np.stack(np.divmod(self.ranks[digits[0]], self.divisor)).astype(np.int32)

    def prefix(self, layout: DigitLayout, symbols: NDArray[np.int32], length: int) -> DigitPrefix:
        """From symbols (symbols, tokens) in reading order, zero where unknown: the inverse of `symbols`."""
        prefix = DigitPrefix(layout, symbols.reshape(-1, *layout.shape), length)
        if self.symbol_levels == self.levels:
            return prefix
        value_of = np.argsort(self.ranks).astype(np.int32)
        digits = np.where(prefix.known.ravel(), value_of[symbols[0] * self.divisor + symbols[1]], 0)
        return DigitPrefix(layout, digits.reshape(1, *layout.shape), length)

    def first_contexts(self, run: Run, symbols: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n, symbols) table indexes of a run's symbols, less the part of the symbol before, from symbols (symbols, tokens) of
        all tokens known before the run."""
        first, neighbour_step, _ = self.picks[run.pick].T
        contexts = np.repeat(first[None], len(run.positions), 0)
        for classes, neighbour in zip(self.classes, run.neighbours, strict=False):
            for index in np.flatnonzero(neighbour_step):
                contexts[:, index] += neighbour_step[index] * classes[index, symbols[index, neighbour]]
        return contexts

    def sequence(self, complete: DigitPrefix) -> DigitSequence:
        """Puts the tokens of an image into coding order. Raises ValueError if a digit is out of range."""
        layout, digits = complete.layout, complete.digits
        if digits.shape != (len(self.levels), *layout.shape) or not self._in_range(digits):
            msg = (
                f"digits of {digits.shape} in {digits.min()}..{digits.max()}, for {layout.shape} tokens of {self.levels} levels"
            )
            raise ValueError(msg)
        symbols = self.symbols(digits.reshape(len(digits), -1))
        in_order, contexts = [], []
        for run in layout.runs():
            own = symbols[:, run.positions].T
            indexes = self.first_contexts(run, symbols)
            indexes[:, 1:] += self.picks[run.pick, 1:, 2] * own[:, :-1]
            in_order.append(own)
            contexts.append(indexes)
        return DigitSequence(self, layout, np.concatenate(in_order), np.concatenate(contexts))

    def _in_range(self, digits: NDArray[Any]) -> bool:
        return bool(digits.min() >= 0 and (digits.reshape(len(digits), -1).max(1) < self.levels).all())

    def decode(self, layout: DigitLayout, payload: bytes, length: int, partial: bool = False) -> DigitPrefix:
        """The inverse of `sequence` and `bitstream.range_coder.encode_tokens`. See `bitstream.sequence.Code`."""
        decoders = make_decoders(payload, partial)
        symbols = np.zeros((len(self.symbol_levels), layout.tokens), np.int32)
        read = 0
        for run in layout.runs() if length else ():
            contexts = self.first_contexts(run, symbols)[: length - read]
            for start in range(0, len(contexts), self.chunk_tokens):
                chunk = contexts[start : start + self.chunk_tokens]
                tokens = self._read(decoders, run.pick, chunk)
                symbols[:, run.positions[start : start + len(tokens)]] = tokens.T
                read += len(tokens)
                if len(tokens) < len(chunk):
                    return self.prefix(layout, symbols, read)
            if read == length:
                break
        return self.prefix(layout, symbols, read)

    def _read(self, decoders: list[Any], pick: int, contexts: NDArray[np.int32]) -> NDArray[np.int32]:
        """Symbols (n, symbols) of tokens with these `first_contexts`: fewer if the bytes are not certain to mean more."""
        if self.picks[pick, :, 2].any():
            tokens = self._read_chained(decoders, self.picks[pick, :, 2], contexts)
        else:
            tokens = read_certain(decoders, self.coder_tables[contexts.ravel()], len(self.symbol_levels))
        allowed = (tokens < self.symbol_levels).all(1)
        if self.symbol_levels != self.levels:
            allowed &= tokens[:, 0] * self.divisor + tokens[:, -1] < self.levels[0]
        certain = len(tokens) if allowed.all() else int(allowed.argmin())
        if certain < len(contexts) and len(decoders) == 1:
            msg = "the tokens are damaged: no encoder writes these bytes"
            raise FormatError(msg)
        return tokens[:certain]

    def _read_chained(self, decoders: list[Any], steps: NDArray[np.int32], contexts: NDArray[np.int32]) -> NDArray[np.int32]:
        """`_read` if some symbols of a token depend on the one before them: those with a step that is not 0. Symbols between
        them are read together."""
        starts = [0, *np.flatnonzero(steps).tolist()]
        parts = list(zip(starts, [*starts[1:], len(steps)], strict=True))
        contexts, tokens = contexts.copy(), np.zeros_like(contexts)
        for number, (token, own) in enumerate(zip(tokens, contexts, strict=True)):
            for start, end in parts:
                if start:
                    own[start] += steps[start] * token[start - 1]
                symbols = read_certain(decoders, self.coder_tables[own[start:end]], end - start)
                if not len(symbols) or symbols[0, -1] >= self.symbol_levels[end - 1]:
                    return tokens[:number]
                token[start:end] = symbols[0]
        return tokens

    def to_arrays(self, prefix: DigitPrefix) -> dict[str, NDArray[Any]]:
        """`digits` (D, *positions) and `known` (*positions)."""
        return {"digits": prefix.digits, "known": prefix.known}

    def from_arrays(self, layout: DigitLayout, arrays: Mapping[str, NDArray[Any]]) -> DigitPrefix:
        """The inverse of `to_arrays`. Raises FormatError if a digit is out of range."""
        digits = arrays["digits"]
        if not self._in_range(digits):
            msg = f"digits are {digits.min()}..{digits.max()}: below {', '.join(map(str, self.levels))} is allowed"
            raise FormatError(msg)
        return DigitPrefix(layout, digits, int(arrays["known"].sum()))

    def array_types(self, layout: DigitLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of `to_arrays`."""
        return {"digits": ("int32", (len(self.levels), *layout.shape)), "known": ("bool", layout.shape)}


def digit_code(levels: tuple[int, ...], block_tokens: int = 256, side: int = BLOCK, tail_drop: bool = True) -> DigitCode:
    """Rows of tokens whose digits (D,) have these levels, all values equally likely: the sum of log2 L_d bits per token."""
    return _uniform(levels, block_tokens, None, side, tail_drop)


def grid_code(levels: tuple[int, ...], cell: int, tail_drop: bool = True) -> DigitCode:
    """A grid of tokens for cells of this many pixels, whose digits (D,) have these levels, all values equally likely."""
    return _uniform(levels, GRID_CONTEXTS, cell, BLOCK, tail_drop)


def _uniform(levels: tuple[int, ...], contexts: int, cell: int | None, side: int, tail_drop: bool) -> DigitCode:
    symbols = symbol_levels(levels)
    weights = np.zeros((len(symbols), max(symbols)))
    for row, count in zip(weights, symbols, strict=True):
        row[:count] = 1
    ranks = np.arange(0)
    if symbols != levels:
        ranks = np.arange(levels[0])
        weights[0, : symbols[0]] = np.bincount(ranks // symbols[1])
    weights, first = np.unique(weights, axis=0, return_inverse=True)
    picks = np.zeros((contexts, len(symbols), 3), np.int32)
    picks[:, :, 0] = first.ravel()
    classes = np.zeros((0, len(symbols), max(symbols)), np.int32)
    return DigitCode(levels, frequencies_of(weights), picks, classes, ranks.astype(np.int32), cell, side, tail_drop)


def fill_unknown(digits: NDArray[np.int32], known: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Digits (D, rows, columns) of a grid whose unknown cells copy the nearest known cell, by Euclidean distance; of several,
    the topmost, and of these the leftmost. Without a known cell, the digits as they are."""
    if known.all() or not known.any():
        return digits
    rows, columns = known.shape
    x = np.arange(columns)
    left = np.maximum.accumulate(np.where(known, x, -4 * (rows + columns)), 1)  # the nearest known column of each row
    right = np.minimum.accumulate(np.where(known, x, 4 * (rows + columns))[:, ::-1], 1)[:, ::-1]
    source_x = np.where(x - left <= right - x, left, right)
    across = np.square(x - source_x)
    filled = np.empty_like(digits)
    for row in range(rows):
        source_y = (across + np.square(np.arange(rows) - row)[:, None]).argmin(0)
        filled[:, row] = digits[:, source_y, source_x[source_y, x]]
    return filled
