"""Image quality: MS-SSIM, SSIMULACRA2 and colour. PSNR and LPIPS are in `codec.metrics`, recognition by a classifier in
`benchmarks.recognition`. Both images have the same size."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_msssim import ms_ssim as torch_ms_ssim

from benchmarks.measurements import Pixels

SMALLEST_MS_SSIM = 161  # pixels of the shorter side: five scales of an 11x11 window
COLOUR_SIDE = 16  # pixels: smaller spots of a wrong colour are hardly seen
SRGB_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))  # D65
SMALLEST_SSIMULACRA2 = 8  # pixels: below, there is no scale to look at
SMALLEST_LPIPS = 31  # AlexNet's last stage has a place to look at


def ms_ssim(image: Pixels, original: Pixels) -> float:
    """MS-SSIM (Wang et al. 2003) on RGB, the mean of the channels, by the library that compressai's curves were made with.
    Both sides must be at least SMALLEST_MS_SSIM."""
    x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (image, original))
    return float(torch_ms_ssim(x, y, data_range=255.0))


def ssimulacra2(image: Pixels, original: Pixels) -> float:
    """SSIMULACRA 2.1 (Sneyers, cloudinary/ssimulacra2) by the port of the package ssimulacra2: 100 is the original, 90 cannot
    be told from it, 50 is medium quality, and far below 0 is possible."""
    from ssimulacra2 import compute_ssimulacra2

    files = []
    for pixels in (original, image):
        files.append(io.BytesIO())
        Image.fromarray(pixels).save(files[-1], "PPM")
    return float(compute_ssimulacra2(*files))


def cielab(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB (..., 3) in 0..255 -> CIELAB (..., 3) for the white of D65 (CIE 15, IEC 61966-2-1): L in 0..100."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = np.array(SRGB_TO_XYZ)
    ratio = linear @ (matrix / matrix.sum(1, keepdims=True)).T
    x, y, z = np.moveaxis(np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colour_error(image: Pixels, original: Pixels) -> float:
    """Mean distance in CIELAB (CIE 1976) of the mean colours of squares of 16x16 pixels, whole or in part in the image."""
    rows, columns = (np.arange(0, side, COLOUR_SIDE) for side in original.shape[:2])

    def means(pixels: Pixels) -> NDArray[np.float64]:
        sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, 0), columns, 1)
        counts = np.outer(np.diff(rows, append=pixels.shape[0]), np.diff(columns, append=pixels.shape[1]))
        return cielab(sums / counts[..., None])

    return float(np.linalg.norm(means(image) - means(original), axis=-1).mean())
