"""Reproducible noise: normally distributed numbers for the latents of an image, from integers alone.

Generators of random numbers differ between devices and releases. Here each number depends only on a seed and on its position
in the image: an integer hash picks an entry in a table of the normal distribution's quantiles. So a file decodes to the same
image everywhere, up to the rounding of the network, and blocks that overlap start from the same noise where they do.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

TABLE_BITS = 16
UNIT = 1 << 12  # quantiles are multiples of 1 / 4096, so that the last digits of a logarithm do not matter
# Constants of SplitMix64 (Steele, Lea and Flood, 2014)
INCREMENT = 0x9E3779B97F4A7C15
MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


def normal_noise(seed: int, channels: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Noise (channels, rows, columns) of mean 0 and deviation 1 at these rows and columns of an image's latents."""
    state = np.array([seed], np.uint64)
    for index in (np.arange(channels)[:, None, None], rows[:, None], columns):
        state = _mix(state + index.astype(np.uint64) * np.uint64(INCREMENT))
    return normal_quantiles()[state >> np.uint64(64 - TABLE_BITS)]


@cache
def normal_quantiles() -> NDArray[np.float32]:
    """The quantiles (2^16,) of the normal distribution at (i + 1/2) / 2^16."""
    half = 1 << (TABLE_BITS - 1)
    inverse = NormalDist().inv_cdf
    positive = np.array([round(inverse((half + index + 0.5) / (2 * half)) * UNIT) for index in range(half)])
    return (np.concatenate([-positive[::-1], positive]) / UNIT).astype(np.float32)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64, modulo 2^64."""
    state = state + np.uint64(INCREMENT)
    for shift, multiplier in MULTIPLIERS:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(multiplier)
    return state ^ (state >> np.uint64(LAST_SHIFT))
