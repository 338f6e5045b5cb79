"""Tokens of the residual pyramid: levels from coarse to fine, each token a few small digits. FORMAT.md, sections 3 to 6.

An image is padded at its right and bottom edge to whole blocks of 256x256 pixels. Each level lays a grid of side x side tokens
over each block. A token is coded if any cell (16x16 pixels) it covers touches the image, so the coded tokens of a level form
one rectangle at the top left. Levels are sent one after the other, and within a level the tokens of the highest expected cost
come first.

Fine grids are sent as two levels, the two colours of a checkerboard:

    A N A N
    N A N A    A: anchors, coded from the digits of coarser grids
    A N A N    N: non-anchors, coded from coarser grids and from the anchors around them
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK_CELLS, CELL, blocks_of, z_order_ranks
from bitstream.entropy_model import PRECISION, LevelEntropyModel
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import make_decoders, read_certain
from bitstream.sequence import Base, Difference

ALL, ANCHOR, NON_ANCHOR = 0, 1, 2  # the part of its grid that a level codes; anchors have an even sum of row and column
CONTEXT_GRIDS = 3  # coarser grids whose digits the entropy model of a level reads
CHUNK = 1 << 18  # digits passed to the range coder in one call, to bound memory
# Quality and tokens per block, chosen from measurements (`benchmarks/tools/quality.py`, docs/targets.md). At 75, LPIPS is
# that of WebP at 50. 100 keeps all tokens, and lies between WebP at 75 and 90.
QUALITY_STOPS = ((0.0, 85.0), (25.0, 469.0), (50.0, 853.0), (75.0, 1109.0), (100.0, 1365.0))


@dataclass(frozen=True)
class Level:
    """One pass over the image."""

    side: int  # tokens along the side of a block: 1, 2, 4, 8 or 16
    digits: int  # digits of a token
    limit: int  # digits are in -limit..limit
    part: int = ALL  # coded part of the grid: ALL, ANCHOR or NON_ANCHOR

    @property
    def block_tokens(self) -> int:
        """Tokens per block that is inside the image."""
        return self.side**2 // (1 if self.part == ALL else 2)

    def mask(self, rows: int, columns: int) -> NDArray[np.bool_]:
        """(rows, columns) mask of the tokens that the level codes."""
        y, x = np.ogrid[:rows, :columns]
        return (y + x) % 2 == self.part - ANCHOR if self.part else np.ones((rows, columns), np.bool_)


def context_grids(levels: Sequence[Level], index: int) -> list[tuple[int, ...]]:
    """The grids whose digits the entropy model of a level reads, coarsest first, each as the indexes of its levels: up to
    `CONTEXT_GRIDS` before its own, and for non-anchors the anchors of their own grid."""
    own = (index - 1,) if levels[index].part == NON_ANCHOR else ()
    grids: list[tuple[int, ...]] = []
    for other in range(index - len(own)):
        if levels[other].part == NON_ANCHOR:
            grids[-1] += (other,)
        else:
            grids.append((other,))
    return grids[-CONTEXT_GRIDS:] + ([own] if own else [])


@dataclass(frozen=True)
class PyramidLayout:
    """The token grids of one image of width x height pixels."""

    levels: tuple[Level, ...]
    width: int
    height: int

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks. The last ones may extend beyond the image."""
        return blocks_of(self.width, self.height)

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of coded tokens, per level."""
        rows, columns = -(-self.height // CELL), -(-self.width // CELL)
        spans = [BLOCK_CELLS // level.side for level in self.levels]
        return tuple((-(-rows // span), -(-columns // span)) for span in spans)

    @cached_property
    def masks(self) -> tuple[NDArray[np.bool_], ...]:
        """(n, m) mask per level of the tokens that the level codes."""
        return tuple(level.mask(*grid) for level, grid in zip(self.levels, self.grids, strict=True))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Coded tokens of each level."""
        areas = [rows * columns for rows, columns in self.grids]
        return tuple(
            {ALL: area, ANCHOR: (area + 1) // 2, NON_ANCHOR: area // 2}[level.part]
            for level, area in zip(self.levels, areas, strict=True)
        )

    @property
    def tokens(self) -> int:
        """Coded tokens of all levels."""
        return sum(self.counts)

    def split(self, length: int) -> tuple[int, ...]:
        """Tokens of each level in a prefix of `length` tokens."""
        kept = []
        for count in self.counts:
            kept.append(min(count, max(0, length)))
            length -= count
        return tuple(kept)

    def length_of(self, block_tokens: float) -> int:
        """Length of the prefix that keeps this many tokens per block: the same share of a level in every image."""
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


@dataclass(frozen=True)
class PyramidPrefix:
    """The digits of an image's first tokens."""

    layout: PyramidLayout
    digits: tuple[NDArray[np.int8], ...]  # (D, n, m) per level, 0 if not known; trailing levels without tokens may be left out
    known: tuple[NDArray[np.bool_], ...]  # (n, m) per level
    base: Base | None = None  # of the reference, if the tokens code the difference from one

    @property
    def length(self) -> int:
        return int(sum(known.sum() for known in self.known))


def complete_prefix(layout: PyramidLayout, digits: Sequence[NDArray[np.int8]]) -> PyramidPrefix:
    """All tokens of an image's first levels, from the digits (D, n, m) of each."""
    return PyramidPrefix(layout, tuple(digits), layout.masks[: len(digits)])


@dataclass(frozen=True)
class PyramidSequence:
    """The tokens of an image's first levels in coding order, and the table index of each digit."""

    code: PyramidCode
    layout: PyramidLayout
    symbols: tuple[NDArray[np.int8], ...]  # (tokens, D) digits per level
    contexts: tuple[NDArray[np.uint8], ...]  # (tokens, D) table indexes per level
    orders: tuple[NDArray[np.int64], ...]  # (tokens,) positions in reading order, per level
    difference: Difference | None = None

    @property
    def length(self) -> int:
        return sum(map(len, self.symbols))

    def bits(self) -> NDArray[np.float64]:
        """(tokens,) cost of each token."""
        bits = []
        for model, symbols, contexts in zip(self.code.entropy_models, self.symbols, self.contexts, strict=False):
            price = PRECISION - np.log2(model.frequencies)
            limit = price.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            for start in range(0, len(symbols), step):
                chunk = slice(start, start + step)
                bits.append(price[contexts[chunk], symbols[chunk].astype(np.intp) + limit].sum(1))
        return np.concatenate(bits)

    def chunks(self, first: int, last: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float64]]]:
        """See `bitstream.sequence.TokenSequence`. Raises ValueError if the sequence has fewer than `last` tokens."""
        start = 0
        for model, symbols, contexts in zip(self.code.entropy_models, self.symbols, self.contexts, strict=False):
            limit = model.frequencies.shape[1] // 2
            step = max(1, CHUNK // symbols.shape[1])
            low, high = max(0, first - start), min(len(symbols), last - start)
            for begin in range(low, high, step):
                chunk = slice(begin, min(high, begin + step))
                yield symbols[chunk].ravel().astype(np.int32) + limit, model.coder_frequencies.take(contexts[chunk].ravel(), 0)
            start += len(symbols)
        if last > start:
            msg = f"{last} tokens of a sequence that has {start}"
            raise ValueError(msg)

    def first(self, length: int) -> PyramidPrefix:
        """The first `length` tokens. Raises ValueError if the sequence has fewer."""
        prefix = _unknown(self.layout)
        levels = zip(prefix.digits, prefix.known, self.layout.split(length), self.symbols, self.orders, strict=False)
        for digits, known, kept, symbols, order in levels:
            digits.reshape(len(digits), -1)[:, order[:kept]] = symbols[:kept].T
            known.ravel()[order[:kept]] = True
        if length > prefix.length:
            msg = f"{length} tokens of a sequence that has {prefix.length}"
            raise ValueError(msg)
        return replace(prefix, base=self.difference.base) if self.difference else prefix


@dataclass(frozen=True)
class PyramidCode:
    """The levels and the entropy model of each, which together define a token stream."""

    levels: tuple[Level, ...]
    entropy_models: tuple[LevelEntropyModel, ...]

    tail_drop = True
    quality_stops = QUALITY_STOPS

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.entropy_models):
            msg = f"{len(self.levels)} levels but {len(self.entropy_models)} entropy models"
            raise ModelError(msg)
        for index, (level, model) in enumerate(zip(self.levels, self.entropy_models, strict=True)):
            if level.part not in (ALL, ANCHOR, NON_ANCHOR):
                msg = f"level {index} has part {level.part}: 0, 1 and 2 are allowed"
                raise ModelError(msg)
            if level.part == NON_ANCHOR and (not index or self.levels[index - 1] != replace(level, part=ANCHOR)):
                msg = f"level {index} has the non-anchors of a grid, and level {index - 1} does not have its anchors"
                raise ModelError(msg)
            if problem := model.problem(level.digits, level.limit):
                msg = f"the entropy model of level {index} has {problem}"
                raise ModelError(msg)

    @cached_property
    def block_tokens(self) -> int:
        """Tokens per block that is inside the image."""
        return sum(level.block_tokens for level in self.levels)

    def layout(self, width: int, height: int) -> PyramidLayout:
        return PyramidLayout(self.levels, width, height)

    def planes(self, layout: PyramidLayout, index: int, digits: Sequence[NDArray[np.int8]]) -> NDArray[np.int8]:
        """(K, n, m) input of a level's entropy model: absolute digits of the context grids, repeated to the grid of the level.
        `digits` holds the digits (D, n, m) of each level before it."""
        rows, columns = layout.grids[index]
        if index == 0:
            return np.zeros((1, rows, columns), np.int8)
        planes = []
        for grid in context_grids(self.levels, index):
            span = self.levels[index].side // self.levels[grid[0]].side
            magnitudes = np.sum([np.abs(digits[other]) for other in grid], 0, dtype=np.int8)
            planes.append(magnitudes.repeat(span, 1).repeat(span, 2)[:, :rows, :columns])
        return np.concatenate(planes)

    def contexts(self, layout: PyramidLayout, index: int, digits: Sequence[NDArray[np.int8]]) -> NDArray[np.uint8]:
        """(D, n, m) table index of each digit of a level, from the digits of all levels before; 0 for tokens that the level
        does not code."""
        part = self.levels[index].part
        parities = (0, 1) if part == ALL else (part - ANCHOR,)
        return self.entropy_models[index].contexts(self.planes(layout, index, digits), parities)

    def order(self, layout: PyramidLayout, index: int, contexts: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(tokens,) positions in reading order of the tokens of a level, the highest expected cost first, ties by Z-order."""
        costs = self.entropy_models[index].costs.astype(np.int64)
        cost = np.concatenate([costs[row].sum(0) for row in contexts.swapaxes(0, 1)])  # row by row, to bound memory
        positions = np.flatnonzero(layout.masks[index])
        return positions[np.lexsort((z_order_ranks(*layout.grids[index])[positions], -cost[positions]))]

    def sequence(self, complete: PyramidPrefix, contexts: Sequence[NDArray[np.uint8]] | None = None) -> PyramidSequence:
        """Puts the tokens of an image into coding order. `contexts`, (D, n, m) per level, are computed unless given."""
        layout, digits = complete.layout, complete.digits
        symbols, indexes, orders = [], [], []
        for index in range(len(digits)):
            own = contexts[index] if contexts else self.contexts(layout, index, digits)
            order = self.order(layout, index, own)
            symbols.append(_in_order(digits[index], order))
            indexes.append(_in_order(own, order))
            orders.append(order)
        return PyramidSequence(self, layout, tuple(symbols), tuple(indexes), tuple(orders))

    def decode(self, layout: PyramidLayout, payload: bytes, length: int, partial: bool = False) -> PyramidPrefix:
        """The inverse of `sequence` and `bitstream.range_coder.encode_tokens`. See `bitstream.sequence.Code`."""
        decoders = make_decoders(payload, partial)
        prefix = _unknown(layout)
        for index, kept in enumerate(layout.split(length)):
            if not kept:  # the end, or a level without tokens in an image of a few pixels
                continue
            model, digits = self.entropy_models[index], prefix.digits[index]
            limit = model.frequencies.shape[1] // 2
            contexts = self.contexts(layout, index, prefix.digits)
            order = self.order(layout, index, contexts)[:kept]
            contexts = _in_order(contexts, order)
            step = max(1, CHUNK // len(digits))
            for start in range(0, kept, step):
                chunk = contexts[start : start + step]
                symbols = read_certain(decoders, model.coder_frequencies.take(chunk.ravel(), 0), len(digits))
                positions = order[start : start + len(symbols)]
                digits.reshape(len(digits), -1)[:, positions] = (symbols - limit).T
                prefix.known[index].ravel()[positions] = True
                if len(symbols) < len(chunk):
                    return prefix
        return prefix

    def to_arrays(self, prefix: PyramidPrefix) -> dict[str, NDArray[Any]]:
        """`digits_I` (D, n, m) and `known_I` (n, m) for each level I."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, (digits, known) in enumerate(zip(prefix.digits, prefix.known, strict=True)):
            arrays |= {f"digits_{index}": digits, f"known_{index}": known}
        return arrays

    def from_arrays(self, layout: PyramidLayout, arrays: Mapping[str, NDArray[Any]]) -> PyramidPrefix:
        """The inverse of `to_arrays`. Raises FormatError if a digit is beyond the limit of its level."""
        indexes = range(len(self.levels))
        digits = tuple(arrays[f"digits_{index}"] for index in indexes)
        for index, (level, array) in enumerate(zip(self.levels, digits, strict=True)):
            if np.abs(array.astype(np.int16)).max() > level.limit:
                msg = f"digits_{index} has digits beyond the limit of {level.limit}"
                raise FormatError(msg)
        return PyramidPrefix(layout, digits, tuple(arrays[f"known_{index}"] for index in indexes))

    def array_types(self, layout: PyramidLayout) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each array of `to_arrays`."""
        types: dict[str, tuple[str, tuple[int, ...]]] = {}
        for index, (level, grid) in enumerate(zip(self.levels, layout.grids, strict=True)):
            types |= {f"digits_{index}": ("int8", (level.digits, *grid)), f"known_{index}": ("bool", grid)}
        return types


def _in_order(grid: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """(D, n, m) in reading order -> (tokens, D) in coding order."""
    return np.ascontiguousarray(grid.reshape(len(grid), -1).T[order])


def _unknown(layout: PyramidLayout) -> PyramidPrefix:
    """A prefix of no tokens."""
    grids = list(zip(layout.levels, layout.grids, strict=True))
    digits = tuple(np.zeros((level.digits, *grid), np.int8) for level, grid in grids)
    return PyramidPrefix(layout, digits, tuple(np.zeros(grid, np.bool_) for _, grid in grids))


def fingerprint(code: PyramidCode, network_arrays: list[bytes]) -> bytes:
    """32 bytes that identify the meaning of tokens: SHA-256 over levels, entropy models, tables, and the serialised network
    arrays that turn digits into latents. The stream id in a file is the start of these bytes."""
    digest = hashlib.sha256()
    for level, model in zip(code.levels, code.entropy_models, strict=True):
        part = [level.part] if level.part else []
        digest.update(np.array([level.side, level.digits, level.limit, *part], ">i4").tobytes())
        for layer in model.layers:
            digest.update(np.array([*layer.weight.shape, layer.shift], ">i4").tobytes())
            digest.update(layer.weight.astype(">i2").tobytes() + layer.bias.astype(">i8").tobytes())
        digest.update(model.frequencies.astype(">i4").tobytes() + model.costs.astype(">i4").tobytes())
    for array in network_arrays:
        digest.update(len(array).to_bytes(8, "big") + array)
    return digest.digest()
