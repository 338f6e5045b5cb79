"""The prior in integers: from decoded digits alone, how likely each value of the next digits is. FORMAT.md, section 5.

Integer networks make decoding the same on every machine (Balle et al., ICLR 2019). A layer is (W x + b) >> shift with 12-bit
weights; the last one picks, for each digit, one of a few static frequency tables of its level. Products are computed in
float64, where integers below 2^53 are exact in whatever order a BLAS adds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECISION = 24  # bits of a frequency: the tables of a digit sum to 2^24
COST_UNIT = 256  # expected costs, by which tokens are ordered, are in 1/256 bit
ACTIVATION_MAX = 4095
STRIP = 1 << 15  # tokens that the network looks at in one go, to bound memory


def frequencies_of(weights: NDArray[np.float64], least: int = 1) -> NDArray[np.int32]:
    """Counts or probabilities (tables, values) -> frequencies, none below `least`; each row sums to 2^24."""
    total = 1 << PRECISION
    share = weights / weights.sum(1, keepdims=True) * (total - least * weights.shape[1])
    frequencies = np.floor(share).astype(np.int32) + least
    frequencies[np.arange(len(weights)), frequencies.argmax(1)] += total - frequencies.sum(1)
    return frequencies


@dataclass(frozen=True)
class IntegerLayer:
    """x -> (weight x + bias) >> shift. `weight` is (out, in, k, k) with k 1 or 3, `bias` (out,)."""

    weight: NDArray[np.int16]
    bias: NDArray[np.int64]
    shift: int


@dataclass(frozen=True)
class LevelPrior:
    """The prior of one level."""

    layers: tuple[IntegerLayer, ...]  # convolutions of 3x3 or 1x1
    frequencies: NDArray[np.int32]  # (classes, 2 limit + 1), of digits -limit..limit; each row sums to 2^24
    costs: NDArray[np.int32]  # (classes,) expected cost of a digit, 1/256 bit

    def classes(self, context: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Absolute digits (K, n, m) -> class of each digit of the level (D, n, m)."""
        _, rows, columns = context.shape
        halo = sum(layer.weight.shape[2] // 2 for layer in self.layers)
        out = np.empty((len(self.layers[-1].bias), rows, columns), np.uint8)
        height = max(1, STRIP // columns)
        for top in range(0, rows, height):
            first, end = max(0, top - halo), min(rows, top + height + halo)
            strip = self._network(context[:, first:end].astype(np.float64))
            out[:, top : top + height] = strip[:, top - first : top - first + height]
        return out

    def _network(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K, n, m) absolute digits -> (D, n, m) classes; outside the grid all is zero, in each layer."""
        for depth, layer in enumerate(self.layers):
            _, rows, columns = x.shape
            weight = layer.weight.astype(np.float64)
            size = weight.shape[2]
            padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
            total = np.repeat(layer.bias[:, None].astype(np.float64), rows * columns, 1)
            for dy in range(size):
                for dx in range(size):
                    total += weight[:, :, dy, dx] @ padded[:, dy : dy + rows, dx : dx + columns].reshape(len(x), -1)
            top = len(self.costs) - 1 if depth == len(self.layers) - 1 else ACTIVATION_MAX
            x = np.clip(np.floor(total * 2.0**-layer.shift), 0, top).reshape(-1, rows, columns)
        return x

    def problem(self, digits: int, limit: int) -> str | None:
        """What is wrong with it for a level of so many digits in -limit..limit; None where it is sound."""
        classes, symbols = self.frequencies.shape
        if symbols != 2 * limit + 1 or self.costs.shape != (classes,) or not 0 < classes <= 256:
            return f"tables of {classes} x {symbols}, costs of {self.costs.shape}"
        if self.frequencies.min() < 1 or (self.frequencies.sum(1, dtype=np.int64) != 1 << PRECISION).any():
            return "frequencies that are not positive with a sum of 2^24"
        if self.layers[-1].weight.shape[0] != digits:
            return f"{self.layers[-1].weight.shape[0]} outputs for {digits} digits"
        if any(layer.weight.shape[2:] not in ((1, 1), (3, 3)) for layer in self.layers):
            return f"kernels of {', '.join(str(layer.weight.shape[2:]) for layer in self.layers)}"
        if any(layer.weight.shape[0] != len(layer.bias) or not 0 <= layer.shift < 53 for layer in self.layers):
            return "a layer whose bias or shift does not fit"
        return None
