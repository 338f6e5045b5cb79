"""The walk over the levels of the pyramid, coarse to fine, that coding, decoding, refining and learning share. No torch.

    walk = ResidualDecoder(parts, count, rows, columns)
    for index, predicted in walk.levels():
        ...  # what the digits of this level are, and which of its tokens are kept
        walk.add(digits, keep)
    walk.latents, walk.known

What differs between the four is only where the digits come from: from latents by rounding, with or without gradients, or from
a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK_CELLS
from bitstream.entropy_model import PRECISION
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout
from codec.pyramid.runtime.backend import Array, Backend
from codec.system.memory import trim

LARGE = 8192  # cells of a walk, 2 megapixels: below that, freed memory is not worth a call


class ResidualDecoder:
    """The latents of some images as they grow level by level; loops may end early."""

    def __init__(self, parts: Backend, count: int, rows: int, columns: int) -> None:
        """For `count` canvases of rows x columns cells."""
        self._parts = parts
        self._latents = parts.zeros(count, parts.config.channels, rows, columns)
        self._known = parts.zeros(count, 1, rows, columns)
        self._ended: list[tuple[Array, Array]] = []  # of images that are no longer walked, the last ones first

    def levels(self, going: Sequence[int] | None = None) -> Iterator[tuple[int, Array]]:
        """The index of each level, and what is predicted of the latents (B, C, h, w) from all levels before.

        With `going`, only the first so many images go on to each level: those that have ended cost nothing."""
        for index in range(len(self._parts.config.levels)):
            if going is not None and (count := going[index]) < len(self._latents):
                self._ended.append((self._latents[count:], self._known[count:]))
                self._latents, self._known = self._latents[:count], self._known[:count]
            if not len(self._latents):
                return
            self._index, self._predicted = index, self._parts.predict(index, self._latents, self._known)
            yield index, self._predicted

    def add(self, digits: Array, keep: Array) -> None:
        """Adds the digits (B, D, n, m) of the level's tokens where `keep` (B, 1, n, m) is 1."""
        grown = self._parts.update(self._index, self._latents, self._known, self._predicted, digits, keep)
        self._latents, self._known = grown
        if self._known.shape[0] * self._known.shape[2] * self._known.shape[3] > LARGE:
            trim()

    @property
    def latents(self) -> Array:
        """(B, C, h, w) of all images, as far as they were walked."""
        return self._parts.join([self._latents, *(latents for latents, _ in reversed(self._ended))])

    @property
    def known(self) -> Array:
        """(B, 1, h, w) how many levels are known of each cell, in fifths."""
        return self._parts.join([self._known, *(known for _, known in reversed(self._ended))])


def residual_decoder_for(parts: Backend, layouts: Sequence[PyramidLayout]) -> ResidualDecoder:
    """For images whose canvases are of one size."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    return ResidualDecoder(parts, len(layouts), rows, columns)


def on_canvas(grids: Sequence[NDArray], layouts: Sequence[PyramidLayout], index: int) -> NDArray[np.float32]:
    """Coded tokens (D, n, m) of each image -> (B, D, blocks x side, blocks x side), zero where tokens lie outside the
    image."""
    side = layouts[0].levels[index].side
    rows, columns = (count * side for count in layouts[0].blocks)
    canvas = np.zeros((len(grids), len(grids[0]), rows, columns), np.float32)
    for out, grid in zip(canvas, grids, strict=True):
        out[:, : grid.shape[1], : grid.shape[2]] = grid
    return canvas


def price_table(code: PyramidCode, index: int) -> NDArray[np.float32]:
    """(classes, limit + 1) bits of an absolute digit, its sign included, under the level's tables."""
    frequencies = code.priors[index].frequencies
    return (PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).astype(np.float32)
