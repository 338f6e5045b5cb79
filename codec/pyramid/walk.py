"""The walk over the levels of the pyramid, coarse to fine, that coding, decoding, refining and learning share.

    walk = Walk(network, latents)
    for index, level, predicted in walk.levels():
        ...  # what the digits of this level are, and which of its tokens are kept
        walk.add(digits, keep)
    walk.latents, walk.known

What differs between the four is only where the digits come from: from latents by rounding, with or without gradients, or from
a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.blocks import BLOCK_CELLS
from bitstream.prior import PRECISION
from bitstream.pyramid import PyramidCode, PyramidLayout
from codec.pyramid.network import Network, PyramidLevel


class Walk:
    """The latents of some pictures as they grow level by level; loops may end early."""

    def __init__(self, network: Network, count: int, rows: int, columns: int, device: torch.device) -> None:
        """For `count` canvases of rows x columns cells."""
        self._network = network
        self._latents = torch.zeros(count, network.config.channels, rows, columns, device=device)
        self._known = torch.zeros(count, 1, rows, columns, device=device)
        self._ended: list[tuple[Tensor, Tensor]] = []  # of pictures that are no longer walked, the last ones first

    def levels(self, going: Sequence[int] | None = None) -> Iterator[tuple[int, PyramidLevel, Tensor]]:
        """Each level with its index, and what is predicted of the latents (B, C, h, w) from all levels before.

        With `going`, only the first so many pictures go on to each level: those that have ended cost nothing."""
        for index, level in enumerate(self._network.levels):
            assert isinstance(level, PyramidLevel)
            if going is not None and (count := going[index]) < len(self._latents):
                self._ended.append((self._latents[count:], self._known[count:]))
                self._latents, self._known = self._latents[:count], self._known[:count]
            if not len(self._latents):
                return
            self._level, self._predicted = level, level.predict(self._latents, self._known)
            yield index, level, self._predicted

    def add(self, digits: Tensor, keep: Tensor) -> None:
        """Adds the digits (B, D, n, m) of the level's tokens where `keep` (B, 1, n, m) is 1."""
        self._latents, self._known = self._level.update(self._latents, self._known, self._predicted, digits, keep)

    @property
    def latents(self) -> Tensor:
        """(B, C, h, w) of all pictures, as far as they were walked."""
        return torch.cat([self._latents, *(latents for latents, _ in reversed(self._ended))])

    @property
    def known(self) -> Tensor:
        """(B, 1, h, w) how many levels are known of each cell, in fifths."""
        return torch.cat([self._known, *(known for _, known in reversed(self._ended))])


def walk_of(network: Network, layouts: Sequence[PyramidLayout], device: torch.device) -> Walk:
    """For pictures whose canvases are of one size."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    return Walk(network, len(layouts), rows, columns, device)


def on_canvas(grids: Sequence[NDArray], layouts: Sequence[PyramidLayout], index: int, device: torch.device) -> Tensor:
    """Coded tokens (D, n, m) of each picture -> float (B, D, blocks x side, blocks x side), zero where tokens lie outside the
    picture."""
    side = layouts[0].levels[index].side
    rows, columns = (count * side for count in layouts[0].blocks)
    canvas = np.zeros((len(grids), len(grids[0]), rows, columns), np.float32)
    for out, grid in zip(canvas, grids, strict=True):
        out[:, : grid.shape[1], : grid.shape[2]] = grid
    return torch.from_numpy(canvas).to(device)


def price_table(code: PyramidCode, index: int) -> Tensor:
    """(classes, limit + 1) bits of an absolute digit, its sign included, under the level's tables."""
    frequencies = code.priors[index].frequencies
    return torch.from_numpy(PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).float()
