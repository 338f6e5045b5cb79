"""Applies the network to images of any size: small images as a whole, large ones in tiles. No torch.

A tile has a halo as wide as the network's receptive-field radius, so tiling does not change its inside. The decoder works
in two steps. Features have a large receptive field and take about 15 bytes of memory per pixel; pixels have a small one and
take ten times as much. So tiles of features are large, and tiles of pixels small. The levels work in strips of whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bitstream.block_order import BLOCK, BLOCK_CELLS, CELL
from bitstream.pyramid_tokens import PyramidLayout
from codec.pyramid.noise import texture_noise
from codec.pyramid.runtime.backend import Array, Backend
from codec.system.context import report_progress

UNTILED_PIXELS = 16_000_000  # maximum pixels of canvases that share network calls, and of a canvas with a single feature tile
STRIP_CELLS = 16384  # 4 megapixels; larger arrays are slow, since they are mapped anew each time
ENCODER_TILE, FEATURE_TILE, PIXEL_TILE = 2048, 4096, 1024  # sides in pixels

Span = tuple[slice, slice]  # cells with their halo, and the part of them inside the halo


@dataclass(frozen=True)
class TextureOptions:
    """The texture of decoded images."""

    detail: float = 0.0  # its strength, from 0 to 1
    seed: int = 0  # of its noise


NO_TEXTURE = TextureOptions()


def encode_pixels(
    backend: Backend, layouts: Sequence[PyramidLayout], images: Sequence[NDArray[np.uint8]], tile: int | None = None
) -> Array:
    """Pixels (H, W, 3) of images with canvases of one size -> latents (B, C, h, w) of the canvases. A canvas repeats the last
    row and column of its image. `tile` is the largest side of a tile in pixels."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    latents = backend.zeros(len(layouts), backend.config.channels, rows, columns)
    spans = list(tiles(rows, columns, tile or ENCODER_TILE, backend.config.encoder_radius))
    for (ys, inner_ys), (xs, inner_xs) in spans:
        pixels = np.stack([_read_cells(image, ys, xs) for image in images])
        encoded = backend.encode(pixels)[:, :, inner_ys, inner_xs]
        top, left = ys.start + inner_ys.start, xs.start + inner_xs.start
        latents[:, :, top : top + encoded.shape[2], left : left + encoded.shape[3]] = encoded
        report_progress(1 / len(spans))
    return latents


def decode_pixels(
    backend: Backend,
    layouts: Sequence[PyramidLayout],
    latents: Array,
    known: Array,
    tile: int | None = None,
    texture: TextureOptions = NO_TEXTURE,
) -> list[NDArray[np.uint8]]:
    """The inverse of `encode_pixels`: latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> pixels (H, W, 3) of each."""
    images = [np.empty((layout.height, layout.width, 3), np.uint8) for layout in layouts]
    rows, columns = latents.shape[2:]
    untiled = tile is None and rows * columns * CELL**2 <= UNTILED_PIXELS
    side = max(rows, columns) * CELL if untiled else tile or FEATURE_TILE
    spans = list(tiles(rows, columns, side, backend.config.decoder_radius))
    for (ys, inner_ys), (xs, inner_xs) in spans:
        top, left = (ys.start + inner_ys.start) * CELL, (xs.start + inner_xs.start) * CELL
        targets = [image[top:, left:] for image in images]
        if not any(target.size for target in targets):  # the tile is outside of all images
            report_progress(1 / len(spans))
            continue
        tile_latents = latents[:, :, ys, xs]
        features = backend.features(tile_latents, known[:, :, ys, xs])
        batch = max(1, PIXEL_TILE**2 // (features.shape[2] * features.shape[3] * CELL**2))
        for first in range(0, len(targets), batch):
            some = slice(first, first + batch)
            part = tile_latents[some], features[some]
            _write_cells(targets[some], backend, *part, (ys, inner_ys), (xs, inner_xs), tile or PIXEL_TILE, texture)
            report_progress(len(targets[some]) / len(targets) / len(spans))
    return images


def strips(latents: Array, radius: int = 0) -> Iterator[Span]:
    """Splits a canvas of latents (B, C, h, w) into strips of whole blocks and at most STRIP_CELLS cells, with halos of `radius`
    cells."""
    count, _, rows, columns = latents.shape
    blocks = max(1, STRIP_CELLS // (count * columns * BLOCK_CELLS))
    return split(0, rows, rows, blocks * BLOCK, radius)


def inside(span: Span) -> slice:
    """The cells of a span that are not in its halo."""
    outer, inner = span
    return slice(outer.start + inner.start, outer.start + inner.stop)


def _read_cells(image: NDArray[np.uint8], ys: slice, xs: slice) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of some cells. Outside the image, its last row and column are repeated."""
    ranges = [range(cells.start * CELL, cells.stop * CELL) for cells in (ys, xs)]
    top, left = (min(pixels.start, size - 1) for pixels, size in zip(ranges, image.shape, strict=False))
    inside = image[top : ranges[0].stop, left : ranges[1].stop]
    missing = [(0, len(pixels) - size) for pixels, size in zip(ranges, inside.shape, strict=False)]
    return np.pad(inside, (*missing, (0, 0)), mode="edge")


def _write_cells(
    images: Sequence[NDArray[np.uint8]],
    backend: Backend,
    latents: Array,
    features: Array,
    rows: Span,
    columns: Span,
    side: int,
    texture: TextureOptions,
) -> None:
    """Decodes the inner cells of latents and features, in tiles of pixels, and writes them to the top left of the images.
    `rows` and `columns` are the place of the cells in the canvas."""
    (outer_ys, inner_ys), (outer_xs, inner_xs) = rows, columns
    radius = backend.config.pixel_radius
    spans = []
    for axis, inner in enumerate((inner_ys, inner_xs)):
        needed = -(-max(image.shape[axis] for image in images) // CELL)
        stop = min(inner.stop, inner.start + needed)
        spans.append(list(split(inner.start, stop, latents.shape[2 + axis], side, radius)))
    for (ys, ys_without_halo), (xs, xs_without_halo) in product(*spans):
        noise = texture_noise(texture.seed, _moved(ys, outer_ys.start), _moved(xs, outer_xs.start)) if texture.detail else ()
        decoded = backend.pixels(latents[:, :, ys, xs], features[:, :, ys, xs], texture.detail, noise)
        inside = [slice(cells.start * CELL, cells.stop * CELL) for cells in (ys_without_halo, xs_without_halo)]
        top = (ys.start + ys_without_halo.start - inner_ys.start) * CELL
        left = (xs.start + xs_without_halo.start - inner_xs.start) * CELL
        for image, pixels in zip(images, decoded[:, *inside], strict=True):
            target = image[top : top + pixels.shape[0], left : left + pixels.shape[1]]
            target[:] = pixels[: target.shape[0], : target.shape[1]]


def _moved(span: slice, start: int) -> slice:
    return slice(start + span.start, start + span.stop)


def tiles(rows: int, columns: int, side: int, radius: int) -> Iterator[tuple[Span, Span]]:
    """Splits a canvas of rows x columns cells into tiles of `side` pixels with halos: the spans of their rows and columns."""
    return product(split(0, rows, rows, side, radius), split(0, columns, columns, side, radius))


def split(start: int, stop: int, end: int, side: int, radius: int) -> Iterator[Span]:
    """Splits the cells from `start` to `stop` into spans of at most `side` pixels, with halos of `radius` cells within 0 to
    `end`."""
    size = max(2, side // CELL // 2 * 2)  # even, because of the decoder's branch at 1/32
    for first in range(start, stop, size):
        last = min(stop, first + size)
        outer = slice(max(0, first - radius), min(end, last + radius))
        yield outer, slice(first - outer.start, last - outer.start)
