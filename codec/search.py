"""Targets of quality: the smallest file whose image is close enough to the original, found by decoding.

Quality rises with length, but not at every single token, so what is returned is defined by the search: a length that reaches
the target, decoded and measured, such that one at most 0.5 % smaller, decoded too, does not. Where even all tokens do not reach
it, it counts as out of reach, and all tokens are the best there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLOSE = 1.005  # a longer and a shorter length nearer than this need no further look
CAUTION = 0.02  # how far into the bracket a guess is kept


@dataclass(frozen=True)
class SearchResult:
    """How a search ended."""

    length: int
    reached: bool
    value: float  # what was measured there


def shortest(
    measure: Callable[[int], float], wanted: float, bits: NDArray[np.float64], least: int = 1, *, higher_is_better: bool
) -> SearchResult:
    """The shortest length, `least` or more, whose measure is `wanted` or better, as the module says. `bits` (tokens,) is what
    each length from 1 on costs in all."""
    values: dict[int, float] = {}

    def margin(length: int) -> float:
        values[length] = measure(length)
        return values[length] - wanted if higher_is_better else wanted - values[length]

    low, high = least, len(bits)
    above = margin(high)
    if above < 0 or high == low:
        return SearchResult(high, above >= 0, values[high])
    below = margin(low)
    if below >= 0:
        return SearchResult(low, True, values[low])
    side = 0  # that the last guess fell on
    while high - low > 1 and bits[high - 1] > CLOSE * bits[low - 1]:
        # The Illinois method on the logarithm of bits, in which measures are nearly straight: 7 decodings where halving takes
        # 11. An infinite PSNR says nothing of where to look.
        share = below / (below - above) if math.isfinite(above) else 0.5
        share = min(1 - CAUTION, max(CAUTION, share))
        guess = bits[low - 1] ** (1 - share) * bits[high - 1] ** share
        middle = min(high - 1, max(low + 1, int(np.searchsorted(bits, guess)) + 1))
        value = margin(middle)
        if value >= 0:
            high, above, below, side = middle, value, below / (2 if side == 1 else 1), 1
        else:
            low, below, above, side = middle, value, above / (2 if side == -1 else 1), -1
    return SearchResult(high, True, values[high])
