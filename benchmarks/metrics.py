"""How far a picture is from its original: PSNR, MS-SSIM, LPIPS. Pictures are uint8 (H, W, 3), RGB, at their original size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from bitstream.errors import ModelError

Pixels = NDArray[np.uint8]
STAGES = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # AlexNet's convolutions: index, stride, padding


def psnr(picture: Pixels, original: Pixels) -> float:
    """Peak signal to noise ratio over all channels, dB."""
    error = np.square(picture.astype(np.float64) - original).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ms_ssim(picture: Pixels, original: Pixels) -> float:
    """MS-SSIM (Wang et al. 2003) on RGB, the mean of the channels. Both sides must be above 160 pixels."""
    x, y = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (picture, original))
    return float(multiscale_structural_similarity_index_measure(x, y, data_range=255.0))


class LPIPS(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang et al., 1801.03924), as torchmetrics computes it, from an npz file with AlexNet's
    convolutions `features.N.weight`, `.bias` and the linear layers `linK.weight`. The yardstick, never a loss."""

    shift: Tensor
    scale: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in arrays.files:
                    self.register_buffer(name.replace(".", "__"), torch.from_numpy(arrays[name]))
        except (OSError, ValueError) as error:
            msg = f"{path}: not a file of LPIPS weights ({error})"
            raise ModelError(msg) from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """(1, 3, H, W) in [-1, 1] -> unit-normalised features of the five stages."""
        x = (x - self.shift) / self.scale
        out = []
        for stage, (index, stride, padding) in enumerate(STAGES):
            if stage in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (getattr(self, f"features__{index}__{part}") for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            out.append(x / ((x.pow(2).sum(1, keepdim=True) + 1e-12).sqrt() + 1e-10))
        return out

    @torch.inference_mode()
    def distance(self, picture: Pixels, original: Pixels) -> float:
        """LPIPS of two pictures; 0 for equal ones."""
        pair = [torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1 for p in (picture, original)]
        total = 0.0
        for stage, (a, b) in enumerate(zip(*map(self.features, pair), strict=True)):
            weight = getattr(self, f"lin{stage}__weight").view(1, -1, 1, 1)
            total += float(((a - b).pow(2) * weight).sum(1).mean())
        return total
