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
from codec.pyramid.tiles import UNTILED_PIXELS, decode_pixels, encode_pixels


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

    def detokenize(self, prefixes: Sequence[PyramidPrefix]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the known tokens -> pixels (H, W, 3)."""
        layouts = [prefix.layout for prefix in prefixes]
        images: dict[int, NDArray[np.uint8]] = {}
        for group in group_by_canvas(layouts):
            latents, known = dequantize(self.backend, [prefixes[i] for i in group])
            pixels = decode_pixels(self.backend, [layouts[i] for i in group], latents, known, self.tile)
            images |= zip(group, pixels, strict=True)
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


def quantize(
    backend: Backend, code: PyramidCode, layouts: Sequence[PyramidLayout], latents: Array, enough: Sequence[Enough] = ()
) -> list[PyramidSequence]:
    """Latents (B, C, h, w) of canvases of one size -> the tokens of each image: all tokens, or complete levels
    until every image has `enough`."""
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]  # (D, n, m) per image and level
    contexts: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    tokens, spent = [0] * len(layouts), [0.0] * len(layouts)
    decoded, known = backend.zeros(*latents.shape), backend.zeros(len(latents), 1, *latents.shape[2:])
    for index, level in enumerate(code.levels):
        predicted = backend.predict(index, decoded, known)
        raw = backend.analyse(index, latents - predicted)
        bits, rdo_lambda = digit_bits(code, index), backend.config.bit_worth[index]
        for i, layout in enumerate(layouts):
            mask = layout.masks[index]
            rows, columns = mask.shape
            tables = code.contexts(layout, index, digits[i])
            step = max(1, STRIP // columns)  # rows per call, to bound memory
            chosen = [
                backend.choose(raw[i, :, strip, :columns], tables[:, strip], bits, level.limit, rdo_lambda)
                for strip in (slice(top, min(top + step, rows)) for top in range(0, rows, step))
            ]
            contexts[i].append(tables)
            digits[i].append(np.concatenate(chosen, 1) * mask)
            tokens[i] += layout.counts[index]
            if enough and enough[i].bits < math.inf:
                spent[i] += float(bits[tables, np.abs(digits[i][-1])].sum(0)[mask].sum())
        last = index == len(code.levels) - 1
        if last or (enough and all(enough[i].reached(tokens[i], spent[i]) for i in range(len(layouts)))):
            break
        symbols = [levels[-1] for levels in digits]
        masks = [layout.masks[index][None] for layout in layouts]
        decoded, known = backend.update(
            index, decoded, known, predicted, pad_to_canvas(symbols, layouts, index), pad_to_canvas(masks, layouts, index)
        )
    images = zip(layouts, digits, contexts, strict=True)
    return [code.sequence(complete_prefix(layout, levels), tables) for layout, levels, tables in images]


def dequantize(backend: Backend, prefixes: Sequence[PyramidPrefix]) -> tuple[Array, Array]:
    """The inverse of `quantize`, for the known tokens of images with canvases of one size -> latents (B, C, h, w) and map of
    known tokens (B, 1, h, w): the number of levels decoded in each cell, in units of one fifth."""
    layouts = [prefix.layout for prefix in prefixes]
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    decoded = backend.zeros(len(prefixes), backend.config.channels, rows, columns)
    known = backend.zeros(len(prefixes), 1, rows, columns)
    levels = max((index + 1 for prefix in prefixes for index, mask in enumerate(prefix.known) if mask.any()), default=0)
    for index in range(levels):
        predicted = backend.predict(index, decoded, known)
        symbols = [prefix.digits[index] for prefix in prefixes]
        masks = [prefix.known[index][None] for prefix in prefixes]
        decoded, known = backend.update(
            index, decoded, known, predicted, pad_to_canvas(symbols, layouts, index), pad_to_canvas(masks, layouts, index)
        )
    return decoded, known


def digit_bits(code: PyramidCode, index: int) -> NDArray[np.float32]:
    """(tables, limit + 1) bits of an absolute digit and its sign, under the frequency tables of level `index`."""
    frequencies = code.entropy_models[index].frequencies
    return (PRECISION - np.log2(frequencies[:, frequencies.shape[1] // 2 :])).astype(np.float32)


def pad_to_canvas(grids: Sequence[NDArray], layouts: Sequence[PyramidLayout], index: int) -> NDArray[np.float32]:
    """Token grids (D, n, m) of level `index`, one per image -> (B, D, blocks x side, blocks x side), zero outside of the
    images."""
    side = layouts[0].levels[index].side
    rows, columns = (count * side for count in layouts[0].blocks)
    canvas = np.zeros((len(grids), len(grids[0]), rows, columns), np.float32)
    for out, grid in zip(canvas, grids, strict=True):
        out[:, : grid.shape[1], : grid.shape[2]] = grid
    return canvas
