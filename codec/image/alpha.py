"""Transparency: separated from colours, and the colours of pixels that cannot be seen. No torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.block_order import CELL
from codec.image.colour import DEEP


def split(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """An image of any mode -> the same without alpha, and alpha (H, W); None where all is opaque."""
    if not image.has_transparency_data:
        return image, None
    if image.mode in DEEP:  # one value is said to be transparent
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    else:
        grey = image.mode in ("L", "LA", "La")
        full = image.convert("RGBA")
        alpha = np.asarray(full.getchannel("A"))
        image = full.getchannel("R") if grey else full.convert("RGB")
    return image, None if alpha.min() == 255 else alpha


def fill_hidden(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) with those that alpha (H, W) hides altogether replaced by the colours around them.

    What an image has there is often noise, or a colour that makes an edge of every outline. Nobody sees it, so it should
    cost no bits: smooth from the outline on."""
    height, width = alpha.shape
    sums, weights = _visible(pixels, alpha)
    means = _spread(sums, weights).round().astype(np.uint8)
    rows, columns = weights.shape
    smooth = Image.fromarray(means).resize((columns * CELL, rows * CELL), Image.Resampling.BILINEAR)
    return np.where(alpha[..., None] > 0, pixels, np.asarray(smooth)[:height, :width])


def _visible(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cells of 16x16: the sum of their colours (n, m, 3), each as much as it is seen, and how much that is (n, m)."""
    height, width = alpha.shape
    columns = np.arange(0, width, CELL)
    sums, weights = [], []
    for top in range(0, height, CELL):  # row by row, to bound memory
        seen = alpha[top : top + CELL].astype(np.float64)
        sums.append(np.add.reduceat((seen[..., None] * pixels[top : top + CELL]).sum(0), columns))
        weights.append(np.add.reduceat(seen.sum(0), columns))
    return np.stack(sums), np.stack(weights)


def _spread(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (n, m, 3); a cell with nothing visible takes that of the smallest square of 2, 4, 8, ... cells around it that has
    something, drawn smoothly, and grey where there is nothing at all."""
    means = np.where(weights[..., None] > 0, sums / np.maximum(weights, 1)[..., None], 127.5)
    if weights.all() or weights.size == 1:
        return means
    n, m = weights.shape
    even = ((0, n % 2), (0, m % 2))
    pairs = [np.pad(sums, (*even, (0, 0))), np.pad(weights, even)]
    sums2, weights2 = (part.reshape(-(-n // 2), 2, -(-m // 2), 2, *part.shape[2:]).sum((1, 3)) for part in pairs)
    wide = np.pad(_spread(sums2, weights2), ((1, 1), (1, 1), (0, 0)), "edge").repeat(2, 0).repeat(2, 1)
    wide = wide[:-2] / 4 + wide[1:-1] / 2 + wide[2:] / 4
    wide = wide[:, :-2] / 4 + wide[:, 1:-1] / 2 + wide[:, 2:] / 4
    return np.where(weights[..., None] > 0, means, wide[1 : n + 1, 1 : m + 1])
