"""Images and tokens of the pyramid: the network run with the integer prior, so that what is written can be read anywhere.
No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK
from bitstream.entropy_model import STRIP
from bitstream.pyramid_tokens import PyramidCode, PyramidLayout, PyramidPrefix, PyramidSequence, whole_of
from codec.pyramid.residual_decoder import on_canvas, price_table, residual_decoder_for
from codec.pyramid.runtime.backend import Array, Backend
from codec.pyramid.tiles import WHOLE_PIXELS, decode_pixels, encode_pixels
from codec.rate_control import Enough


class PyramidTokenizer:
    """A network and its code. `tile` is the largest side in pixels of the tiles that an image is worked on in; by default as
    `codec.pyramid.tiles` says."""

    def __init__(self, parts: Backend, code: PyramidCode, tile: int | None = None) -> None:
        self.parts = parts
        self.code = code
        self.tile = tile

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[PyramidSequence]:
        """Images (H, W, 3) -> their tokens, of whole levels, until they are `enough`. Images whose canvases (whole blocks
        of 256x256 pixels) are equally large share network calls."""
        wanted = enough or [Enough()] * len(images)
        layouts = [self.code.layout(image.shape[1], image.shape[0]) for image in images]
        done: dict[int, PyramidSequence] = {}
        for places in together(layouts):
            group = [layouts[place] for place in places]
            latents = encode_pixels(self.parts, group, [images[place] for place in places], self.tile)
            made = quantize(self.parts, self.code, group, latents, [wanted[place] for place in places])
            done |= zip(places, made, strict=True)
        return [done[place] for place in range(len(images))]

    def detokenize(self, prefixes: Sequence[PyramidPrefix]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the tokens that are known -> pixels (H, W, 3)."""
        done: dict[int, NDArray[np.uint8]] = {}
        for places in together([prefix.layout for prefix in prefixes]):
            group = [prefixes[place] for place in places]
            latents, known = dequantize(self.parts, group)
            pixels = decode_pixels(self.parts, [prefix.layout for prefix in group], latents, known, self.tile)
            done |= zip(places, pixels, strict=True)
        return [done[place] for place in range(len(prefixes))]


def together(layouts: Sequence[PyramidLayout]) -> list[list[int]]:
    """Places of images that can share network calls: their canvases are of one size, and do not hold more pixels than an
    image may that is computed in one piece."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, layout in enumerate(layouts):
        groups.setdefault(layout.blocks, []).append(place)
    found = []
    for (rows, columns), places in groups.items():
        most = max(1, WHOLE_PIXELS // (rows * columns * BLOCK**2))
        found += [places[start : start + most] for start in range(0, len(places), most)]
    return found


def quantize(
    parts: Backend, code: PyramidCode, layouts: Sequence[PyramidLayout], latents: Array, enough: Sequence[Enough] = ()
) -> list[PyramidSequence]:
    """Latents (B, C, h, w) of canvases of one size -> the tokens of each image: all of them, or those of the first levels
    with which every image has `enough`."""
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]
    classes: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    tokens, spent = [0] * len(layouts), [0.0] * len(layouts)
    walk = residual_decoder_for(parts, layouts)
    for index, predicted in walk.levels():
        raw = parts.analyse(index, latents - predicted)
        bits = price_table(code, index)
        for place, (layout, so_far) in enumerate(zip(layouts, digits, strict=True)):
            rows, columns = layout.grids[index]
            classes[place].append(code.classes(layout, index, so_far))
            chosen = _round(parts, index, raw[place, :, :rows, :columns], classes[place][-1], bits)
            so_far.append(chosen * layout.mask(index))
            tokens[place] += layout.counts[index]
            if enough and enough[place].bits < math.inf:
                spent[place] += float(bits[classes[place][-1], np.abs(so_far[-1])].sum(0)[layout.mask(index)].sum())
        if enough and all(limit.reached(*had) for limit, had in zip(enough, zip(tokens, spent, strict=True), strict=True)):
            break
        keep = on_canvas([layout.mask(index)[None] for layout in layouts], layouts, index)
        walk.add(parts.array(on_canvas([so_far[-1] for so_far in digits], layouts, index)), parts.array(keep))
    made = zip(layouts, digits, classes, strict=True)
    return [code.sequence(whole_of(layout, so_far), under) for layout, so_far, under in made]


def _round(parts: Backend, index: int, raw: Array, classes: NDArray[np.uint8], bits: NDArray[np.float32]) -> NDArray[np.int8]:
    """The digits to send for a whole level (D, n, m), some rows at a time to bound memory."""
    rows = max(1, STRIP // raw.shape[2])
    out = np.empty(classes.shape, np.int8)
    for top in range(0, raw.shape[1], rows):
        part = slice(top, top + rows)
        out[:, part] = parts.choose(index, raw[:, part], classes[:, part], bits)
    return out


def dequantize(parts: Backend, prefixes: Sequence[PyramidPrefix]) -> tuple[Array, Array]:
    """The inverse of `quantize`, for the tokens that are known of images whose canvases are of one size -> latents
    (B, C, h, w) and map of known tokens (B, 1, h, w)."""
    layouts = [prefix.layout for prefix in prefixes]
    walk = residual_decoder_for(parts, layouts)
    last = max((index for prefix in prefixes for index, known in enumerate(prefix.known) if known.any()), default=-1)
    for index, _ in walk.levels([len(prefixes) * (index <= last) for index in range(len(parts.config.levels))]):
        keep = on_canvas([prefix.known[index][None] for prefix in prefixes], layouts, index)
        walk.add(parts.array(on_canvas([prefix.digits[index] for prefix in prefixes], layouts, index)), parts.array(keep))
    return walk.latents, walk.known
