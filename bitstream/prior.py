"""The prior in integers: from decoded digits alone, how likely each value of the next digits is. FORMAT.md, section 5.

Integer networks make decoding the same on every machine (Balle et al., ICLR 2019). A layer is (W x + b) >> shift with 12-bit
weights; the last one picks, for each digit, one of a few static frequency tables of its level. Products are computed in
float64, where integers below 2^53 are exact in whatever order a BLAS adds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bitstream.errors import ModelError
from bitstream.layout import ALL, EVEN, ODD, Layout, Level

LOOK = 3  # grids before its own whose digits a prior reads
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

    layers: tuple[IntegerLayer, ...]  # convolutions of 3x3 or 1x1
    frequencies: NDArray[np.int32]  # (classes, 2 limit + 1), of digits -limit..limit; each row sums to 2^24
    costs: NDArray[np.int32]  # (classes,) expected cost of a digit, 1/256 bit


def grids_before(levels: Sequence[Level], index: int) -> list[tuple[int, ...]]:
    """The grids whose digits the prior of a level reads, coarse to fine, as the levels that each is made of: up to `LOOK`
    before its own, and where it is the odd half of a checkerboard, the even half."""
    own = (index - 1,) if levels[index].part == ODD else ()
    grids: list[tuple[int, ...]] = []
    for other in range(index - len(own)):
        if levels[other].part == ODD:
            grids[-1] += (other,)
        else:
            grids.append((other,))
    return grids[-LOOK:] + ([own] if own else [])


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
            before = self.levels[index - 1] if index else None
            if level.part == ODD and before != replace(level, part=EVEN):
                msg = f"level {index} is the odd half of a grid of which level {index - 1} is not the even half"
                raise ModelError(msg)
            _check(index, level, prior)

    def context(self, layout: Layout, index: int, digits: list[NDArray[np.int8]]) -> NDArray[np.int8]:
        """What the prior of a level reads: absolute digits (K, n, m) of the grids before it, repeated to its own.

        `digits` are those of all levels before, (D, n, m) each. The two halves of a checkerboard make up one grid."""
        rows, columns = layout.grids[index]
        if index == 0:
            return np.zeros((1, rows, columns), np.int8)
        seen = []
        for grid in grids_before(self.levels, index):
            span = self.levels[index].side // self.levels[grid[0]].side
            whole = np.sum([np.abs(digits[other]) for other in grid], 0, dtype=np.int8)
            seen.append(whole.repeat(span, 1).repeat(span, 2)[:, :rows, :columns])
        return np.concatenate(seen)

    def classes(self, index: int, context: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Absolute digits (K, n, m) -> class of each digit of the level (D, n, m)."""
        prior = self.priors[index]
        _, rows, columns = context.shape
        halo = sum(layer.weight.shape[2] // 2 for layer in prior.layers)
        out = np.empty((self.levels[index].digits, rows, columns), np.uint8)
        height = max(1, STRIP // columns)
        for top in range(0, rows, height):
            first, end = max(0, top - halo), min(rows, top + height + halo)
            strip = _network(prior, context[:, first:end].astype(np.float64))
            out[:, top : top + height] = strip[:, top - first : top - first + height]
        return out


def _network(prior: LevelPrior, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K, n, m) absolute digits -> (D, n, m) classes; outside the grid all is zero, in each layer."""
    for depth, layer in enumerate(prior.layers):
        _, rows, columns = x.shape
        weight = layer.weight.astype(np.float64)
        size = weight.shape[2]
        padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
        total = np.repeat(layer.bias[:, None].astype(np.float64), rows * columns, 1)
        for dy in range(size):
            for dx in range(size):
                total += weight[:, :, dy, dx] @ padded[:, dy : dy + rows, dx : dx + columns].reshape(len(x), -1)
        top = len(prior.costs) - 1 if depth == len(prior.layers) - 1 else ACTIVATION_MAX
        x = np.clip(np.floor(total * 2.0**-layer.shift), 0, top).reshape(-1, rows, columns)
    return x


def _check(index: int, level: Level, prior: LevelPrior) -> None:
    classes, symbols = prior.frequencies.shape
    last = prior.layers[-1]
    problem = None
    if level.part not in (ALL, EVEN, ODD):
        problem = f"part {level.part} of its grid"
    elif symbols != 2 * level.limit + 1 or prior.costs.shape != (classes,) or not 0 < classes <= 256:
        problem = f"tables of {classes} x {symbols}, costs of {prior.costs.shape}"
    elif prior.frequencies.min() < 1 or (prior.frequencies.sum(1, dtype=np.int64) != 1 << PRECISION).any():
        problem = "frequencies that are not positive with a sum of 2^24"
    elif last.weight.shape[0] != level.digits:
        problem = f"{last.weight.shape[0]} outputs for {level.digits} digits"
    elif any(layer.weight.shape[2:] not in ((1, 1), (3, 3)) for layer in prior.layers):
        problem = f"kernels of {', '.join(str(layer.weight.shape[2:]) for layer in prior.layers)}"
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
        part_of_grid = [level.part] if level.part else []  # not there for a whole grid
        digest.update(np.array([level.side, level.digits, level.limit, *part_of_grid], ">i4").tobytes())
        for layer in part.layers:
            digest.update(np.array([*layer.weight.shape, layer.shift], ">i4").tobytes())
            digest.update(layer.weight.astype(">i2").tobytes() + layer.bias.astype(">i8").tobytes())
        digest.update(part.frequencies.astype(">i4").tobytes() + part.costs.astype(">i4").tobytes())
    for blob in others:
        digest.update(len(blob).to_bytes(8, "big") + blob)
    return digest.digest()
