"""Pixels to tokens and back, with the network and the integer entropy model. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK, BLOCK_CELLS
from bitstream.entropy_model import PRECISION, STRIP
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout, PyramidPrefix, PyramidSequence, complete_prefix
from codec.models.base import Enough
from codec.pyramid.runtime.backend import Array, Backend
from codec.pyramid.tiles import NO_TEXTURE, UNTILED_PIXELS, TextureOptions, decode_pixels, encode_pixels, inside, strips

PREDICTOR_RADIUS = 2  # cells; `codec.pyramid.network.Predictor` has two kernels of 3x3
COARSE_DIFFERENCE = 3  # times lambda in coarse levels: most of their digits of a difference are noise, up to 40 % of the bytes


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


class Reconstruction:
    """What decoding has of images with canvases of one size: latents (B, C, h, w) and map of known tokens (B, 1, h, w). The map
    holds the number of levels decoded in each cell, in units of one fifth.

    Encoding and decoding go through the levels alike: `predict`, choose or read the digits of the difference, `add` them. Both
    work in strips. `difference`: the latents are those of a difference between images."""

    def __init__(self, backend: Backend, layouts: Sequence[PyramidLayout], difference: bool = False) -> None:
        rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
        self.backend, self.layouts, self.difference = backend, layouts, difference
        self.latents = backend.zeros(len(layouts), backend.config.channels, rows, columns)
        self.known = backend.zeros(len(layouts), 1, rows, columns)

    def predict(self, index: int) -> Array:
        """The latents that level `index` adds to. The network predicts images; for a difference of images, the prediction is
        that nothing changes: zero digits leave the latents as they are."""
        predicted = self.backend.zeros(*self.latents.shape)
        if self.difference:
            biases, level = Reconstruction(self.backend, self.layouts), self.layouts[0].levels[index]
            digits = [np.zeros((level.digits, *layout.grids[index]), np.int8) for layout in self.layouts]
            biases.add(index, predicted, digits, [np.ones((1, *layout.grids[index]), np.bool_) for layout in self.layouts])
            return self.latents - biases.latents
        for rows, inner in strips(self.latents, PREDICTOR_RADIUS):
            strip = self.backend.predict(index, self.latents[:, :, rows], self.known[:, :, rows])
            predicted[:, :, inside((rows, inner))] = strip[:, :, inner]
        return predicted

    def add(
        self, index: int, predicted: Array, symbols: Sequence[NDArray[np.int8]], masks: Sequence[NDArray[np.bool_]]
    ) -> None:
        """Adds the digits (D, n, m) of level `index` of each image, where its mask (1, n, m) is true. Only the digits pass
        through filters, so rows in a halo may be of either state."""
        side = self.layouts[0].levels[index].side
        radius = 1 if side == BLOCK_CELLS else BLOCK_CELLS  # of a kernel of 3x3; coarse levels interpolate, too
        for rows, inner in strips(self.latents, radius):
            tokens = slice(rows.start * side // BLOCK_CELLS, rows.stop * side // BLOCK_CELLS)
            refined, more_known = self.backend.update(
                index,
                self.latents[:, :, rows],
                self.known[:, :, rows],
                predicted[:, :, rows],
                pad_to_canvas(symbols, self.layouts, index, tokens),
                pad_to_canvas(masks, self.layouts, index, tokens),
            )
            target = inside((rows, inner))
            self.latents[:, :, target], self.known[:, :, target] = refined[:, :, inner], more_known[:, :, inner]


def quantize(
    backend: Backend,
    code: PyramidCode,
    layouts: Sequence[PyramidLayout],
    latents: Array,
    enough: Sequence[Enough] = (),
    difference: bool = False,
) -> list[PyramidSequence]:
    """Latents (B, C, h, w) of canvases of one size -> the tokens of each image: all tokens, or complete levels
    until every image has `enough`. `difference`: the latents are those of a difference between images."""
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]  # (D, n, m) per image and level
    contexts: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    tokens, spent = [0] * len(layouts), [0.0] * len(layouts)
    decoded = Reconstruction(backend, layouts, difference)
    for index in range(len(code.levels)):
        predicted = decoded.predict(index)
        tables = [code.contexts(layout, index, digits[i]) for i, layout in enumerate(layouts)]
        bits = digit_bits(code, index)
        weighted = COARSE_DIFFERENCE * bits if difference and code.levels[index].side < BLOCK_CELLS else bits
        for i, chosen in enumerate(choose(backend, index, layouts, latents, predicted, tables, weighted)):
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
    decoded = Reconstruction(backend, [prefix.layout for prefix in prefixes], prefixes[0].base is not None)
    levels = max((index + 1 for prefix in prefixes for index, mask in enumerate(prefix.known) if mask.any()), default=0)
    for index in range(levels):
        symbols = [prefix.digits[index] for prefix in prefixes]
        decoded.add(index, decoded.predict(index), symbols, [prefix.known[index][None] for prefix in prefixes])
    for i, prefix in enumerate(prefixes):
        if prefix.base is not None:
            prefix.base.add_to(decoded.latents[i : i + 1], decoded.known[i : i + 1])
    return decoded.latents, decoded.known


def choose(
    backend: Backend,
    index: int,
    layouts: Sequence[PyramidLayout],
    latents: Array,
    predicted: Array,
    tables: Sequence[NDArray[np.uint8]],
    bits: NDArray[np.float32],
) -> list[NDArray[np.int8]]:
    """The digits (D, n, m) of level `index` of each image, computed in strips. `tables` are their table indexes."""
    level, rdo_lambda = layouts[0].levels[index], backend.config.bit_worth[index]
    chosen: list[list[NDArray[np.int8]]] = [[] for _ in layouts]
    for cells, _ in strips(latents):
        raw = backend.analyse(index, latents[:, :, cells] - predicted[:, :, cells])
        first = cells.start * level.side // BLOCK_CELLS
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
