"""How far a picture is from its original: PSNR and MS-SSIM; LPIPS is in `codec.lpips`. Both pictures are of one size."""

from __future__ import annotations

import numpy as np
import torch
from pytorch_msssim import ms_ssim as torch_ms_ssim

from benchmarks.results import Pixels

SMALLEST_MS_SSIM = 161  # pixels of the shorter side: five scales of an 11x11 window
SMALLEST_LPIPS = 31  # AlexNet's last stage has a place to look at


def psnr(picture: Pixels, original: Pixels) -> float:
    """Peak signal to noise ratio over all channels, dB."""
    error = np.square(picture.astype(np.float64) - original).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ms_ssim(picture: Pixels, original: Pixels) -> float:
    """MS-SSIM (Wang et al. 2003) on RGB, the mean of the channels, by the library that compressai's curves were made with.
    Both sides must be at least SMALLEST_MS_SSIM."""
    x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (picture, original))
    return float(torch_ms_ssim(x, y, data_range=255.0))
