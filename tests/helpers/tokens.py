"""Entropy models and tokens made from numbers, so that no model file is needed."""

from __future__ import annotations

import numpy as np

from bitstream.entropy_model import IntegerLayer, LevelEntropyModel
from bitstream.pyramid_tokens import Level, PyramidCode, PyramidLayout, context_grids


def random_digits(code: PyramidCode, layout: PyramidLayout, seed: int) -> tuple[np.ndarray, ...]:
    """Digits of all tokens, many of them zero, now and then at the limit."""
    rng = np.random.default_rng(seed)
    digits = []
    for level, grid in zip(code.levels, layout.grids, strict=True):
        drawn = np.round(rng.laplace(0, 0.6, (level.digits, *grid))) + (rng.random((level.digits, *grid)) < 0.01) * level.limit
        digits.append(drawn.clip(-level.limit, level.limit).astype(np.int8) * level.mask(*grid))
    return tuple(digits)


def made_up_entropy_model(levels: tuple[Level, ...], index: int, kernels: tuple[int, ...]) -> LevelEntropyModel:
    """Integer layers with the given kernel sizes, and five tables, for level `index`; the same in every run."""

    def numbers(*shape: int, low: int, high: int, salt: int) -> np.ndarray:
        at = np.arange(int(np.prod(shape)), dtype=np.int64)
        return (low + (at * 7919 + salt * 104729 + index * 1299709) * 31 % 65537 % (high - low + 1)).reshape(shape)

    level, width, classes = levels[index], 6, 5
    inputs = max(1, sum(levels[grid[0]].digits for grid in context_grids(levels, index)))
    first, second, last = kernels
    weights = (
        numbers(width, inputs, first, first, low=-900, high=1200, salt=1),
        numbers(width, width, second, second, low=-700, high=900, salt=3),
        numbers(level.digits, width, last, last, low=-60, high=80, salt=5),
    )
    biases = (
        numbers(width, low=-500, high=4000, salt=2),
        numbers(width, low=-500, high=4000, salt=4),
        numbers(level.digits, low=0, high=9000, salt=6),
    )
    shifts = (2, 9, 12)
    layers = tuple(IntegerLayer(w.astype(np.int16), b, s) for w, b, s in zip(weights, biases, shifts, strict=True))
    from codec.pyramid.integer_model import tables_from  # torch is not there in every run

    spread = np.arange(classes)[:, None] + 0.7
    tables, costs = tables_from(1 / (1 + np.square(np.arange(-level.limit, level.limit + 1)) / spread))
    return LevelEntropyModel(layers, tables, costs)
