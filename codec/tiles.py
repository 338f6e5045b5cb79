"""The convolutional ends of the codec over pictures of any size: whole where they fit, in tiles where they do not.

A tile is computed with a halo that covers the reach of the network, so that its inside is what the whole picture would give.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.layout import BLOCK_CELLS, CELL, Layout
from codec.network import Network

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


def tile_cells(layout: Layout, tile: int | None) -> int:
    """Side of a tile in cells; the whole canvas where it is small and no tile (in pixels) is asked for."""
    rows, columns = (count * BLOCK_CELLS for count in layout.blocks)
    if tile is None:
        tile = TILE if rows * columns * CELL**2 > WHOLE_PIXELS else max(rows, columns) * CELL
    return max(2, tile // CELL // 2 * 2)  # even, because of the decoder's 1/32 branch


@torch.inference_mode()
def encode_pixels(
    network: Network, layout: Layout, pixels: NDArray[np.uint8], device: torch.device, tile: int | None = None
) -> Tensor:
    """Pixels (H, W, 3) -> latents (1, C, h, w) of the canvas, the picture's last row and column repeated to its edge."""
    rows, columns = (count * BLOCK_CELLS for count in layout.blocks)
    latents = torch.empty(1, network.config.channels, rows, columns, device=device)
    for ys, xs, inner_ys, inner_xs in tiles(rows, columns, tile_cells(layout, tile), network.encoder.reach):
        y = np.arange(ys.start * CELL, ys.stop * CELL).clip(max=layout.height - 1)
        x = np.arange(xs.start * CELL, xs.stop * CELL).clip(max=layout.width - 1)
        part = torch.from_numpy(pixels[y[:, None], x]).to(device)
        part = part.permute(2, 0, 1)[None].float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)
        out = network.encoder(part)[:, :, inner_ys, inner_xs]
        top, left = ys.start + inner_ys.start, xs.start + inner_xs.start
        latents[:, :, top : top + out.shape[2], left : left + out.shape[3]] = out
    return latents


@torch.inference_mode()
def decode_pixels(
    network: Network, layout: Layout, latents: Tensor, known: Tensor, tile: int | None = None
) -> NDArray[np.uint8]:
    """The inverse of `encode_pixels`: latents (1, C, h, w) and map of known tokens (1, 1, h, w) -> pixels (H, W, 3)."""
    rows, columns = layout.cells  # tiles that lie outside the picture are not computed
    halo = network.decoder.reach
    pixels = np.empty((layout.height, layout.width, 3), np.uint8)
    canvas_rows, canvas_columns = latents.shape[2:]
    for ys, xs, inner_ys, inner_xs in tiles(canvas_rows, canvas_columns, tile_cells(layout, tile), halo):
        top, left = ys.start + inner_ys.start, xs.start + inner_xs.start
        if top >= rows or left >= columns:
            continue
        part = network.decoder(latents[:, :, ys, xs], known[:, :, ys, xs])
        part = part[0, :, inner_ys.start * CELL : inner_ys.stop * CELL, inner_xs.start * CELL : inner_xs.stop * CELL]
        part = part[:, : layout.height - top * CELL, : layout.width - left * CELL]
        levels = part.mul(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        out = levels.permute(1, 2, 0).cpu().numpy()
        pixels[top * CELL : top * CELL + out.shape[0], left * CELL : left * CELL + out.shape[1]] = out
    return pixels
