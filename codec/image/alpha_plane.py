"""Alpha planes with less in them: fewer levels, or a mean for each square of pixels. FORMAT.md, section 2. No torch.

As WebP does, a plane loses levels before it is coded without loss: what is clear or opaque stays so. Soft planes also shrink.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

LOSSLESS = 100
DEFAULT_QUALITY = 75
SHRINKS = (0, 1, 2, 3)  # powers of two that both sides are divided by
LEVELS = (4, 8, 16, 32, 64, 128)
STRIP = 256  # rows worked on at once, to bound memory


def error_of(quality: int) -> float:
    """The root mean square error, of 255, that a quality below 100 allows where a plane is changed or neither clear nor opaque:
    2.5 at 75, 10 at 50, 40 at 0."""
    return (LOSSLESS - quality) ** 2 / 250


def smaller(alpha: NDArray[np.uint8], quality: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Planes that stand for alpha (H, W) within the error of a quality, each with its shrink: (shrink, (n, m)). At most one per
    shrink, of the fewest levels."""
    for shrink in SHRINKS:
        means = shrunk(alpha, shrink)
        for levels in LEVELS:
            steps = (means.astype(np.uint16) * (levels - 1) + 127) // 255  # 0 and 255 stay
            plane = (steps * 255 // (levels - 1)).astype(np.uint8)
            if _error(alpha, enlarged(plane, shrink, *alpha.shape)) <= error_of(quality):
                yield shrink, plane
                break


def _error(alpha: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    seen = (alpha != other) | ((alpha > 0) & (alpha < 255))
    difference = alpha[seen].astype(np.float32) - other[seen]
    return float(np.sqrt(np.square(difference).mean())) if difference.size else 0.0


def shrunk(alpha: NDArray[np.uint8], shrink: int) -> NDArray[np.uint8]:
    """(H, W) -> (ceil(H / 2^shrink), ceil(W / 2^shrink)), the mean of each square; the edges go on as they end."""
    side = 1 << shrink
    padded = np.pad(alpha, [(0, -length % side) for length in alpha.shape], "edge")
    sums = np.zeros((padded.shape[0] // side, padded.shape[1] // side), np.uint16)
    for row in range(side):
        for column in range(side):
            sums += padded[row::side, column::side]
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)


def enlarged(plane: NDArray[np.uint8], shrink: int, height: int, width: int) -> NDArray[np.uint8]:
    """(n, m) -> (height, width): interpolated linearly between the centres of squares, in integers."""
    if not shrink:
        return plane
    double = 2 << shrink
    above, below, down = _places(height, shrink, plane.shape[0])
    left, right, across = _places(width, shrink, plane.shape[1])
    alpha = np.empty((height, width), np.uint8)
    for top in range(0, height, STRIP):
        part = slice(top, top + STRIP)
        weight = down[part, None]
        rows = plane[above[part]].astype(np.uint32) * (double - weight) + plane[below[part]].astype(np.uint32) * weight
        total = rows[:, left] * (double - across) + rows[:, right] * across
        alpha[part] = (total + double * double // 2) // (double * double)
    return alpha


def _places(size: int, shrink: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint32]]:
    """For each of `size` pixels: the squares, of `count`, whose centres lie before and after its own, and the weight of the
    second out of 2^(shrink + 1)."""
    first, weight = np.divmod(2 * np.arange(size) + 1 - (1 << shrink), 2 << shrink)
    return first.clip(0, count - 1), (first + 1).clip(0, count - 1), weight.astype(np.uint32)
