"""Pixels to tokens and back, with the network and the integer entropy model. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK, BLOCK_CELLS
from bitstream.entropy_model import PRECISION, STRIP
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout, PyramidPrefix, PyramidSequence, complete_prefix
from codec.models.base import Enough
from codec.pyramid.runtime.backend import Array, Backend
from codec.pyramid.tiles import NO_TEXTURE, UNTILED_PIXELS, TextureOptions, decode_pixels, encode_pixels, inside, strips

PREDICTOR_RADIUS = 2  # cells; `codec.pyramid.network.Predictor` has two kernels of 3x3


@dataclass(frozen=True)
class PyramidTokenizer:
    """A network and its code."""

    backend: Backend
    code: PyramidCode
    tile: int | None = None  # largest side of a tile in pixels; by default as in `codec.pyramid.tiles`

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[PyramidSequence]:
        """Images (H, W, 3) -> their tokens, in complete levels, until there are `enough`. Images with canvases (whole blocks of
        256x256 pixels) of one size share network calls."""
        limits = enough or [Enough()] * len(images)
        layouts = [self.code.layout(image.shape[1], image.shape[0]) for image in images]
        sequences: dict[int, PyramidSequence] = {}
        for group in group_by_canvas(layouts):
            shared = [layouts[i] for i in group]
            latents = encode_pixels(self.backend, shared, [images[i] for i in group], self.tile)
            tokens = quantize(self.backend, self.code, shared, latents, [limits[i] for i in group])
            sequences |= zip(group, tokens, strict=True)
        return [sequences[i] for i in range(len(images))]

    def detokenize(
        self, prefixes: Sequence[PyramidPrefix], detail: float | None = None, seed: int = 0
    ) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the known tokens -> pixels (H, W, 3). `detail` is the strength of texture, by default
        that of the model; `seed` chooses its noise."""
        config = self.backend.config
        texture = TextureOptions(config.detail if detail is None else detail, seed) if config.texture_widths else NO_TEXTURE
        layouts = [prefix.layout for prefix in prefixes]
        images: dict[int, NDArray[np.uint8]] = {}
        for group in group_by_canvas(layouts):
            for part in ([i for i in group if (prefixes[i].base is None) is alone] for alone in (True, False)):
                if part:
                    latents, known = dequantize(self.backend, [prefixes[i] for i in part])
                    pixels = decode_pixels(self.backend, [layouts[i] for i in part], latents, known, self.tile, texture)
                    images |= zip(part, pixels, strict=True)
        return [images[i] for i in range(len(prefixes))]


def group_by_canvas(layouts: Sequence[PyramidLayout]) -> list[list[int]]:
    """Groups the indexes of images that share network calls. Their canvases have one size and together at most
    UNTILED_PIXELS."""
    indexes: dict[tuple[int, int], list[int]] = {}
    for i, layout in enumerate(layouts):
        indexes.setdefault(layout.blocks, []).append(i)
    groups = []
    for (rows, columns), group in indexes.items():
        size = max(1, UNTILED_PIXELS // (rows * columns * BLOCK**2))
        groups += [group[start : start + size] for start in range(0, len(group), size)]
    return groups


@dataclass(frozen=True, eq=False)
class Base:
    """The latents that decoding gives for a reference, and the cells of an image that use them."""

    layout: PyramidLayout
    latents: Array  # (1, C, h, w)
    known: Array  # (1, 1, h, w), as in `Reconstruction`
    uses: NDArray[np.bool_]  # (h, w)

    def own(self, index: int) -> NDArray[np.bool_]:
        """(1, n, m) mask of the tokens of level `index` with any cell that does not use the reference."""
        side, (rows, columns) = BLOCK_CELLS // self.layout.levels[index].side, self.uses.shape
        own = ~self.uses.reshape(rows // side, side, columns // side, side)
        height, width = self.layout.grids[index]
        return np.any(own, (1, 3), keepdims=True)[:height, 0, :width, 0][None]


class Reconstruction:
    """What decoding has of images with canvases of one size: latents (B, C, h, w) and map of known tokens (B, 1, h, w). The map
    holds the number of levels decoded in each cell, in units of one fifth.

    Encoding and decoding go through the levels alike: `predict`, choose or read the digits of the residual, `add` them. Both
    work in strips. With references, each image has one of `bases`. Its cells that use the reference start with the reference's
    latents, and tokens that cover only such cells change them. All other tokens change the other cells."""

    def __init__(self, backend: Backend, layouts: Sequence[PyramidLayout], bases: Sequence[Base] = ()) -> None:
        rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
        self.backend, self.layouts, self.bases = backend, layouts, bases
        self.latents = backend.zeros(len(layouts), backend.config.channels, rows, columns)
        self.known = backend.zeros(len(layouts), 1, rows, columns)
        if bases:
            self._uses = backend.array(np.stack([base.uses[None] for base in bases]))
            self._decoded = backend.zeros(*self.known.shape)  # `known`, by the tokens alone
            for i, base in enumerate(bases):
                self.latents[i : i + 1] = base.latents * self._uses[i : i + 1]
                self.known[i : i + 1] = base.known * self._uses[i : i + 1]

    def predict(self, index: int) -> Array:
        """The latents that level `index` adds to. The network predicts images; where there is a reference, the prediction is
        that nothing changes: zero digits leave the latents as they are."""
        predicted = self.backend.zeros(*self.latents.shape)
        if not self.bases or not all(base.uses.all() for base in self.bases):
            for rows, inner in strips(self.latents, PREDICTOR_RADIUS):
                strip = self.backend.predict(index, self.latents[:, :, rows], self.known[:, :, rows])
                predicted[:, :, inside((rows, inner))] = strip[:, :, inner]
        if self.bases:
            unchanged = self.latents - self._latents_of_zeros(index)
            predicted += self._uses * (unchanged - predicted)
        return predicted

    def analyse(self, index: int, latents: Array, predicted: Array) -> Iterator[tuple[int, Array]]:
        """The digits before rounding (B, D, rows, m) of level `index` for latents (B, C, h, w), in strips, each with its first
        row of tokens."""
        for cells, _ in strips(latents):
            residual = self._residual(index, latents[:, :, cells] - predicted[:, :, cells], cells)
            yield cells.start * self.layouts[0].levels[index].side // BLOCK_CELLS, self.backend.analyse(index, residual)

    def _residual(self, index: int, residual: Array, cells: slice) -> Array:
        """The residual of these rows of cells, for the choice of tokens. A cell that its token does not change has the mean of
        those that it changes."""
        if not self.bases or self.layouts[0].levels[index].side == BLOCK_CELLS:
            return residual
        side, (rows, columns) = BLOCK_CELLS // self.layouts[0].levels[index].side, residual.shape[2:]
        areas = rows // side, side, columns // side, side  # rows and columns of tokens, and of the cells in each
        values = residual.reshape(*residual.shape[:2], *areas)
        changed = (1 - self._uses[:, :, cells]).reshape(len(residual), 1, *areas)
        counts = changed.sum((3, 5))[:, :, :, None, :, None]
        means = (values * changed).sum((3, 5))[:, :, :, None, :, None] / (counts + (counts == 0))
        return (values + (1 - changed) * (counts > 0) * (means - values)).reshape(residual.shape)

    def add(
        self, index: int, predicted: Array, symbols: Sequence[NDArray[np.int8]], masks: Sequence[NDArray[np.bool_]]
    ) -> None:
        """Adds the digits (D, n, m) of level `index` of each image, where its mask (1, n, m) is true."""
        if not self.bases:
            self._update(index, self.latents, self.known, predicted, symbols, masks)
            return
        latents, known, own = self.latents + 0, self._decoded + 0, [base.own(index) for base in self.bases]
        self._update(index, latents, known, predicted, *_selected(own, symbols, masks))
        self._update(index, self.latents, self._decoded, predicted, *_selected([~part for part in own], symbols, masks))
        self.latents += (1 - self._uses) * (latents - self.latents)
        self._decoded += (1 - self._uses) * (known - self._decoded)
        for i, base in enumerate(self.bases):
            decoded, shared = self._decoded[i : i + 1], base.known * self._uses[i : i + 1]
            self.known[i : i + 1] = decoded + (shared - decoded) * (shared > decoded)

    def _update(
        self,
        index: int,
        latents: Array,
        known: Array,
        predicted: Array,
        symbols: Sequence[NDArray[np.int8]],
        masks: Sequence[NDArray[np.bool_]],
    ) -> None:
        """Adds digits to latents and map of known tokens in place. Only the digits pass through filters, so rows in a halo may
        be of either state."""
        side = self.layouts[0].levels[index].side
        radius = 1 if side == BLOCK_CELLS else BLOCK_CELLS  # of a kernel of 3x3; coarse levels interpolate, too
        for rows, inner in strips(latents, radius):
            tokens = slice(rows.start * side // BLOCK_CELLS, rows.stop * side // BLOCK_CELLS)
            refined, more_known = self.backend.update(
                index,
                latents[:, :, rows],
                known[:, :, rows],
                predicted[:, :, rows],
                pad_to_canvas(symbols, self.layouts, index, tokens),
                pad_to_canvas(masks, self.layouts, index, tokens),
            )
            target = inside((rows, inner))
            latents[:, :, target], known[:, :, target] = refined[:, :, inner], more_known[:, :, inner]

    def _latents_of_zeros(self, index: int) -> Array:
        """The latents (B, C, h, w) of all-zero digits: biases of the network."""
        level, grids = self.layouts[0].levels[index], [layout.grids[index] for layout in self.layouts]
        latents = self.backend.zeros(*self.latents.shape)
        digits = [np.zeros((level.digits, *grid), np.int8) for grid in grids]
        self._update(index, latents, self.known + 0, latents + 0, digits, [np.ones((1, *grid), np.bool_) for grid in grids])
        return latents


def _selected(
    parts: Sequence[NDArray[np.bool_]], symbols: Sequence[NDArray[np.int8]], masks: Sequence[NDArray[np.bool_]]
) -> tuple[list[NDArray[np.int8]], list[NDArray[np.bool_]]]:
    """The digits (D, n, m) and masks (1, n, m) of the tokens in a part (1, n, m), for each image."""
    return (
        [digits * part for digits, part in zip(symbols, parts, strict=True)],
        [mask & part for mask, part in zip(masks, parts, strict=True)],
    )


def quantize(
    backend: Backend,
    code: PyramidCode,
    layouts: Sequence[PyramidLayout],
    latents: Array,
    enough: Sequence[Enough] = (),
    bases: Sequence[Base] = (),
) -> list[PyramidSequence]:
    """Latents (B, C, h, w) of canvases of one size -> the tokens of each image: all tokens, or complete levels
    until every image has `enough`. `bases` are those of references."""
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]  # (D, n, m) per image and level
    contexts: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    tokens, spent = [0] * len(layouts), [0.0] * len(layouts)
    decoded = Reconstruction(backend, layouts, bases)
    for index in range(len(code.levels)):
        predicted = decoded.predict(index)
        tables = [code.contexts(layout, index, digits[i]) for i, layout in enumerate(layouts)]
        bits = digit_bits(code, index)
        raw = decoded.analyse(index, latents, predicted)
        for i, chosen in enumerate(choose(backend, index, layouts, raw, tables, bits)):
            mask = layouts[i].masks[index]
            contexts[i].append(tables[i])
            digits[i].append(chosen * mask)
            tokens[i] += layouts[i].counts[index]
            if enough and enough[i].bits < math.inf:
                spent[i] += float(bits[tables[i], np.abs(digits[i][-1])].sum(0)[mask].sum())
        last = index == len(code.levels) - 1
        if last or (enough and all(enough[i].reached(tokens[i], spent[i]) for i in range(len(layouts)))):
            break
        decoded.add(index, predicted, [levels[-1] for levels in digits], [layout.masks[index][None] for layout in layouts])
    images = zip(layouts, digits, contexts, strict=True)
    return [code.sequence(complete_prefix(layout, levels), tables) for layout, levels, tables in images]


def dequantize(backend: Backend, prefixes: Sequence[PyramidPrefix]) -> tuple[Array, Array]:
    """The inverse of `quantize`, for the known tokens of images with canvases of one size -> latents (B, C, h, w) and map of
    known tokens (B, 1, h, w): the number of levels decoded in each cell, in units of one fifth. All images have a
    reference, or none has; the results include their bases."""
    bases: list[Any] = [prefix.base for prefix in prefixes if prefix.base is not None]
    decoded = Reconstruction(backend, [prefix.layout for prefix in prefixes], bases)
    levels = max((index + 1 for prefix in prefixes for index, mask in enumerate(prefix.known) if mask.any()), default=0)
    for index in range(levels):
        symbols = [prefix.digits[index] for prefix in prefixes]
        decoded.add(index, decoded.predict(index), symbols, [prefix.known[index][None] for prefix in prefixes])
    return decoded.latents, decoded.known


def choose(
    backend: Backend,
    index: int,
    layouts: Sequence[PyramidLayout],
    strips_of_raw: Iterable[tuple[int, Array]],
    tables: Sequence[NDArray[np.uint8]],
    bits: NDArray[np.float32],
) -> list[NDArray[np.int8]]:
    """The digits (D, n, m) of level `index` of each image, from `Reconstruction.analyse`. `tables` are their table indexes."""
    level, rdo_lambda = layouts[0].levels[index], backend.config.bit_worth[index]
    chosen: list[list[NDArray[np.int8]]] = [[] for _ in layouts]
    for first, raw in strips_of_raw:
        for i, layout in enumerate(layouts):
            rows, columns = layout.grids[index]
            step = max(1, STRIP // columns)  # rows per call, to bound memory
            last = min(first + raw.shape[2], rows)
            for top in range(first, last, step):
                bottom = min(top + step, last)
                strip = raw[i, :, top - first : bottom - first, :columns]
                chosen[i].append(backend.choose(strip, tables[i][:, top:bottom], bits, level.limit, rdo_lambda))
    return [np.concatenate(parts, 1) for parts in chosen]


def digit_bits(code: PyramidCode, index: int) -> NDArray[np.float32]:
    """(tables, limit + 1) bits of an absolute digit and its sign, under the frequency tables of level `index`."""
    frequencies = code.entropy_models[index].frequencies
    return (PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).astype(np.float32)


def pad_to_canvas(
    grids: Sequence[NDArray], layouts: Sequence[PyramidLayout], index: int, tokens: slice = slice(None)
) -> NDArray[np.float32]:
    """Token grids (D, n, m) of level `index`, one per image -> (B, D, blocks x side, blocks x side), or these rows of `tokens`;
    zero outside of the images."""
    side = layouts[0].levels[index].side
    rows, columns = (count * side for count in layouts[0].blocks)
    first, last, _ = tokens.indices(rows)
    canvas = np.zeros((len(grids), len(grids[0]), last - first, columns), np.float32)
    for out, grid in zip(canvas, grids, strict=True):
        part = grid[:, first:last]
        out[:, : part.shape[1], : part.shape[2]] = part
    return canvas
