"""Codes of digit tokens made from numbers, so that no model file is needed."""

from __future__ import annotations

import numpy as np

from bitstream.digit_tokens import GRID_CONTEXTS, DigitCode, DigitLayout, symbol_levels
from bitstream.entropy_model import frequencies_of


def made_up_code(levels: tuple[int, ...], cell: int | None = None, block_tokens: int = 6, chained: bool = True) -> DigitCode:
    """Tables that depend on the position or pass, on one or three neighbours and, if `chained`, on the symbol before; the same
    in every run."""
    symbols = symbol_levels(levels)
    count, values = len(symbols), max(symbols)
    contexts = GRID_CONTEXTS if cell else block_tokens
    neighbours = 3 if cell else 1
    numbers = np.arange(neighbours * count * values).reshape(neighbours, count, values)
    classes = (numbers * 7919 // 13 % 3).astype(np.int32)
    picks = np.zeros((contexts, count, 3), np.int32)
    picks[:, :, 0] = np.arange(contexts * count).reshape(contexts, count) % 5
    picks[1:, :, 1] = 1 + np.arange(count) % 2
    picks[::2, 1:, 2] = chained
    tables = 5 + 2 * 2 * neighbours + max((0, *symbols[:-1]))
    at = np.arange(tables * values).reshape(tables, values)
    ranks = np.arange(levels[0] if symbols != levels else 0)
    ranks = np.array([rank * 11 % len(ranks) for rank in ranks], np.int32)
    return DigitCode(levels, frequencies_of(1.0 / (1 + at * 7919 % 31)), picks, classes, ranks, cell)


def random_digits(code: DigitCode, layout: DigitLayout, seed: int) -> np.ndarray:
    """Digits (D, *positions) of all tokens."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, count, layout.shape) for count in code.levels]).astype(np.int32)
