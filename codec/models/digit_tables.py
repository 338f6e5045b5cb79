"""Coding tables for tokens of digits, measured on photos. No torch.

The table of a symbol may depend on neighbouring tokens, on the position in a row or the pass of a grid, and on the symbol
before it in its token (`bitstream.digit_tokens`). Each of these is a refinement: it splits every table into several. A new
table blends its own counts with the table that was split, with the weight that is best for held-out photos. A refinement that
saves too few bits on these photos is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitstream.digit_tokens import DigitCode, DigitPrefix
from bitstream.entropy_model import frequencies_of
from codec.errors import ImageError
from codec.models.coding_tables import PSEUDOCOUNTS

MIN_GAIN = 0.01  # bits per symbol that a refinement must save
MIN_CHAIN_GAIN = 0.03  # the same for the symbol before: tokens whose symbols depend on each other are read one by one, slowly
MAX_ENTRIES = 1 << 20  # maximum number of entries in all tables of a symbol: 4 MB
MAX_CLASSES = 64  # maximum number of classes of a neighbour's values
FINE_LEVELS = 8  # symbols of at most this many levels depend on the exact values of two neighbours, and on two further ones
OTHER_LEVELS = 4  # levels to which the values of the two further ones are reduced


@dataclass(frozen=True)
class DigitMeasurement:
    """Tables counted on all photos, and the cost of one half of the photos under tables counted on the other half."""

    code: DigitCode
    bits: float  # per token


@dataclass(frozen=True)
class _Tokens:
    """Tokens of several photos in coding order, M symbols each."""

    photos: NDArray[np.int64]  # (n,) number of the photo
    picks: NDArray[np.int64]  # (n,) position in a row, or pass of a grid
    neighbours: NDArray[np.int16]  # (n, 4, M) symbols of the neighbours; -1 if there are fewer
    symbols: NDArray[np.int32]  # (n, M)


@dataclass(frozen=True)
class _Refinement:
    """A variable that the table of a symbol may depend on."""

    kind: str  # "first" or "second" neighbour, sum of the "others", "pick", or the symbol "before"
    size: int  # number of values
    values: NDArray[np.int64]  # (n,) its value for each token, below `size`


def measure_digits(
    code: DigitCode, photos: Sequence[DigitPrefix], codebook: NDArray[np.float32] | None = None
) -> DigitMeasurement:
    """The code with the cheapest tables for these complete prefixes, one per photo. With the codebook (V, D), if the code has
    a single digit of many levels, similar vectors get similar ranks.

    Raises ImageError for fewer than two photos."""
    if len(photos) < 2:
        msg = "tables cannot be measured on a single photo: two or more are needed, thousands are better"
        raise ImageError(msg)
    if codebook is not None and code.ranks.size:
        code = replace(code, ranks=ranks_of(codebook, code.divisor))
    tokens = _tokens_of(code, photos)
    held_out = tokens.photos % 2 == 1
    count, values = len(code.symbol_levels), code.tables.shape[1]
    picks = np.zeros((len(code.picks), count, 3), np.int64)
    classes = np.zeros((4 if code.cell else 1, count, values), np.int64)
    tables: list[NDArray[np.float64]] = []
    bits = 0.0
    for index, levels in enumerate(code.symbol_levels):
        symbols = tokens.symbols[:, index]
        chosen, weights, cost = _choose(_refinements(code, tokens, index), symbols, held_out, levels)
        bits += cost
        _write_selection(chosen, index, len(np.concatenate(tables)) if tables else 0, picks, classes, levels)
        own = _count(chosen, weights, symbols, levels)
        tables.append(np.pad(own, ((0, 0), (0, values - levels))))
    frequencies = frequencies_of(np.concatenate(tables))
    return DigitMeasurement(
        replace(code, tables=frequencies, picks=picks.astype(np.int32), classes=classes.astype(np.int32)), bits
    )


def ranks_of(codebook: NDArray[np.float32], leaf: int) -> NDArray[np.int32]:
    """The rank (V,) of each vector of a codebook (V, D), such that similar vectors have ranks close to each other.

    The codebook is halved across its principal direction, and so is each half, until a part has at most `leaf` vectors, which
    get consecutive ranks."""
    order: list[NDArray[np.int64]] = []
    nodes = [np.arange(len(codebook))]
    while nodes:
        node = nodes.pop()
        if len(node) <= leaf:
            order.append(node)
            continue
        vectors = codebook[node] - codebook[node].mean(0)
        direction = vectors[np.square(vectors).sum(1).argmax()].astype(np.float64)
        for _ in range(12):  # power iterations
            direction = (vectors @ direction) @ vectors
            direction /= np.linalg.norm(direction) + 1e-30
        node = node[np.argsort(vectors @ direction, kind="stable")]
        middle = -(-len(node) // leaf) // 2 * leaf
        nodes += [node[middle:], node[:middle]]
    ranks = np.empty(len(codebook), np.int32)
    ranks[np.concatenate(order)] = np.arange(len(codebook))
    return ranks


def _tokens_of(code: DigitCode, photos: Sequence[DigitPrefix]) -> _Tokens:
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int16], NDArray[np.int32]]] = []
    for number, photo in enumerate(photos):
        symbols = code.symbols(photo.digits.reshape(len(photo.digits), -1))
        for run in photo.layout.runs():
            count = len(run.positions)
            neighbours = np.full((count, 4, len(symbols)), -1, np.int16)
            for slot, positions in enumerate(run.neighbours):
                neighbours[:, slot] = symbols[:, positions].T
            parts.append((np.full(count, number), np.full(count, run.pick), neighbours, symbols[:, run.positions].T))
    return _Tokens(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _refinements(code: DigitCode, tokens: _Tokens, index: int) -> list[_Refinement]:
    """The refinements to try for symbol `index`, in this order."""
    levels = code.symbol_levels[index]
    pick = _Refinement("pick", len(code.picks), tokens.picks)
    before = (
        [_Refinement("before", code.symbol_levels[index - 1], tokens.symbols[:, index - 1].astype(np.int64))] if index else []
    )
    if index and code.ranks.size:  # a remainder has no meaning without its quotient
        return [*before, pick]
    near = np.maximum(tokens.neighbours[:, :, index], 0).astype(np.int64)
    if code.cell is None:
        size = max(1, min(levels, MAX_CLASSES, MAX_ENTRIES // (len(code.picks) * levels)))
        return [pick, _Refinement("first", size, near[:, 0] * size // levels), *before]
    size = levels
    while size > FINE_LEVELS and (size > MAX_CLASSES or size**2 * levels > MAX_ENTRIES // 2):
        size //= 2
    found = [_Refinement(kind, size, near[:, slot] * size // levels) for slot, kind in enumerate(("first", "second"))]
    if levels <= FINE_LEVELS:
        rounded = near[:, 2:] * min(OTHER_LEVELS, levels) // levels
        others = np.where(tokens.neighbours[:, 2, index] < 0, 0, 1 + rounded.sum(1))
        found.append(_Refinement("others", 2 * min(OTHER_LEVELS, levels), others))
    return [*found, pick, *before]


def _choose(
    refinements: list[_Refinement], symbols: NDArray[np.int32], held_out: NDArray[np.bool_], levels: int
) -> tuple[list[_Refinement], list[float], float]:
    """The refinements that save enough bits; the weights of the coarser tables, first for the unrefined table, then for each
    refinement; and the mean cost of held-out symbols in bits."""
    counted, rest = ~held_out, symbols[held_out]
    chosen, weights = [], []
    numbers = np.zeros(len(symbols), np.int64)  # number of the table of each symbol
    tables, bits = np.full((1, levels), 1 / levels), np.inf
    for refinement in [_Refinement("all", 1, numbers), *refinements]:
        if len(tables) * refinement.size * levels > MAX_ENTRIES:
            continue
        finer = numbers * refinement.size + refinement.values
        candidates = [
            (weight, _refine(tables, refinement.size, finer[counted], symbols[counted], weight)) for weight in PSEUDOCOUNTS
        ]
        costs = [-np.log2(table[finer[held_out], rest]).mean() for _, table in candidates]
        best = int(np.argmin(costs))
        if costs[best] < bits - (MIN_CHAIN_GAIN if refinement.kind == "before" else MIN_GAIN):
            weights.append(candidates[best][0])
            numbers, tables, bits = finer, candidates[best][1], float(costs[best])
            chosen.append(refinement)
    return chosen[1:], weights, bits


def _count(chosen: list[_Refinement], weights: list[float], symbols: NDArray[np.int32], levels: int) -> NDArray[np.float64]:
    """The probabilities (T, levels) of the refined tables, counted on all symbols."""
    numbers = np.zeros(len(symbols), np.int64)
    tables = _refine(np.full((1, levels), 1 / levels), 1, numbers, symbols, weights[0])
    for refinement, weight in zip(chosen, weights[1:], strict=True):
        numbers = numbers * refinement.size + refinement.values
        tables = _refine(tables, refinement.size, numbers, symbols, weight)
    return tables


def _refine(
    coarse: NDArray[np.float64], size: int, numbers: NDArray[np.int64], symbols: NDArray[np.int32], weight: float
) -> NDArray[np.float64]:
    """Probabilities (T * size, levels) from symbols with these table numbers, and from the coarser tables (T, levels), which
    count as `weight` observations."""
    levels = coarse.shape[1]
    counts = np.bincount(numbers * levels + symbols, minlength=len(coarse) * size * levels).reshape(-1, levels)
    return (counts + weight * coarse.repeat(size, 0)) / (counts.sum(1, keepdims=True) + weight)


def _write_selection(
    chosen: list[_Refinement], index: int, start: int, picks: NDArray[np.int64], classes: NDArray[np.int64], levels: int
) -> None:
    """Writes to `picks` and `classes` how the table of symbol `index` is selected. Its tables begin at index `start`."""
    picks[:, index, 0] = start
    values, rounded = np.arange(levels), np.arange(levels) * min(OTHER_LEVELS, levels) // levels
    stride = 1
    for refinement in reversed(chosen):
        if refinement.kind == "pick":
            picks[:, index, 0] += stride * np.arange(len(picks))
        elif refinement.kind == "before":
            picks[:, index, 2] = stride
        else:
            picks[:, index, 1] = 1
            if refinement.kind == "others":
                classes[2:, index, :levels] = stride * np.array([1 + rounded, rounded])
            else:
                classes[int(refinement.kind == "second"), index, :levels] = stride * (values * refinement.size // levels)
        stride *= refinement.size
