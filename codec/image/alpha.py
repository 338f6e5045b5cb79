"""Transparency: separating it from colour, filling invisible pixels, and lossy alpha planes. No torch.

Like WebP, the codec first reduces the levels of an alpha plane and then codes it losslessly; values of 0 and 255 stay. A plane
may also shrink by a power of two (FORMAT.md, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from bitstream.block_order import CELL
from codec.errors import ImageError
from codec.image.colour import MODES_16_BIT, STRIP_ROWS

LOSSLESS_QUALITY = 100
DEFAULT_ALPHA_QUALITY = 75
SHRINKS = (0, 1, 2, 3)  # base-2 logarithms of the factor that both sides are divided by
LEVEL_COUNTS = (4, 8, 16, 32, 64, 128)


def split_alpha(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Splits an image of any mode into the image without alpha, and alpha (H, W); None if all pixels are opaque."""
    if not image.has_transparency_data:
        return image, None
    if image.mode in MODES_16_BIT:  # one value of the file is transparent
        alpha = np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    else:
        if image.mode == "La":  # Pillow converts it to LA alone
            image = image.convert("LA")
        grey = image.mode in ("1", "L", "LA")
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        image = rgba.getchannel("R") if grey else rgba.convert("RGB")
    return image, None if alpha.min() == 255 else alpha


def fill_hidden(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> None:
    """Replaces invisible pixels in (H, W, 3), whose alpha (H, W) is 0, by smooth colours from their surroundings.

    Images often have noise there, or a colour with an edge along every outline. Replacing these colours avoids spending bits on
    pixels that are never seen."""
    height, width = alpha.shape
    starts = np.arange(0, width, CELL)
    sums, weights = [], []  # sums over cells of 16x16 pixels: colours weighted by alpha, and alpha
    for top in range(0, height, CELL):  # one row of cells at a time, to bound memory
        strip = alpha[top : top + CELL].astype(np.float64)
        sums.append(np.add.reduceat((strip[..., None] * pixels[top : top + CELL]).sum(0), starts))
        weights.append(np.add.reduceat(strip.sum(0), starts))
    means = _push_pull(np.stack(sums), np.stack(weights)).round().astype(np.uint8)
    rows, columns = means.shape[:2]
    cells = Image.fromarray(means)
    for top in range(0, rows, STRIP_ROWS // CELL):
        bottom = min(top + STRIP_ROWS // CELL, rows)
        size, box = (columns * CELL, (bottom - top) * CELL), (0, top, columns, bottom)
        smooth = np.asarray(cells.resize(size, Image.Resampling.BILINEAR, box))
        span = slice(top * CELL, bottom * CELL)
        hidden = alpha[span, :, None] == 0
        np.copyto(pixels[span], smooth[: len(hidden), :width], where=hidden)


def _push_pull(sums: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean colours (n, m, 3) of cells with weighted sums (n, m, 3) and weights (n, m).

    A cell of weight 0 takes the smoothed mean of the smallest square of 2, 4, 8, ... cells around it that has a weight, or grey
    if none has (push-pull interpolation: Gortler et al., The Lumigraph, 1996)."""
    means = np.where(weights[..., None] > 0, sums / np.maximum(weights, 1)[..., None], 127.5)
    if weights.all() or weights.size == 1:
        return means
    n, m = weights.shape
    to_even = ((0, n % 2), (0, m % 2))
    padded = [np.pad(sums, (*to_even, (0, 0))), np.pad(weights, to_even)]
    half_size = (array.reshape(-(-n // 2), 2, -(-m // 2), 2, *array.shape[2:]).sum((1, 3)) for array in padded)
    coarse = np.pad(_push_pull(*half_size), ((1, 1), (1, 1), (0, 0)), "edge").repeat(2, 0).repeat(2, 1)
    coarse = coarse[:-2] / 4 + coarse[1:-1] / 2 + coarse[2:] / 4
    coarse = coarse[:, :-2] / 4 + coarse[:, 1:-1] / 2 + coarse[:, 2:] / 4
    return np.where(weights[..., None] > 0, means, coarse[1 : n + 1, 1 : m + 1])


def flatten(rgb: Image.Image, alpha: NDArray[np.uint8], background: str) -> Image.Image:
    """An RGB image with opacity `alpha` (H, W) composited on a CSS colour."""
    canvas = Image.new("RGB", rgb.size, parse_colour(background)[:3])
    return Image.composite(rgb, canvas, Image.fromarray(alpha))


def parse_colour(name: str) -> tuple[int, ...]:
    """A CSS colour such as white, #fff or rgb(0,0,0) -> RGBA. Raises ImageError if it is not a colour."""
    try:
        return ImageColor.getcolor(name, "RGBA")  # type: ignore[return-value]
    except ValueError as error:
        msg = f"{name!r} is not a colour: use a name such as white, or #rrggbb"
        raise ImageError(msg) from error


def lossy_planes(alpha: NDArray[np.uint8], quality: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yields planes that approximate alpha (H, W) within the error that a quality allows, as (shrink, (n, m)).

    Yields at most one plane per shrink, with the fewest levels."""
    for shrink in SHRINKS:
        means = shrink_plane(alpha, shrink)
        for count in LEVEL_COUNTS:
            levels = (means.astype(np.uint16) * (count - 1) + 127) // 255
            plane = (levels * 255 // (count - 1)).astype(np.uint8)
            if _rms_error(alpha, enlarge_plane(plane, shrink, *alpha.shape)) <= max_rms_error(quality):
                yield shrink, plane
                break


def max_rms_error(quality: int) -> float:
    """The root mean square error (of 255) that a quality below 100 allows: 2.5 at 75, 10 at 50, 40 at 0."""
    return (LOSSLESS_QUALITY - quality) ** 2 / 250


def _rms_error(alpha: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Root mean square error over the pixels that differ or are neither transparent nor opaque."""
    counted = (alpha != other) | ((alpha > 0) & (alpha < 255))
    difference = alpha[counted].astype(np.float32) - other[counted]
    return float(np.sqrt(np.square(difference).mean())) if difference.size else 0.0


def shrink_plane(alpha: NDArray[np.uint8], shrink: int) -> NDArray[np.uint8]:
    """(H, W) -> (ceil(H / 2^shrink), ceil(W / 2^shrink)): the mean of each square, with edges repeated."""
    side = 1 << shrink
    padded = np.pad(alpha, [(0, -length % side) for length in alpha.shape], "edge")
    sums = np.zeros((padded.shape[0] // side, padded.shape[1] // side), np.uint16)
    for row in range(side):
        for column in range(side):
            sums += padded[row::side, column::side]
    return ((sums + side * side // 2) // (side * side)).astype(np.uint8)


def enlarge_plane(plane: NDArray[np.uint8], shrink: int, height: int, width: int) -> NDArray[np.uint8]:
    """(n, m) -> (height, width): bilinear interpolation between the centres of squares, in integers."""
    if not shrink:
        return plane
    double = 2 << shrink
    above, below, below_weight = _neighbours(height, shrink, plane.shape[0])
    left, right, right_weight = _neighbours(width, shrink, plane.shape[1])
    alpha = np.empty((height, width), np.uint8)
    for top in range(0, height, STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        weight = below_weight[strip, None]
        rows = plane[above[strip]].astype(np.uint32) * (double - weight) + plane[below[strip]].astype(np.uint32) * weight
        total = rows[:, left] * (double - right_weight) + rows[:, right] * right_weight
        alpha[strip] = (total + double * double // 2) // (double * double)
    return alpha


def _neighbours(size: int, shrink: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.uint32]]:
    """For each of `size` pixels, the indexes of the squares (of `count`) with the nearest centres before and after it, and the
    weight of the second square, out of 2^(shrink + 1)."""
    first, weight = np.divmod(2 * np.arange(size) + 1 - (1 << shrink), 2 << shrink)
    return first.clip(0, count - 1), (first + 1).clip(0, count - 1), weight.astype(np.uint32)
