"""Tables for the indices of a tokenizer, measured on photos. No torch.

With V = 4096 indices there are never enough photos to count a table per position, let alone one per token before. So each
table starts from a coarser one and trusts its own counts as far as they help on photos that were not counted: all positions
together, then each position, then each position after each class of the token before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookCode
from bitstream.entropy_model import frequencies_of
from codec.errors import ImageError

CLASSES = 8  # of the token before
TRUST = (3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5, 1e6)  # counts that the coarser table is worth; tried in turn
GAIN = 0.02  # bits per token that tables after each class must save, or they are not worth their room
FEWEST = 4  # blocks to measure with


@dataclass(frozen=True)
class Measured:
    """Tables, and what the like of them, counted on half of the blocks, cost on the other half."""

    code: CodebookCode
    bits: float  # per token; uniform tables cost log2 V
    conditioned: int  # positions whose tables depend on the token before


def classes_of(codebook: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codebook (V, D) -> a class below CLASSES of each vector: on which sides of a few planes it lies, those through the mean
    and across the first principal directions, which split the vectors best."""
    codes = codebook / np.linalg.norm(codebook.astype(np.float64), axis=1, keepdims=True)  # as the network uses them
    centred = codes - codes.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    sides = centred @ directions[: CLASSES.bit_length() - 1].T > 0
    return (sides * 2 ** np.arange(sides.shape[1])).sum(1).astype(np.uint8)


def measure_code(code: CodebookCode, indices: NDArray[np.int32], codebook: NDArray[np.float32]) -> Measured:
    """Indices (blocks, N) of photos and the codebook (V, D) -> the code with tables under which photos like these cost least.

    Half of the blocks decide how far the counts of the other half are to be trusted, and at which positions the token before
    is worth a look; then all are counted. Raises ImageError for fewer than FEWEST blocks."""
    if len(indices) < FEWEST:
        msg = f"tables cannot be measured on {len(indices)} blocks: {FEWEST} or more are needed, thousands are better"
        raise ImageError(msg)
    classes = classes_of(codebook)
    values = len(codebook)
    counted, held = indices[::2], indices[1::2]
    everywhere = np.bincount(counted.ravel(), minlength=values) + np.float64(0.5)
    base = everywhere / everywhere.sum()
    trust = _best([_bits(_blend(_counts(counted, values), base, worth), held) for worth in TRUST])
    rows = _blend(_counts(counted, values), base, TRUST[trust])
    plain = _bits(rows, held)
    after = [_conditioned_bits(counted, held, rows, classes, worth) for worth in TRUST]
    deeper = _best(after)
    pays = after[deeper] < plain - GAIN
    bits = float(np.where(pays, after[deeper], plain).mean())

    everywhere = np.bincount(indices.ravel(), minlength=values) + np.float64(0.5)
    rows = _blend(_counts(indices, values), everywhere / everywhere.sum(), TRUST[trust])
    tables, table_of = list(rows), np.repeat(np.arange(len(rows))[:, None], CLASSES, 1)
    for position in np.flatnonzero(pays).tolist():
        table_of[position] = len(tables) + np.arange(CLASSES)
        tables += list(_blend(_after(indices, position, classes, values), rows[position], TRUST[deeper]))
    if not pays.any():
        table_of, classes = table_of[:, :1], np.zeros_like(classes)
    tables_of_code = frequencies_of(np.array(tables))
    measured = replace(code, tables=tables_of_code, table_of=table_of.astype(np.int32), classes=classes)
    return Measured(measured, bits, int(pays.sum()))


def _best(bits: list[NDArray[np.float64]]) -> int:
    return int(np.argmin([part.mean() for part in bits]))


def _counts(indices: NDArray[np.int32], values: int) -> NDArray[np.float64]:
    """(blocks, N) -> (N, V) how often each index stands at each position."""
    places = np.arange(indices.shape[1]) * values + indices
    return np.bincount(places.ravel(), minlength=indices.shape[1] * values).reshape(-1, values).astype(np.float64)


def _after(indices: NDArray[np.int32], position: int, classes: NDArray[np.uint8], values: int) -> NDArray[np.float64]:
    """(classes, V) how often each index stands at a position after a token of each class."""
    places = classes[indices[:, position - 1]].astype(np.int64) * values + indices[:, position]
    return np.bincount(places, minlength=CLASSES * values).reshape(-1, values).astype(np.float64)


def _blend(counts: NDArray[np.float64], coarser: NDArray[np.float64], worth: float) -> NDArray[np.float64]:
    """Probabilities (tables, V): the counts, and the coarser table as if it had been counted `worth` times."""
    return (counts + worth * coarser) / (counts.sum(1, keepdims=True) + worth)


def _bits(rows: NDArray[np.float64], held: NDArray[np.int32]) -> NDArray[np.float64]:
    """(N,) mean cost of the held indices (blocks, N) at each position."""
    return -np.log2(rows[np.arange(held.shape[1]), held]).mean(0)


def _conditioned_bits(
    counted: NDArray[np.int32], held: NDArray[np.int32], rows: NDArray[np.float64], classes: NDArray[np.uint8], worth: float
) -> NDArray[np.float64]:
    """(N,) mean cost of the held indices at each position by tables that depend on the token before; no token is before the
    first."""
    bits = np.full(len(rows), np.inf)
    for position in range(1, len(rows)):
        tables = _blend(_after(counted, position, classes, rows.shape[1]), rows[position], worth)
        bits[position] = -np.log2(tables[classes[held[:, position - 1]], held[:, position]]).mean()
    bits[0] = _bits(rows, held)[0]
    return bits
