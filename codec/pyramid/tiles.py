"""The convolutional ends of the codec over pictures of any size: whole where they fit, in tiles where they do not. No torch.

A tile is computed with a halo that covers the reach of the network, so that its inside is what the whole picture would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bitstream.blocks import BLOCK_CELLS, CELL
from bitstream.pyramid import PyramidLayout
from codec.progress import report
from codec.pyramid.parts import Array, Parts

WHOLE_PIXELS = 16_000_000  # a canvas up to this is computed in one piece
TILE = 2048  # pixels


def tiles(rows: int, columns: int, size: int, halo: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Cuts a grid of cells into tiles of `size` cells: outer rows and columns, with halo, and the inner ones within them."""
    for top in range(0, rows, size):
        for left in range(0, columns, size):
            outer, inner = [], []
            for start, end in ((top, rows), (left, columns)):
                low, high = max(0, start - halo), min(end, start + size + halo)
                outer.append(slice(low, high))
                inner.append(slice(start - low, min(end, start + size) - low))
            yield outer[0], outer[1], inner[0], inner[1]


def tile_cells(layout: PyramidLayout, tile: int | None) -> int:
    """Side of a tile in cells; the whole canvas where it is small and no tile (in pixels) is asked for."""
    rows, columns = (count * BLOCK_CELLS for count in layout.blocks)
    if tile is None:
        tile = TILE if rows * columns * CELL**2 > WHOLE_PIXELS else max(rows, columns) * CELL
    return max(2, tile // CELL // 2 * 2)  # even, because of the decoder's 1/32 branch


def encode_pixels(
    parts: Parts, layouts: Sequence[PyramidLayout], pixels: Sequence[NDArray[np.uint8]], tile: int | None = None
) -> Array:
    """Pixels (H, W, 3) of pictures whose canvases are of one size -> latents (B, C, h, w) of the canvases, each picture's last
    row and column repeated to its edge."""
    rows, columns = (count * BLOCK_CELLS for count in layouts[0].blocks)
    latents = parts.zeros(len(layouts), parts.config.channels, rows, columns)
    cut = list(tiles(rows, columns, tile_cells(layouts[0], tile), parts.encoder_reach))
    for ys, xs, inner_ys, inner_xs in cut:
        y, x = (np.arange(part.start * CELL, part.stop * CELL) for part in (ys, xs))
        canvases = [
            picture[y.clip(max=layout.height - 1)[:, None], x.clip(max=layout.width - 1)]
            for layout, picture in zip(layouts, pixels, strict=True)
        ]
        out = parts.encode(np.stack(canvases))[:, :, inner_ys, inner_xs]
        top, left = ys.start + inner_ys.start, xs.start + inner_xs.start
        latents[:, :, top : top + out.shape[2], left : left + out.shape[3]] = out
        report(1 / len(cut))
    return latents


def decode_pixels(
    parts: Parts, layouts: Sequence[PyramidLayout], latents: Array, known: Array, tile: int | None = None
) -> list[NDArray[np.uint8]]:
    """The inverse of `encode_pixels`: latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> pixels (H, W, 3) each."""
    pictures = [np.empty((layout.height, layout.width, 3), np.uint8) for layout in layouts]
    canvas_rows, canvas_columns = latents.shape[2:]
    cut = list(tiles(canvas_rows, canvas_columns, tile_cells(layouts[0], tile), parts.decoder_reach))
    for ys, xs, inner_ys, inner_xs in cut:
        top, left = (ys.start + inner_ys.start) * CELL, (xs.start + inner_xs.start) * CELL
        if all(top >= layout.height or left >= layout.width for layout in layouts):  # nothing to see there
            report(1 / len(cut))
            continue
        inner = (slice(inner.start * CELL, inner.stop * CELL) for inner in (inner_ys, inner_xs))
        part = parts.decode(latents[:, :, ys, xs], known[:, :, ys, xs])[:, *inner]
        for layout, picture, decoded in zip(layouts, pictures, part, strict=True):
            inside = decoded[: max(0, layout.height - top), : max(0, layout.width - left)]
            picture[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        report(1 / len(cut))
    return pictures
