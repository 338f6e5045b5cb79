"""The perceptual loss: distance of VGG19 features (Simonyan & Zisserman, 1409.1556; as a loss, Johnson et al. 1603.08155).

LPIPS on AlexNet is this project's yardstick and therefore never a loss: a model trained on it for minutes scored well with
blurs that nobody would keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.training.vgg import LAYERS, read_vgg

POOLED = ("conv2_1", "conv3_1")  # a 2x2 maximum comes before these
SHORT = 1e-4  # length of features that count as none
COMPARED = ("conv1_2", "conv2_2", "conv3_4")
WINDOWS = (8, 4, 4)  # of local statistics, in features of each: 8, 8 and 16 pixels
SHORTER = 1e-2  # length that features are at least taken to have where statistics are made of them
LEAST_VARIANCE = 1e-5  # keeps the gradient of a deviation finite; features of unit length have some thousandths


class PerceptualLoss(nn.Module):
    """Mean squared distance of unit-normalised features, one number per sample: 2 - 2 cos of the angle between them.

    `path` is a file of VGG19 as `read_vgg` takes it. Raises ModelError where it cannot be read."""

    mean: Tensor
    spread: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        vgg = read_vgg(path)
        for name in LAYERS:
            weight, bias = (vgg.weights[f"{name}.{part}"].float() for part in ("weight", "bias"))
            self.register_buffer(f"{name}_weight", weight.contiguous(memory_format=torch.channels_last))
            self.register_buffer(f"{name}_bias", bias)
        self.scale, self.bgr, self.origin = vgg.scale, vgg.bgr, vgg.origin
        self.register_buffer("mean", torch.tensor(vgg.mean).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor(vgg.spread).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> Iterator[Tensor]:
        x = ((x.flip(1) if self.bgr else x) + 1) * self.scale
        x = (x - self.mean) / self.spread
        for name in LAYERS:
            if name in POOLED:
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), padding=1))
            if name in COMPARED:
                yield x

    def forward(self, x: Tensor, reference: Tensor, aligned: float = 1.0, local: float = 0.0) -> Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> (B,): `aligned` times the distance place by place, and `local` times that of
        the features' local statistics."""
        with torch.no_grad():
            targets = list(self.features(reference))
        distances = []
        for mine, theirs, window in zip(self.features(x), targets, WINDOWS, strict=True):
            distance = aligned * (2 - 2 * Cosine.apply(mine, theirs).mean((1, 2)))
            if local:
                distance = distance + local * local_distance(mine, theirs, window)
            distances.append(distance)
        return torch.stack(distances).mean(0)


def local_distance(x: Tensor, reference: Tensor, window: int) -> Tensor:
    """Squared distance of the means and standard deviations of unit-normalised features (B, C, h, w) over windows that overlap
    by half -> (B,), as in Wasserstein distortion (Qiu et al. 2310.03629; as a loss, Ballé et al. 2412.00505).

    A blur is the best guess of features place by place. Here it is wrong, since the deviations are missing, and texture that
    lies a little elsewhere is right."""
    with torch.autocast(x.device.type, enabled=False):
        mean, deviation = _local_statistics(x.float(), window)
        with torch.no_grad():
            their_mean, their_deviation = _local_statistics(reference.float(), window)
        return ((mean - their_mean).square() + (deviation - their_deviation).square()).sum(1).mean((1, 2))


def _local_statistics(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=SHORTER)
    mean = F.avg_pool2d(x, window, window // 2)
    variance = F.avg_pool2d(x.square(), window, window // 2) - mean.square()
    return mean, (variance.clamp(min=0) + LEAST_VARIANCE).sqrt()


class Cosine(torch.autograd.Function):
    """Features (B, C, h, w) and those of a reference -> cosine of the angle between them (B, h, w), float32, with the gradient
    of the former alone. That of `torch.cosine_similarity` goes ten times over all features: a tenth of a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor) -> Tensor:
        """A cosine is 0 where either has no length, as after a ReLU."""
        dot = (x * reference).sum(1, keepdim=True, dtype=torch.float32)
        mine, theirs = (torch.linalg.vector_norm(each, dim=1, keepdim=True, dtype=torch.float32) for each in (x, reference))
        scale = torch.where(mine * theirs > SHORT**2, 1 / (mine * theirs), 0)
        cosine = dot * scale
        ctx.save_for_backward(x, reference, scale, cosine / mine.square().clamp(min=SHORT**2))
        return cosine[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, reference, scale, along = ctx.saved_tensors
        gradient = gradient[:, None]
        return (reference * (gradient * scale).to(x.dtype)).addcmul_(x, (gradient * -along).to(x.dtype)), None


# Matrices of OKLab: linear sRGB to cone responses, and their cube roots to lightness and two colour axes.
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


def oklab(x: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [-1, 1] -> OKLab (Ottosson 2020): L in 0..1, a and b about -0.4..0.4."""
    encoded = ((x + 1) / 2).clamp(1e-3, 1)
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lms = torch.einsum("ck,bkhw->bchw", linear.new_tensor(OKLAB_LMS), linear)
    return torch.einsum("ck,bkhw->bchw", linear.new_tensor(OKLAB_LAB), lms.clamp(min=1e-6) ** (1 / 3))


def colour_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Squared distance in OKLab of means over squares of 8, 16 and 32 pixels: (B, 3, H, W) twice, in [-1, 1] -> (B,).

    Eyes see a wrong colour of an area long before squared error or normalised features do."""
    distances = []
    with torch.autocast(x.device.type, enabled=False):
        means, before = (x.float(), reference.float()), 1
        for scale in COLOUR_SCALES:  # each the means of the last one's
            means = (F.avg_pool2d(means[0], scale // before), F.avg_pool2d(means[1], scale // before))
            distances.append((oklab(means[0]) - oklab(means[1])).pow(2).sum(1).mean((1, 2)))
            before = scale
    return torch.stack(distances).mean(0)


PATTERN = 8  # pixels after which a pattern repeats: those of the decoder's last two shuffles
AREA = 8  # repetitions of it, each way, that are looked at


def pattern_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Squared error that repeats every 8 pixels over areas of 64x64: (B, 3, H, W) twice, in [-1, 1] -> (B,).

    Features of VGG19 take such a pattern for texture; eyes do not. Texture of its own phase everywhere averages out."""
    with torch.autocast(x.device.type, enabled=False):
        phases = F.avg_pool2d(F.pixel_unshuffle(x.float() - reference.float(), PATTERN), AREA)
        phases = phases.unflatten(1, (x.shape[1], PATTERN**2))
        return (phases - phases.mean(2, keepdim=True)).pow(2).mean((1, 2, 3, 4))
