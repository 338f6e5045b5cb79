"""The prior in integers: from decoded digits alone, how likely each value of the next digits is. FORMAT.md, section 5.

Integer networks make decoding the same on every machine (Balle et al., ICLR 2019). A layer is (W x + b) >> shift with 12-bit
weights; the last one picks, for each digit, one of a few static frequency tables of its level. Products are computed in
floating point, where whole numbers are exact in whatever order a BLAS adds them: in float32 where no sum can reach 2^24, and
otherwise in float64, up to 2^53.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISION = 24  # bits of a frequency: the tables of a digit sum to 2^24
COST_UNIT = 256  # expected costs, by which tokens are ordered, are in 1/256 bit
ACTIVATION_MAX = 4095
STRIP = 1 << 15  # tokens that the network looks at in one go, to bound memory
PIECE = 1024  # tokens that a layer looks at in one go: what is summed stays in the processor's cache


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

    def on(self, x: NDArray[Any], pitch: int, parities: Sequence[int], most: int) -> NDArray[Any]:
        """Colours of a line (2, in, places), none negative -> (2, out, places), clipped to 0..`most`, where a place is among
        the `parities`, and 0 elsewhere. `pitch` is the odd number of places from one row of the grid to the next.

        Entries of x are whole numbers. Products and sums of them are exact in whatever order they are taken."""
        outputs, _, size, _ = self.weight.shape
        largest = np.abs(self.weight).sum((1, 2, 3), dtype=np.int64).max() * float(x.max()) + np.abs(self.bias).max()
        exact: type[np.floating] = np.float32 if largest < 1 << 24 else np.float64
        weight = np.ascontiguousarray(self.weight.transpose(2, 3, 0, 1), exact)
        x = x.astype(exact, copy=False)
        out = np.zeros((2, outputs, x.shape[2]), exact)
        edge = (pitch + 1) // 2 if size > 1 else 0
        for parity in parities:
            for start in range(edge, x.shape[2] - edge, PIECE):
                end = min(start + PIECE, x.shape[2] - edge)
                total = np.repeat(self.bias[:, None].astype(exact), end - start, 1)
                product = np.empty_like(total)
                for dy, dx in np.ndindex(size, size):
                    away = parity + (dy - size // 2) * pitch + dx - size // 2
                    total += np.matmul(weight[dy, dx], x[away % 2, :, start + away // 2 : end + away // 2], out=product)
                np.clip(np.floor(total * exact(2.0**-self.shift)), 0, most, out=out[parity, :, start:end])
        return out


@dataclass(frozen=True)
class LevelEntropyModel:
    """The prior of one level."""

    layers: tuple[IntegerLayer, ...]  # convolutions of 3x3 or 1x1
    frequencies: NDArray[np.int32]  # (classes, 2 limit + 1), of digits -limit..limit; each row sums to 2^24
    costs: NDArray[np.int32]  # (classes,) expected cost of a digit, 1/256 bit

    def classes(self, context: NDArray[np.int8], parities: Sequence[int] = (0, 1)) -> NDArray[np.uint8]:
        """Absolute digits (K, n, m) -> class of each digit of the level (D, n, m), for tokens whose row and column add up to a
        number of the `parities`: 0 for even and 1 for odd ones. Others are 0."""
        _, rows, columns = context.shape
        halo = sum(layer.weight.shape[2] // 2 for layer in self.layers)
        halo += halo % 2  # strips begin with an even row
        out = np.empty((len(self.layers[-1].bias), rows, columns), np.uint8)
        height = max(2, STRIP // columns // 2 * 2)
        for top in range(0, rows, height):
            first, end = max(0, top - halo), min(rows, top + height + halo)
            strip = self._network(context[:, first:end], parities)
            out[:, top : top + height] = strip[:, top - first : top - first + height]
        return out

    def _network(self, context: NDArray[np.int8], parities: Sequence[int]) -> NDArray[Any]:
        """(K, n, m) absolute digits -> (D, n, m) classes; outside the grid all is zero, in each layer.

        The grid is laid out as one line, row after row with zeros between, before and after them. A row takes an odd number of
        places, so that the two colours of a checkerboard alternate all along the line. Each colour is kept by itself: what
        one tap of a 3x3 kernel needs for one colour is then a slice of a colour, which BLAS reads where it lies."""
        inputs, rows, columns = context.shape
        pitch = columns + 1 + columns % 2
        margin = pitch + 1

        def grid(line: NDArray[Any]) -> NDArray[Any]:
            return line[:, margin : margin + rows * pitch].reshape(-1, rows, pitch)[:, :, :columns]

        line = np.zeros((inputs + 1, margin + rows * pitch + rows % 2 + margin), np.int8)
        grid(line)[:inputs], grid(line)[inputs] = context, 1
        colours = line.reshape(len(line), -1, 2).transpose(2, 0, 1)
        x, inside = np.ascontiguousarray(colours[:, :inputs], np.float32), colours[:, inputs:]
        for depth, layer in enumerate(self.layers):
            looked_at = any(later.weight.shape[2] > 1 for later in self.layers[depth + 1 :])
            most = ACTIVATION_MAX if depth < len(self.layers) - 1 else len(self.costs) - 1
            x = layer.on(x, pitch, (0, 1) if looked_at else parities, most)
            x *= inside
        return grid(x.transpose(1, 2, 0).reshape(x.shape[1], -1))

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
