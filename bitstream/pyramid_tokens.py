"""Tokens of the residual pyramid: levels from coarse to fine, of which each token has a few small digits. FORMAT.md, sections
3 to 6.

An image is padded at its right and bottom edge to whole blocks of 256x256 pixels. Each level lays a grid of side x side
tokens over each block; a token is coded if any cell (16x16 pixels) it covers touches the image, so the coded tokens of a
level form one rectangle, top left. Levels are sent one after the other, and within a level the dearest token comes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK_CELLS, CELL, blocks_of, spread
from bitstream.entropy_model import PRECISION, LevelEntropyModel
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import RangeDecoder, decoders_of, read_certain

ALL, EVEN, ODD = 0, 1, 2  # parts of a level's grid: a token belongs to EVEN if its row and column add up to an even number
LOOK = 3  # grids before its own whose digits a prior reads
CHUNK = 1 << 18  # digits handed to the coder in one go, to bound memory
# Quality and tokens per block. Chosen by what people see (`benchmarks/tools/quality.py`): 50 is as far up as files
# stay clearly smaller than WebP's for the same LPIPS, 100 is the best that the model can do, a little above WebP's 50.
QUALITY_STOPS = ((0.0, 85.0), (25.0, 469.0), (50.0, 853.0), (75.0, 1109.0), (100.0, 1365.0))


@dataclass(frozen=True)
class Level:
    """One pass over the image."""

    side: int  # tokens along the side of a block: 1, 2, 4, 8 or 16
    digits: int  # digits of a token
    limit: int  # digits lie in -limit..limit
    part: int = ALL  # of the grid: all tokens, or one colour of a checkerboard

    @property
    def block_tokens(self) -> int:
        """Tokens per block that lies inside the image."""
        return self.side**2 // (1 if self.part == ALL else 2)


@dataclass(frozen=True)
class PyramidLayout:
    """The token grids of one image of width x height pixels."""

    levels: tuple[Level, ...]
    width: int
    height: int

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells that touch the image."""
        return -(-self.height // CELL), -(-self.width // CELL)

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks, the last ones perhaps in part outside the image."""
        return blocks_of(self.width, self.height)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of coded tokens, per level."""
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
        """Tokens per block that lies inside the image: the unit in which people give a length."""
        return sum(level.block_tokens for level in self.levels)

    def split(self, length: int) -> tuple[int, ...]:
        """How many tokens of each level a sequence cut to `length` holds."""
        kept = []
        for count in self.counts:
            kept.append(min(count, max(0, length)))
            length -= count
        return tuple(kept)

    def length_of(self, block_tokens: float) -> int:
        """Length of the prefix that keeps this many tokens per block; the same share of a level in every image."""
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

    def blank(self, index: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
        """Digits (D, n, m) and map of known tokens (n, m) of a level of which nothing is known."""
        grid = self.grids[index]
        return np.zeros((self.levels[index].digits, *grid), np.int8), np.zeros(grid, np.bool_)


def count_of(part: int, rows: int, columns: int) -> int:
    """How many tokens of a grid belong to a part of it."""
    return (rows * columns + {ALL: rows * columns, EVEN: 1, ODD: 0}[part]) // 2


def in_part(part: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """(rows, columns) which tokens of a grid belong to a part of it."""
    y, x = np.ogrid[:rows, :columns]
    return (y + x) % 2 == part - EVEN if part else np.ones((rows, columns), np.bool_)


def grids_before(levels: Sequence[Level], index: int) -> list[tuple[int, ...]]:
    """The grids whose digits the prior of a level reads, coarse to fine, as the levels that each is made of: up to `LOOK`
    before its own, and where it is the odd half of a checkerboard, the even half."""
    own = (index - 1,) if levels[index].part == ODD else ()
    grids: list[tuple[int, ...]] = []
    for other in range(index - len(own)):
        if levels[other].part == ODD:
            grids[-1] += (other,)
        else:
            grids.append((other,))
    return grids[-LOOK:] + ([own] if own else [])


@dataclass(frozen=True)
class PyramidPrefix:
    """The digits of an image's first tokens."""

    layout: PyramidLayout
    digits: tuple[NDArray[np.int8], ...]  # (D, n, m) per level; 0 where not known, and no levels where nothing more is
    known: tuple[NDArray[np.bool_], ...]  # (n, m) per level

    @property
    def length(self) -> int:
        return int(sum(known.sum() for known in self.known))


def whole_of(layout: PyramidLayout, digits: Sequence[NDArray[np.int8]]) -> PyramidPrefix:
    """All tokens of an image's first levels, or of all, from the digits (D, n, m) of each."""
    return PyramidPrefix(layout, tuple(digits), tuple(layout.mask(index) for index in range(len(digits))))


@dataclass(frozen=True)
class PyramidSequence:
    """The tokens of an image's first levels, or of all, in the order in which they are sent, with the classes that their
    digits are coded under. Asked for tokens that it does not have, it raises ValueError."""

    code: PyramidCode
    layout: PyramidLayout
    symbols: tuple[NDArray[np.int8], ...]  # (tokens, D) digits per level
    classes: tuple[NDArray[np.uint8], ...]  # (tokens, D)
    orders: tuple[NDArray[np.int64], ...]  # (tokens,) places of tokens in reading order

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token."""
        parts = []
        for prior, symbols, classes in zip(self.code.priors, self.symbols, self.classes, strict=False):
            price = PRECISION - np.log2(prior.frequencies)
            limit = prior.frequencies.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            for start in range(0, len(symbols), step):
                part = slice(start, start + step)
                parts.append(price[classes[part], symbols[part].astype(np.intp) + limit].sum(1))
        return np.concatenate(parts)

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """Digits and frequencies less one, as `bitstream.sequence.TokenSequence` has them."""
        self._check(last)
        start = 0
        for prior, symbols, classes in zip(self.code.priors, self.symbols, self.classes, strict=False):
            limit = prior.frequencies.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            low, high = max(0, first - start), min(len(symbols), last - start)
            for at in range(low, high, step):
                part = slice(at, min(high, at + step))
                yield symbols[part].ravel().astype(np.int32) + limit, _weights(prior, classes[part])
            start += len(symbols)

    def first(self, length: int) -> PyramidPrefix:
        """The first tokens, as `PyramidCode.decode` reads them."""
        self._check(length)
        digits, known = zip(*(self.layout.blank(index) for index in range(len(self.layout.levels))), strict=True)
        parts = zip(digits, known, self.layout.split(length), self.symbols, self.orders, strict=False)
        for grid, there, kept, symbols, order in parts:
            grid.reshape(len(grid), -1)[:, order[:kept]] = symbols[:kept].T
            there.ravel()[order[:kept]] = True
        return PyramidPrefix(self.layout, digits, known)

    def _check(self, length: int) -> None:
        if length > (there := sum(map(len, self.symbols))):
            msg = f"{length} tokens of a sequence that has {there}"
            raise ValueError(msg)


@dataclass(frozen=True)
class PyramidCode:
    """The levels and the prior of each: with them, the meaning of a token stream."""

    levels: tuple[Level, ...]
    priors: tuple[LevelEntropyModel, ...]

    tail_drop = True
    quality_stops = QUALITY_STOPS

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.priors):
            msg = f"{len(self.levels)} levels but {len(self.priors)} priors"
            raise ModelError(msg)
        for index, (level, prior) in enumerate(zip(self.levels, self.priors, strict=True)):
            before = self.levels[index - 1] if index else None
            if level.part == ODD and before != replace(level, part=EVEN):
                msg = f"level {index} is the odd half of a grid of which level {index - 1} is not the even half"
                raise ModelError(msg)
            strange = None if level.part in (ALL, EVEN, ODD) else f"part {level.part} of its grid"
            if problem := strange or prior.problem(level.digits, level.limit):
                msg = f"the prior of level {index} has {problem}"
                raise ModelError(msg)

    @cached_property
    def block_tokens(self) -> int:
        """Tokens per block that lies inside the image."""
        return sum(level.block_tokens for level in self.levels)

    def layout(self, width: int, height: int) -> PyramidLayout:
        """The token grids of an image."""
        return PyramidLayout(self.levels, width, height)

    def context(self, layout: PyramidLayout, index: int, digits: Sequence[NDArray[np.int8]]) -> NDArray[np.int8]:
        """What the prior of a level reads: absolute digits (K, n, m) of the grids before it, repeated to its own.

        `digits` are those of all levels before, (D, n, m) each. The two halves of a checkerboard make up one grid."""
        rows, columns = layout.grids[index]
        if index == 0:
            return np.zeros((1, rows, columns), np.int8)
        seen = []
        for grid in grids_before(self.levels, index):
            span = self.levels[index].side // self.levels[grid[0]].side
            whole = np.sum([np.abs(digits[other]) for other in grid], 0, dtype=np.int8)
            seen.append(whole.repeat(span, 1).repeat(span, 2)[:, :rows, :columns])
        return np.concatenate(seen)

    def classes(self, layout: PyramidLayout, index: int, digits: Sequence[NDArray[np.int8]]) -> NDArray[np.uint8]:
        """The class of each digit of a level (D, n, m), from the digits of all levels before; 0 where it codes no token."""
        part = self.levels[index].part
        parities = (0, 1) if part == ALL else (part - EVEN,)
        return self.priors[index].classes(self.context(layout, index, digits), parities)

    def order(self, index: int, classes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(tokens,) places in reading order of the tokens of a level, dearest token first; ties by `spread`."""
        rows, columns = classes.shape[1:]
        costs = self.priors[index].costs.astype(np.int64)
        cost = np.concatenate([costs[classes[:, row]].sum(0) for row in range(rows)])  # row by row, to bound memory
        places = np.flatnonzero(in_part(self.levels[index].part, rows, columns))
        return places[np.lexsort((spread(rows, columns)[places], -cost[places]))]

    def sequence(self, whole: PyramidPrefix, classes: Sequence[NDArray[np.uint8]] | None = None) -> PyramidSequence:
        """Puts the tokens of an image into the order in which they are sent. `classes`, (D, n, m) per level, are computed
        where they are not at hand."""
        layout, digits = whole.layout, whole.digits
        sent, under, orders = [], [], []
        for index in range(len(digits)):
            chosen = classes[index] if classes else self.classes(layout, index, digits[:index])
            order = self.order(index, chosen)
            sent.append(_in_order(digits[index], order))
            under.append(_in_order(chosen, order))
            orders.append(order)
        return PyramidSequence(self, layout, tuple(sent), tuple(under), tuple(orders))

    def decode(self, layout: PyramidLayout, payload: bytes, length: int, partial: bool = False) -> PyramidPrefix:
        """The inverse of `bitstream.range_coder.encode_tokens`, as `bitstream.sequence.Code` has it."""
        decoders = decoders_of(payload, partial)
        digits, known = zip(*(layout.blank(index) for index in range(len(self.levels))), strict=True)
        for index, kept in enumerate(layout.split(length)):
            if not kept:  # nothing left, or a half that has no token in so small an image
                continue
            classes = self.classes(layout, index, digits[:index])
            order = self.order(index, classes)[:kept]
            sent = _decode_level(self.priors[index], decoders, _in_order(classes, order))
            order = order[: len(sent)]
            digits[index].reshape(len(digits[index]), -1)[:, order] = sent.T
            known[index].ravel()[order] = True
            if len(sent) < kept:  # all that follows is unknown
                break
        return PyramidPrefix(layout, digits, known)

    def to_arrays(self, prefix: PyramidPrefix) -> dict[str, NDArray[Any]]:
        """`digits_I` (D, n, m) and `known_I` (n, m) for each level I."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, (digits, known) in enumerate(zip(prefix.digits, prefix.known, strict=True)):
            arrays |= {f"digits_{index}": digits, f"known_{index}": known}
        return arrays

    def array_types(self, layout: PyramidLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each of these."""
        types: dict[str, tuple[str, tuple[int, ...]]] = {}
        for index, (level, grid) in enumerate(zip(self.levels, layout.grids, strict=True)):
            types |= {f"digits_{index}": ("int8", (level.digits, *grid)), f"known_{index}": ("bool", grid)}
        return types

    def from_arrays(self, layout: PyramidLayout, arrays: Mapping[str, NDArray[Any]]) -> PyramidPrefix:
        """The inverse of `to_arrays`. Raises FormatError for digits beyond a level's limit."""
        places = range(len(self.levels))
        digits = tuple(arrays[f"digits_{index}"] for index in places)
        for index, (level, array) in enumerate(zip(self.levels, digits, strict=True)):
            if np.abs(array.astype(np.int16)).max() > level.limit:
                msg = f"digits_{index} has digits beyond {level.limit}, which no file holds"
                raise FormatError(msg)
        return PyramidPrefix(layout, digits, tuple(arrays[f"known_{index}"] for index in places))


def _in_order(grid: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """(D, n, m) in reading order -> (tokens, D) as sent."""
    return np.ascontiguousarray(grid.reshape(len(grid), -1).T[order])


def _weights(prior: LevelEntropyModel, classes: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (prior.frequencies - 1).astype(np.float64)[classes.ravel()]


def _decode_level(prior: LevelEntropyModel, decoders: list[RangeDecoder], classes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Digits (tokens, D) for classes (tokens, D); fewer tokens where two decoders come to disagree."""
    limit = prior.frequencies.shape[1] // 2
    digits = classes.shape[1]
    step = max(1, CHUNK // digits)
    parts = [np.zeros((0, digits), np.int8)]
    for start in range(0, len(classes), step):
        weights = _weights(prior, classes[start : start + step])
        read = read_certain(decoders, weights, digits)
        parts.append((read - limit).astype(np.int8))
        if len(read) < len(weights) // digits:
            break
    return np.concatenate(parts)


def fingerprint(code: PyramidCode, others: list[bytes]) -> bytes:
    """32 bytes that identify the meaning of tokens: SHA-256 over levels, integer prior and tables, and `others`, the bytes of
    what else fixes it (the predictions). The stream id in a file is how these begin."""
    digest = hashlib.sha256()
    for level, part in zip(code.levels, code.priors, strict=True):
        part_of_grid = [level.part] if level.part else []  # not there for a whole grid
        digest.update(np.array([level.side, level.digits, level.limit, *part_of_grid], ">i4").tobytes())
        for layer in part.layers:
            digest.update(np.array([*layer.weight.shape, layer.shift], ">i4").tobytes())
            digest.update(layer.weight.astype(">i2").tobytes() + layer.bias.astype(">i8").tobytes())
        digest.update(part.frequencies.astype(">i4").tobytes() + part.costs.astype(">i4").tobytes())
    for blob in others:
        digest.update(len(blob).to_bytes(8, "big") + blob)
    return digest.digest()
