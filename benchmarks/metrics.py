"""How far a picture is from its original: PSNR and MS-SSIM; LPIPS is in `codec.lpips`. Both pictures are of one size."""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from benchmarks.results import Pixels


def psnr(picture: Pixels, original: Pixels) -> float:
    """Peak signal to noise ratio over all channels, dB."""
    error = np.square(picture.astype(np.float64) - original).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ms_ssim(picture: Pixels, original: Pixels) -> float:
    """MS-SSIM (Wang et al. 2003) on RGB, the mean of the channels. Both sides must be above 160 pixels."""
    x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (picture, original))
    return float(multiscale_structural_similarity_index_measure(x, y, data_range=255.0))
