"""The convolutional ends of the codec over images of any size: whole where they fit, in tiles where they do not. No torch.

A tile is computed with a halo that covers the reach of the network, so that its inside is what the whole image would give.
The decoder works in two steps. Features see far, and take some 15 bytes of memory per pixel; pixels are made of features close
by, and take ten times as much. So tiles of features are large, and tiles of pixels small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK_CELLS, CELL
from bitstream.pyramid_tokens import PyramidLayout
from codec.pyramid.runtime.backend import Array, Backend
from codec.system.context import report_progress

WHOLE_PIXELS = 16_000_000  # pixels of the canvases that share calls of the network, and of one whose features are made whole
ENCODER_TILE, FEATURE_TILE, PIXEL_TILE = 2048, 4096, 1024  # pixels along a side

Cut = tuple[slice, slice]  # cells with their halo, and where those lie in it that the cut is for


def cuts(start: int, stop: int, size: int, halo: int, end: int) -> Iterator[Cut]:
    """Cuts the cells from `start` to `stop` into parts of at most `size`, with a halo as far as there are cells, 0 to `end`."""
    for low in range(start, stop, size):
        high = min(stop, low + size)
        outer = slice(max(0, low - halo), min(end, high + halo))
        yield outer, slice(low - outer.start, high - outer.start)


def tiles(rows: int, columns: int, size: int, halo: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Cuts a grid of cells into tiles of `size` cells: outer rows and columns, with halo, and the inner ones within them."""
    for ys, inner_ys in cuts(0, rows, size, halo, rows):
        for xs, inner_xs in cuts(0, columns, size, halo, columns):
            yield ys, xs, inner_ys, inner_xs


def tile_cells(side: int) -> int:
    """Side of a tile in cells, of one in pixels: even, because of the decoder's 1/32 branch."""
    return max(2, side // CELL // 2 * 2)


def encode_pixels(
    parts: Backend, layouts: Sequence[PyramidLayout], pixels: Sequence[NDArray[np.uint8]], tile: int | None = None
) -> Array:
    """Pixels (H, W, 3) of images whose canvases are of one size -> latents (B, C, h, w) of the canvases, each image's last
    row and column repeated to its edge. `tile` is the largest side of a tile, in pixels, here and when decoding."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    latents = parts.zeros(len(layouts), parts.config.channels, rows, columns)
    cut = list(tiles(rows, columns, tile_cells(tile or ENCODER_TILE), parts.encoder_reach))
    for ys, xs, inner_ys, inner_xs in cut:
        canvases = np.stack([_canvas(image, ys, xs) for image in pixels])
        out = parts.encode(canvases)[:, :, inner_ys, inner_xs]
        top, left = ys.start + inner_ys.start, xs.start + inner_xs.start
        latents[:, :, top : top + out.shape[2], left : left + out.shape[3]] = out
        report_progress(1 / len(cut))
    return latents


def _canvas(image: NDArray[np.uint8], ys: slice, xs: slice) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of these cells; beyond the image its last row and column."""
    spans = [range(cells.start * CELL, cells.stop * CELL) for cells in (ys, xs)]
    starts = [min(span.start, size - 1) for span, size in zip(spans, image.shape, strict=False)]
    part = image[starts[0] : spans[0].stop, starts[1] : spans[1].stop]
    missing = [(0, len(span) - size) for span, size in zip(spans, part.shape, strict=False)]
    return np.pad(part, (*missing, (0, 0)), mode="edge")


def decode_pixels(
    parts: Backend, layouts: Sequence[PyramidLayout], latents: Array, known: Array, tile: int | None = None
) -> list[NDArray[np.uint8]]:
    """The inverse of `encode_pixels`: latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> pixels (H, W, 3) each."""
    images = [np.empty((layout.height, layout.width, 3), np.uint8) for layout in layouts]
    rows, columns = latents.shape[2:]
    size = max(rows, columns) if tile is None and rows * columns * CELL**2 <= WHOLE_PIXELS else tile_cells(tile or FEATURE_TILE)
    cut = list(tiles(rows, columns, size, parts.decoder_reach))
    for ys, xs, inner_ys, inner_xs in cut:
        top, left = (outer.start + inner.start for outer, inner in ((ys, inner_ys), (xs, inner_xs)))
        parted = [image[top * CELL :, left * CELL :] for image in images]
        if not any(part.size for part in parted):  # nothing to see there
            report_progress(1 / len(cut))
            continue
        under = latents[:, :, ys, xs]
        features = parts.features(under, known[:, :, ys, xs])
        step = max(1, PIXEL_TILE**2 // (under.shape[2] * under.shape[3] * CELL**2))  # images at once
        for first in range(0, len(parted), step):
            few = slice(first, first + step)
            _make_pixels(parts, parted[few], under[few], features[few], (inner_ys, inner_xs), tile or PIXEL_TILE)
            report_progress(len(parted[few]) / len(parted) / len(cut))
    return images


def _make_pixels(
    parts: Backend, images: Sequence[NDArray[np.uint8]], latents: Array, features: Array, inner: tuple[slice, slice], tile: int
) -> None:
    """Fills images, as far as the inner rows and columns of these latents and features reach, from their top left."""
    size, halo = tile_cells(tile), parts.pixel_reach
    most = [max(image.shape[axis] for image in images) for axis in (0, 1)]
    stops = [min(part.stop, part.start + -(-most[axis] // CELL)) for axis, part in enumerate(inner)]
    rows, columns = (
        list(cuts(part.start, stop, size, halo, end)) for part, stop, end in zip(inner, stops, latents.shape[2:], strict=True)
    )
    for (ys, inner_ys), (xs, inner_xs) in product(rows, columns):
        inside = [slice(part.start * CELL, part.stop * CELL) for part in (inner_ys, inner_xs)]
        made = parts.pixels(latents[:, :, ys, xs], features[:, :, ys, xs])[:, *inside]
        top, left = ((ys.start + inner_ys.start - inner[0].start) * CELL, (xs.start + inner_xs.start - inner[1].start) * CELL)
        for image, pixels in zip(images, made, strict=True):
            place = image[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            place[:] = pixels[: place.shape[0], : place.shape[1]]
