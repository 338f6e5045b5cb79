"""The integer entropy model: picks the frequency table of each digit from the digits decoded before it. FORMAT.md, section 5.

Integer networks make decoding the same on every machine (Balle et al., ICLR 2019). A layer is (W x + b) >> shift with 12-bit
weights. The last layer picks one of the static tables of the level for each digit. Products are computed in floating point,
where sums of integers are exact in any order: in float32 if no sum can reach 2^24, otherwise in float64, up to 2^53.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISION = 24  # bits of a frequency: each table sums to 2^24
COST_UNIT = 256  # units per bit of the expected costs, which order the tokens
ACTIVATION_MAX = 4095
STRIP = 1 << 15  # tokens that the network computes in one call, to bound memory
PIECE = 1024  # tokens that a layer computes in one call, so that its sums stay in the processor's cache


def frequencies_of(weights: NDArray[np.float64], min_frequency: int = 1) -> NDArray[np.int32]:
    """Counts or probabilities (tables, values) -> frequencies of at least `min_frequency`; each row sums to 2^24."""
    total = 1 << PRECISION
    share = weights / weights.sum(1, keepdims=True) * (total - min_frequency * weights.shape[1])
    frequencies = np.floor(share).astype(np.int32) + min_frequency
    frequencies[np.arange(len(weights)), frequencies.argmax(1)] += total - frequencies.sum(1)
    return frequencies


@dataclass(frozen=True)
class IntegerLayer:
    """x -> (weight x + bias) >> shift. `weight` is (out, in, k, k) with k 1 or 3, `bias` (out,)."""

    weight: NDArray[np.int16]
    bias: NDArray[np.int64]
    shift: int

    def apply(self, x: NDArray[Any], stride: int, parities: Sequence[int], max_value: int) -> NDArray[Any]:
        """Non-negative integers (2, in, positions) -> (2, out, positions), clipped to 0..`max_value` for the `parities`, and 0
        for others. The first axis is the parity of a position; `LevelEntropyModel._network` has the arrangement. `stride` is
        the odd number of positions from one row of the grid to the next."""
        outputs, _, size, _ = self.weight.shape
        max_sum = np.abs(self.weight).sum((1, 2, 3), dtype=np.int64).max() * float(x.max()) + np.abs(self.bias).max()
        exact: type[np.floating] = np.float32 if max_sum < 1 << 24 else np.float64
        weight = np.ascontiguousarray(self.weight.transpose(2, 3, 0, 1), exact)
        x = x.astype(exact, copy=False)
        out = np.zeros((2, outputs, x.shape[2]), exact)
        edge = (stride + 1) // 2 if size > 1 else 0
        for parity in parities:
            for start in range(edge, x.shape[2] - edge, PIECE):
                end = min(start + PIECE, x.shape[2] - edge)
                total = np.repeat(self.bias[:, None].astype(exact), end - start, 1)
                product = np.empty_like(total)
                for dy, dx in np.ndindex(size, size):
                    offset = parity + (dy - size // 2) * stride + dx - size // 2
                    tap = x[offset % 2, :, start + offset // 2 : end + offset // 2]
                    total += np.matmul(weight[dy, dx], tap, out=product)
                np.clip(np.floor(total * exact(2.0**-self.shift)), 0, max_value, out=out[parity, :, start:end])
        return out


@dataclass(frozen=True)
class LevelEntropyModel:
    """The entropy model of one level."""

    layers: tuple[IntegerLayer, ...]  # convolutions of 3x3 or 1x1
    frequencies: NDArray[np.int32]  # (tables, 2 limit + 1), of digits -limit..limit; each row sums to 2^24
    costs: NDArray[np.int32]  # (tables,) expected cost of a digit, 1/256 bit

    @cached_property
    def coder_frequencies(self) -> NDArray[np.float64]:
        """The frequencies less one, the input of `bitstream.range_coder`."""
        return (self.frequencies - 1).astype(np.float64)

    def contexts(self, planes: NDArray[np.int8], parities: Sequence[int] = (0, 1)) -> NDArray[np.uint8]:
        """Absolute digits (K, n, m) -> table index of each digit of the level (D, n, m), for tokens whose sum of row and column
        has one of the `parities`, 0 for even and 1 for odd. Others are 0."""
        _, rows, columns = planes.shape
        halo = sum(layer.weight.shape[2] // 2 for layer in self.layers)
        halo += halo % 2  # strips begin with an even row
        out = np.empty((len(self.layers[-1].bias), rows, columns), np.uint8)
        height = max(2, STRIP // columns // 2 * 2)
        for top in range(0, rows, height):
            first, end = max(0, top - halo), min(rows, top + height + halo)
            strip = self._network(planes[:, first:end], parities)
            out[:, top : top + height] = strip[:, top - first : top - first + height]
        return out

    def _network(self, planes: NDArray[np.int8], parities: Sequence[int]) -> NDArray[Any]:
        """`contexts` of one strip. Outside the grid all values are zero, in each layer.

        The grid is one line, row after row, with zeros between, before and after the rows. A row takes an odd number of
        positions, so that the colours of the checkerboard alternate along the line, and each colour has its own array. The
        input of one tap of a 3x3 kernel for one colour is then a slice of one colour, which BLAS reads without a copy."""
        inputs, rows, columns = planes.shape
        stride = columns + 1 + columns % 2
        margin = stride + 1

        def grid_of(line: NDArray[Any]) -> NDArray[Any]:
            return line[:, margin : margin + rows * stride].reshape(-1, rows, stride)[:, :, :columns]

        line = np.zeros((inputs + 1, margin + rows * stride + rows % 2 + margin), np.int8)
        grid_of(line)[:inputs], grid_of(line)[inputs] = planes, 1
        colours = line.reshape(len(line), -1, 2).transpose(2, 0, 1)
        x, inside = np.ascontiguousarray(colours[:, :inputs], np.float32), colours[:, inputs:]
        for depth, layer in enumerate(self.layers):
            has_neighbours = any(later.weight.shape[2] > 1 for later in self.layers[depth + 1 :])
            max_value = ACTIVATION_MAX if depth < len(self.layers) - 1 else len(self.costs) - 1
            x = layer.apply(x, stride, (0, 1) if has_neighbours else parities, max_value)
            x *= inside
        return grid_of(x.transpose(1, 2, 0).reshape(x.shape[1], -1))

    def problem(self, digits: int, limit: int) -> str | None:
        """The reason why the model does not fit a level of `digits` digits in -limit..limit; None if it fits."""
        tables, symbols = self.frequencies.shape
        if symbols != 2 * limit + 1 or self.costs.shape != (tables,) or not 0 < tables <= 256:
            return f"tables of {tables} x {symbols}, costs of {self.costs.shape}"
        if self.frequencies.min() < 1 or (self.frequencies.sum(1, dtype=np.int64) != 1 << PRECISION).any():
            return "frequencies that are not positive with a sum of 2^24"
        if self.layers[-1].weight.shape[0] != digits:
            return f"{self.layers[-1].weight.shape[0]} outputs for {digits} digits"
        if any(layer.weight.shape[2:] not in ((1, 1), (3, 3)) for layer in self.layers):
            return f"kernels of {', '.join(str(layer.weight.shape[2:]) for layer in self.layers)}"
        if any(layer.weight.shape[0] != len(layer.bias) or not 0 <= layer.shift < 53 for layer in self.layers):
            return "a layer whose bias or shift does not fit"
        return None
