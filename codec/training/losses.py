"""Losses that families share. Each is one number per sample: perceptual distance, colour distance, pattern distance.

The perceptual distance compares features of VGG19 (Simonyan & Zisserman, arXiv 1409.1556; as a loss, Johnson et al.,
1603.08155). This project measures quality by LPIPS on AlexNet and therefore never trains on it: a model trained on it for
minutes scored well with blurred images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.training.vgg import LAYERS, read_vgg

POOLED_LAYERS = ("conv2_1", "conv3_1")  # preceded by 2x2 max pooling
COMPARED_LAYERS = ("conv1_2", "conv2_2", "conv3_4")
WINDOWS = (8, 4, 4)  # sides of windows of local statistics, in positions of each compared layer: 8, 8 and 16 pixels
MIN_NORM = 1e-4  # shorter feature vectors have no direction, as after a ReLU
MIN_STATISTICS_NORM = 1e-2  # divisor of shorter feature vectors in local statistics
MIN_VARIANCE = 1e-5  # keeps the gradient of a deviation finite; normalised features have some thousandths


class PerceptualLoss(nn.Module):
    """Distance of unit-normalised VGG19 features.

    `path` is a weights file for `read_vgg`. Raises ModelError if it cannot be read."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        vgg = read_vgg(path)
        for name in LAYERS:
            weight, bias = (vgg.weights[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
            self.register_buffer(f"{name}_weight", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"{name}_bias", bias)
        self.scale, self.bgr, self.origin = vgg.scale, vgg.bgr, vgg.origin
        self.register_buffer("mean", torch.tensor(vgg.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(vgg.std).view(1, 3, 1, 1))

    def forward(self, x: Tensor, reference: Tensor, aligned: float = 1.0, local: float = 0.0) -> Tensor:
        """Distance (B,) of two batches (B, 3, H, W) in [-1, 1], mean over the compared layers.

        `aligned` weighs the squared distance of features at the same position, which is 2 - 2 cos of the angle between them;
        `local` weighs the distance of their local statistics."""
        with torch.no_grad():
            reference_features = list(self.features(reference))
        distances = []
        for features, target, window in zip(self.features(x), reference_features, WINDOWS, strict=True):
            distance = aligned * (2 - 2 * Cosine.apply(features, target).mean((1, 2)))
            if local:
                distance = distance + local * local_distance(features, target, window)
            distances.append(distance)
        return torch.stack(distances).mean(0)

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """The outputs of the compared layers."""
        x = ((x.flip(1) if self.bgr else x) + 1) * self.scale
        x = (x - self.mean) / self.std
        for name in LAYERS:
            if name in POOLED_LAYERS:
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=1))
            if name in COMPARED_LAYERS:
                yield x


class Cosine(torch.autograd.Function):
    """Cosine (B, h, w), float32, of the angle between features (B, C, h, w) and reference features; 0 if either has no
    direction. Only the features have a gradient.

    The gradient of `torch.cosine_similarity` reads all features ten times and takes a tenth of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor) -> Tensor:
        dot = (x * reference).sum(1, keepdim=True, dtype=torch.float32)
        norm, reference_norm = (
            torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float32) for features in (x, reference)
        )
        scale = torch.where(norm * reference_norm > MIN_NORM**2, 1 / (norm * reference_norm), 0)
        cosine = dot * scale
        ctx.save_for_backward(x, reference, scale, cosine / norm.square().clamp(min=MIN_NORM**2))
        return cosine[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, reference, scale, along = ctx.saved_tensors
        gradient = gradient[:, None]
        return (reference * (gradient * scale).to(x.dtype)).addcmul_(x, (gradient * -along).to(x.dtype)), None


def local_distance(x: Tensor, reference: Tensor, window: int) -> Tensor:
    """Squared distance (B,) of local means and standard deviations of unit-normalised features (B, C, h, w), as in Wasserstein
    distortion (Qiu et al., arXiv 2310.03629; as a loss, Ballé et al., 2412.00505). Windows overlap by half.

    Blurred texture has the smallest distance of features at the same position, but its local deviations are too small for this
    distance. Slightly shifted texture has a small one."""
    with torch.autocast(x.device.type, enabled=False):
        mean, deviation = _local_statistics(x.float(), window)
        with torch.no_grad():
            reference_mean, reference_deviation = _local_statistics(reference.float(), window)
        return ((mean - reference_mean).square() + (deviation - reference_deviation).square()).sum(1).mean((1, 2))


def _local_statistics(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=MIN_STATISTICS_NORM)
    mean = F.avg_pool2d(x, window, window // 2)
    variance = F.avg_pool2d(x.square(), window, window // 2) - mean.square()
    return mean, (variance.clamp(min=0) + MIN_VARIANCE).sqrt()


# Matrices of OKLab (Ottosson 2020): linear sRGB to cone responses, and their cube roots to lightness and two colour axes
OKLAB_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
OKLAB_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
COLOUR_SCALES = (8, 16, 32)  # pixels


def colour_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Squared distance (B,) in OKLab of the mean colours of squares of 8, 16 and 32 pixels, for (B, 3, H, W) in [-1, 1].

    People notice a wrong colour of an area long before it changes squared error or normalised features much."""
    distances = []
    with torch.autocast(x.device.type, enabled=False):
        x, reference, previous = x.float(), reference.float(), 1
        for scale in COLOUR_SCALES:  # means of the means at the previous scale
            x, reference = F.avg_pool2d(x, scale // previous), F.avg_pool2d(reference, scale // previous)
            distances.append((oklab(x) - oklab(reference)).pow(2).sum(1).mean((1, 2)))
            previous = scale
    return torch.stack(distances).mean(0)


def oklab(x: Tensor) -> Tensor:
    """OKLab of sRGB (B, 3, H, W) in [-1, 1]: L in 0..1, a and b about -0.4..0.4."""
    encoded = ((x + 1) / 2).clamp(1e-3, 1)
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lms = torch.einsum("ck,bkhw->bchw", linear.new_tensor(OKLAB_LMS), linear)
    return torch.einsum("ck,bkhw->bchw", linear.new_tensor(OKLAB_LAB), lms.clamp(min=1e-6) ** (1 / 3))


PATTERN_PERIOD = 8  # pixels; the period of the decoder's last two pixel shuffles
PATTERN_REPETITIONS = 8  # periods per axis in the area that the error is averaged over


def pattern_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Squared error (B,) that repeats every 8 pixels within areas of 64x64, for (B, 3, H, W) in [-1, 1].

    Such a pattern looks like texture to VGG19, but not to people. Real texture averages out, since its phase varies."""
    with torch.autocast(x.device.type, enabled=False):
        phases = F.avg_pool2d(F.pixel_unshuffle(x.float() - reference.float(), PATTERN_PERIOD), PATTERN_REPETITIONS)
        phases = phases.unflatten(1, (x.shape[1], PATTERN_PERIOD**2))
        return (phases - phases.mean(2, keepdim=True)).pow(2).mean((1, 2, 3, 4))
