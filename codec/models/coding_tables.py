"""Coding tables for the indices of a tokenizer, measured on photos. No torch.

With V = 4096 indices, there are never enough photos to count a table per position, let alone one per position and previous
token. Tables are therefore refined in three stages: one for all positions, one per position, one per position and class of the
previous token. A table of a finer stage blends its own counts with the table of the coarser stage, with the weight that is best
for held-out photos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookCode
from bitstream.entropy_model import frequencies_of
from codec.errors import ImageError

CLASSES = 8  # number of classes of the previous token
PSEUDOCOUNTS = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5, 1e6)  # candidates for the weight of the coarser table
MIN_GAIN = 0.02  # bits per token that a position must save for tables per class to be worth their space
MIN_BLOCKS = 4


@dataclass(frozen=True)
class TableMeasurement:
    """Tables counted on all blocks, and the cost of one half of the photos under tables counted on the other half."""

    code: CodebookCode
    bits: float  # per token; uniform tables cost log2 V
    conditioned: int  # positions whose tables depend on the previous token


def classes_of(codebook: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The class (V,), below CLASSES, of each vector of a codebook (V, D): the signs of its first principal components."""
    codes = codebook / np.linalg.norm(codebook.astype(np.float64), axis=1, keepdims=True)  # normalised, as in the network
    centred = codes - codes.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    sides = centred @ directions[: CLASSES.bit_length() - 1].T > 0
    return (sides * 2 ** np.arange(sides.shape[1])).sum(1).astype(np.uint8)


def measure_code(
    code: CodebookCode, indices: NDArray[np.int32], photos: NDArray[np.int64], codebook: NDArray[np.float32]
) -> TableMeasurement:
    """The code with the cheapest tables for photos with these indices (blocks, N), given the number (blocks,) of each block's
    photo and the codebook (V, D).

    Raises ImageError for fewer than MIN_BLOCKS blocks, or a single photo."""
    if len(indices) < MIN_BLOCKS:
        msg = f"tables cannot be measured on {len(indices)} blocks: {MIN_BLOCKS} or more are needed, thousands are better"
        raise ImageError(msg)
    if photos.max() < 1:
        msg = "tables cannot be measured on a single photo: two or more are needed, thousands are better"
        raise ImageError(msg)
    classes = classes_of(codebook)
    values = len(codebook)

    # Half of the photos are counted. The other half chooses the weights of the coarser tables, and the positions that get
    # tables per class. Blocks of one photo overlap, so both halves never share one.
    counted, held_out = indices[photos % 2 == 0], indices[photos % 2 == 1]
    counts, coarse = _counts(counted, values), _frequencies(counted, values)
    weight, bits = _cheapest(lambda w: _bits(_blend(counts, coarse, w), held_out))
    tables = _blend(counts, coarse, weight)
    class_weight, conditional_bits = _cheapest(lambda w: _conditional_bits(counted, held_out, tables, classes, w))
    pays = conditional_bits < bits - MIN_GAIN

    # All blocks are counted for the tables themselves.
    tables = _blend(_counts(indices, values), _frequencies(indices, values), weight)
    rows, table_of = list(tables), np.repeat(np.arange(len(tables))[:, None], CLASSES, 1)
    for position in np.flatnonzero(pays).tolist():
        table_of[position] = len(rows) + np.arange(CLASSES)
        rows += list(_blend(_conditional_counts(indices, position, classes, values), tables[position], class_weight))
    if not pays.any():
        table_of, classes = table_of[:, :1], np.zeros_like(classes)
    measured = replace(code, tables=frequencies_of(np.array(rows)), table_of=table_of.astype(np.int32), classes=classes)
    return TableMeasurement(measured, float(np.where(pays, conditional_bits, bits).mean()), int(pays.sum()))


def _cheapest(bits_of: Callable[[float], NDArray[np.float64]]) -> tuple[float, NDArray[np.float64]]:
    """The weight among PSEUDOCOUNTS for which `bits_of` has the lowest mean, and these bits."""
    return min(((weight, bits_of(weight)) for weight in PSEUDOCOUNTS), key=lambda candidate: candidate[1].mean())


def _frequencies(indices: NDArray[np.int32], values: int) -> NDArray[np.float64]:
    """Probability (V,) of each index at any position; none is zero."""
    counts = np.bincount(indices.ravel(), minlength=values) + np.float64(0.5)
    return counts / counts.sum()


def _counts(indices: NDArray[np.int32], values: int) -> NDArray[np.float64]:
    """Counts (N, V) of each index at each position, from indices (blocks, N)."""
    cells = np.arange(indices.shape[1]) * values + indices
    return np.bincount(cells.ravel(), minlength=indices.shape[1] * values).reshape(-1, values).astype(np.float64)


def _conditional_counts(
    indices: NDArray[np.int32], position: int, classes: NDArray[np.uint8], values: int
) -> NDArray[np.float64]:
    """Counts (CLASSES, V) of each index at one position, by the class of the previous token."""
    cells = classes[indices[:, position - 1]].astype(np.int64) * values + indices[:, position]
    return np.bincount(cells, minlength=CLASSES * values).reshape(-1, values).astype(np.float64)


def _blend(counts: NDArray[np.float64], coarse: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Probabilities (tables, V) from counts and the coarser table, which counts as `weight` observations."""
    return (counts + weight * coarse) / (counts.sum(1, keepdims=True) + weight)


def _bits(tables: NDArray[np.float64], held_out: NDArray[np.int32]) -> NDArray[np.float64]:
    """Mean cost (N,) of indices (blocks, N) at each position."""
    return -np.log2(tables[np.arange(held_out.shape[1]), held_out]).mean(0)


def _conditional_bits(
    counted: NDArray[np.int32],
    held_out: NDArray[np.int32],
    tables: NDArray[np.float64],
    classes: NDArray[np.uint8],
    weight: float,
) -> NDArray[np.float64]:
    """Mean cost (N,) of indices at each position, with tables per class of the previous token; the first position has none."""
    bits = _bits(tables, held_out)
    for position in range(1, len(tables)):
        rows = _blend(_conditional_counts(counted, position, classes, tables.shape[1]), tables[position], weight)
        bits[position] = -np.log2(rows[classes[held_out[:, position - 1]], held_out[:, position]]).mean()
    return bits
