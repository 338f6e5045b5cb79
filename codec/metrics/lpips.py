"""LPIPS, the perceptual distance (Zhang et al., 1801.03924): version 0.1 on AlexNet, as torchmetrics computes it.

Written out here, since torchmetrics gets AlexNet from torchvision, which only imports beside the large build of torch that it
pins. A test holds it to torchmetrics where both are there. It is the yardstick, and a target when encoding; never a loss.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.errors import ModelError
from codec.system.files import data_folder

STAGES = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # AlexNet's convolutions: index, stride, padding
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file in the torch cache
LINEAR = "functional/image/lpips_models/alex.pth"  # in torchmetrics: what a channel's difference counts for
ADVICE = "run `tessera models fetch lpips`, or give an .npz of `features.N.weight`, `features.N.bias` and `linK.weight`"


def user_weights() -> Path:
    """Where `codec.metrics.download` puts the weights, for all of a user's programs."""
    return data_folder() / "lpips_alex.npz"


def read_weights(path: Path | None = None) -> dict[str, Tensor]:
    """`features.N.weight` (OIHW), `features.N.bias` and `linK.weight` (channels,) from an .npz file; without a path, from the
    user's data folder, or else from the torch cache and the installed torchmetrics. Raises ModelError if there are none."""
    place = path or user_weights()
    try:
        if path is None and not place.exists():
            place = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
            weights = _cached_weights(place)
        else:
            with np.load(place, allow_pickle=False) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return {name: weights[name].float() for name in _names()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        msg = f"LPIPS weights cannot be read from {place} ({error}): {ADVICE}"
        if path is None and place != user_weights():
            msg = f"LPIPS weights are neither at {user_weights()} nor in the torch cache ({error}): {ADVICE}"
        raise ModelError(msg) from error


def _names() -> list[str]:
    features = [f"features.{index}.{part}" for index, _, _ in STAGES for part in ("weight", "bias")]
    return features + [f"lin{stage}.weight" for stage in range(len(STAGES))]


def _cached_weights(alexnet: Path) -> dict[str, Tensor]:
    package = importlib.util.find_spec("torchmetrics")
    if package is None or package.origin is None:
        msg = "torchmetrics is not installed"
        raise OSError(msg)
    linear = torch.load(Path(package.origin).parent / LINEAR, "cpu", weights_only=True)
    return combined(torch.load(alexnet, "cpu", weights_only=True), linear)


def combined(alexnet: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What LPIPS needs of torchvision's AlexNet and of LPIPS's own file."""
    own = {f"lin{stage}.weight": linear[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(STAGES))}
    return {name: own[name] if name in own else alexnet[name] for name in _names()}


class LPIPS(nn.Module):
    """The distance of two images; 0 for equal ones. `path` as for `read_weights`."""

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
    def look(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """The features of an image (H, W, 3), uint8: to be kept where it is compared with many. Both sides must be at least
        31 pixels, or AlexNet has nothing to look at."""
        pixels = torch.from_numpy(image.astype(np.float32)).to(self.shift.device)
        return self.features(pixels.permute(2, 0, 1)[None] / 127.5 - 1)

    @torch.inference_mode()
    def distance(self, image: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
        """LPIPS of two images, as `look` takes them."""
        return float(self.between(self.look(image), self.look(original)))
