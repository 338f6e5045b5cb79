"""LPIPS, the perceptual distance (Zhang et al., 1801.03924): version 0.1 on AlexNet, as torchmetrics computes it.

Written out here, since torchmetrics gets AlexNet from torchvision, which only imports beside the large build of torch that it
pins. A test holds it to torchmetrics where both are there. It is the yardstick, and a target when encoding; never a loss.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bitstream.errors import ModelError

STAGES = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # AlexNet's convolutions: index, stride, padding
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file in the torch cache
LINEAR = "functional/image/lpips_models/alex.pth"  # in torchmetrics: what a channel's difference counts for
ADVICE = (
    "give an .npz of `features.N.weight`, `.bias` and `linK.weight`, "
    f"or put torchvision's {ALEXNET} into the torch cache and install torchmetrics"
)


def read_weights(path: Path | None = None) -> dict[str, Tensor]:
    """`features.N.weight` (OIHW), `features.N.bias` and `linK.weight` (channels,) from an .npz file; without a path, from the
    torch cache and the installed torchmetrics. Raises ModelError where they are not to be had."""
    try:
        if path is not None:
            with np.load(path, allow_pickle=False) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            weights = _cached_weights()
        for stage, (index, _, _) in enumerate(STAGES):
            for name in (f"features.{index}.weight", f"features.{index}.bias", f"lin{stage}.weight"):
                weights[name] = weights[name].float()
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        msg = f"LPIPS weights cannot be read from {path or 'the torch cache'} ({error}): {ADVICE}"
        raise ModelError(msg) from error
    return weights


def _cached_weights() -> dict[str, Tensor]:
    package = importlib.util.find_spec("torchmetrics")
    if package is None or package.origin is None:
        msg = "torchmetrics is not installed"
        raise OSError(msg)
    features = torch.load(Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET, "cpu", weights_only=True)
    linear = torch.load(Path(package.origin).parent / LINEAR, "cpu", weights_only=True)
    return features | {f"lin{stage}.weight": linear[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(STAGES))}


class LPIPS(nn.Module):
    """The distance of two pictures; 0 for equal ones. `path` as for `read_weights`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        for name, value in read_weights(path).items():
            self.register_buffer(name.replace(".", "__"), value)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> unit-normalised features of the five stages."""
        x = (x - self.shift) / self.scale
        out = []
        for stage, (index, stride, padding) in enumerate(STAGES):
            if stage in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (getattr(self, f"features__{index}__{part}") for part in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            out.append(x / (x.pow(2).sum(1, keepdim=True) + 1e-8).sqrt())
        return out

    def between(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distance (B,) of two batches by their features."""
        distances = []
        for stage, (a, b) in enumerate(zip(one, other, strict=True)):
            weight = getattr(self, f"lin{stage}__weight").view(1, -1, 1, 1)
            distances.append(((a - b).pow(2) * weight).sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] -> (B,)."""
        return self.between(self.features(x), self.features(reference))

    @torch.inference_mode()
    def look(self, picture: NDArray[np.uint8]) -> list[Tensor]:
        """The features of a picture (H, W, 3), uint8: to be kept where it is compared with many. Both sides must be at least
        31 pixels, or AlexNet has nothing to look at."""
        pixels = torch.from_numpy(picture.astype(np.float32)).to(self.shift.device)
        return self.features(pixels.permute(2, 0, 1)[None] / 127.5 - 1)

    @torch.inference_mode()
    def distance(self, picture: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
        """LPIPS of two pictures, as `look` takes them."""
        return float(self.between(self.look(picture), self.look(original)))
