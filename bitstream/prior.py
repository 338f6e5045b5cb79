"""The prior in integers: from decoded digits alone, how likely each value of the next digits is. FORMAT.md, section 5.

Integer networks make decoding the same on every machine (Balle et al., ICLR 2019). A layer is (W x + b) >> shift with 12-bit
weights; the last one picks, for each digit, one of a few static frequency tables of its level. Products are computed in
float64, where integers below 2^53 are exact in whatever order a BLAS adds them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitstream.errors import ModelError
from bitstream.layout import Layout, Level

LOOK = 3  # levels whose digits a prior reads
PRECISION = 24  # bits of a frequency: the tables of a digit sum to 2^24
COST_UNIT = 256  # expected costs, by which tokens are ordered, are in 1/256 bit
ACTIVATION_MAX = 4095
STRIP = 1 << 15  # tokens that the network looks at in one go, to bound memory


@dataclass(frozen=True)
class IntegerLayer:
    """x -> (weight x + bias) >> shift. `weight` is (out, in, k, k) with k 1 or 3, `bias` (out,)."""

    weight: NDArray[np.int16]
    bias: NDArray[np.int64]
    shift: int


@dataclass(frozen=True)
class LevelPrior:
    """The prior of one level."""

    layers: tuple[IntegerLayer, ...]  # 3x3, then 1x1 convolutions
    frequencies: NDArray[np.int32]  # (classes, 2 limit + 1), of digits -limit..limit; each row sums to 2^24
    costs: NDArray[np.int32]  # (classes,) expected cost of a digit, 1/256 bit


@dataclass(frozen=True)
class Prior:
    """The priors of all levels, and with them the meaning of a token stream."""

    levels: tuple[Level, ...]
    priors: tuple[LevelPrior, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.priors):
            msg = f"{len(self.levels)} levels but {len(self.priors)} priors"
            raise ModelError(msg)
        for index, (level, prior) in enumerate(zip(self.levels, self.priors, strict=True)):
            _check(index, level, prior)

    def context(self, layout: Layout, index: int, digits: list[NDArray[np.int8]]) -> NDArray[np.int8]:
        """What the prior of a level reads: absolute digits (K, n, m) of up to three levels before it, repeated to its grid.

        `digits` are those of all levels before, (D, n, m) each."""
        rows, columns = layout.grids[index]
        if index == 0:
            return np.zeros((1, rows, columns), np.int8)
        seen = []
        for other in range(max(0, index - LOOK), index):
            span = self.levels[index].side // self.levels[other].side
            fine = np.abs(digits[other]).repeat(span, 1).repeat(span, 2)
            seen.append(fine[:, :rows, :columns])
        return np.concatenate(seen)

    def classes(self, index: int, context: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Absolute digits (K, n, m) -> class of each digit of the level (D, n, m)."""
        prior = self.priors[index]
        _, rows, columns = context.shape
        padded = np.pad(context, ((0, 0), (1, 1), (1, 1)))
        out = np.empty((self.levels[index].digits, rows, columns), np.uint8)
        height = max(1, STRIP // columns)
        for top in range(0, rows, height):
            strip = padded[:, top : top + height + 2].astype(np.float64)
            out[:, top : top + height] = _network(prior, strip)
        return out


def _network(prior: LevelPrior, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, n + 2, m + 2) padded input -> (D, n, m) classes."""
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    last = len(prior.layers) - 1
    for depth, layer in enumerate(prior.layers):
        weight = layer.weight.astype(np.float64)
        if depth == 0:  # 3x3: one product a tap
            taps = (
                weight[:, :, dy, dx] @ x[:, dy : dy + rows, dx : dx + columns].reshape(len(x), -1)
                for dy in range(3)
                for dx in range(3)
            )
            total = sum(taps, start=layer.bias[:, None].astype(np.float64))
        else:
            total = weight[:, :, 0, 0] @ x + layer.bias[:, None]
        top = len(prior.costs) - 1 if depth == last else ACTIVATION_MAX
        x = np.clip(np.floor(total * 2.0**-layer.shift), 0, top)
    return x.reshape(-1, rows, columns)


def _check(index: int, level: Level, prior: LevelPrior) -> None:
    classes, symbols = prior.frequencies.shape
    last = prior.layers[-1]
    problem = None
    if symbols != 2 * level.limit + 1 or prior.costs.shape != (classes,) or not 0 < classes <= 256:
        problem = f"tables of {classes} x {symbols}, costs of {prior.costs.shape}"
    elif prior.frequencies.min() < 1 or (prior.frequencies.sum(1, dtype=np.int64) != 1 << PRECISION).any():
        problem = "frequencies that are not positive with a sum of 2^24"
    elif last.weight.shape[0] != level.digits:
        problem = f"{last.weight.shape[0]} outputs for {level.digits} digits"
    elif any(layer.weight.shape[0] != len(layer.bias) or not 0 <= layer.shift < 53 for layer in prior.layers):
        problem = "a layer whose bias or shift does not fit"
    if problem:
        msg = f"the prior of level {index} has {problem}"
        raise ModelError(msg)


def fingerprint(prior: Prior, others: list[bytes]) -> bytes:
    """32 bytes that identify the meaning of tokens: SHA-256 over levels, integer prior and tables, and `others`, the bytes of
    what else fixes it (the predictions). The stream id in a file is how these begin."""
    digest = hashlib.sha256()
    for level, part in zip(prior.levels, prior.priors, strict=True):
        digest.update(np.array([level.side, level.digits, level.limit], ">i4").tobytes())
        for layer in part.layers:
            digest.update(np.array([*layer.weight.shape, layer.shift], ">i4").tobytes())
            digest.update(layer.weight.astype(">i2").tobytes() + layer.bias.astype(">i8").tobytes())
        digest.update(part.frequencies.astype(">i4").tobytes() + part.costs.astype(">i4").tobytes())
    for blob in others:
        digest.update(len(blob).to_bytes(8, "big") + blob)
    return digest.digest()
