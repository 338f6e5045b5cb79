"""LPIPS, the perceptual distance (Zhang et al., arXiv 1801.03924): version 0.1 on AlexNet, as torchmetrics computes it.

It is implemented here because torchmetrics takes AlexNet from torchvision, which can only be imported with the large build of
torch that it pins. A test compares both. This project measures quality with LPIPS and offers it as an encoding target, but
never trains on it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.errors import FileError, ModelError
from codec.system.files import data_folder

STAGES = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # convolutions of AlexNet: index, stride, padding
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file in torch's cache
LINEAR = "functional/image/lpips_models/alex.pth"  # torchmetrics' file of channel weights
ADVICE = "run `tessera models fetch lpips`, or give an .npz of `features.N.weight`, `features.N.bias` and `linK.weight`"


class LPIPS(nn.Module):
    """The distance of two images, 0 for equal images. `path` is a file of weights as for `read_weights`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        for name, value in read_weights(path).items():
            self.register_buffer(name.replace(".", "__"), value)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    @torch.inference_mode()
    def distance(self, image: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
        """LPIPS of two images (H, W, 3) uint8. Both sides must be at least 31 pixels, the smallest input of AlexNet."""
        return float(self.compare(self.image_features(image), self.image_features(original)))

    @torch.inference_mode()
    def image_features(self, image: NDArray[np.uint8]) -> list[Tensor]:
        """The features of one image (H, W, 3) uint8, to be kept if it is compared with many."""
        pixels = torch.from_numpy(image.astype(np.float32)).to(self.shift.device)
        return self.features(pixels.permute(2, 0, 1)[None] / 127.5 - 1)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distance (B,) of two batches (B, 3, H, W) in [-1, 1]."""
        return self.compare(self.features(x), self.features(reference))

    def features(self, x: Tensor) -> list[Tensor]:
        """The unit-normalised features of the five stages, from (B, 3, H, W) in [-1, 1]."""
        x = (x - self.shift) / self.scale
        features = []
        for stage, (index, stride, padding) in enumerate(STAGES):
            if stage in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            weight, bias = (getattr(self, f"features__{index}__{kind}") for kind in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            features.append(x / (x.pow(2).sum(1, keepdim=True) + 1e-8).sqrt())
        return features

    def compare(self, features: list[Tensor], reference: list[Tensor]) -> Tensor:
        """Distance (B,) of two batches, from their features."""
        distances = []
        for stage, (a, b) in enumerate(zip(features, reference, strict=True)):
            weight = getattr(self, f"lin{stage}__weight").view(1, -1, 1, 1)
            distances.append(((a - b).pow(2) * weight).sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)


def installed_weights() -> Path:
    """The file that `codec.metrics.download` writes."""
    return data_folder() / "lpips_alex.npz"


def read_weights(path: Path | None = None) -> dict[str, Tensor]:
    """`features.N.weight` (OIHW), `features.N.bias` and `linK.weight` (channels,) from an .npz file.

    Without a path, from `installed_weights`, or else from torch's cache and the installed torchmetrics. Raises ModelError if
    there are none."""
    installed = None
    with suppress(FileError):  # a user without a home folder has installed none
        installed = installed_weights()
    source = path or installed
    try:
        if source is None or (path is None and not source.exists()):
            source = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
            weights = _cached_weights(source)
        else:
            with np.load(source, allow_pickle=False) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return {name: weights[name].float() for name in _names()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        msg = f"LPIPS weights cannot be read from {source} ({error}): {ADVICE}"
        if path is None and source != installed:
            msg = f"LPIPS weights are neither at {installed or 'home'} nor in the torch cache ({error}): {ADVICE}"
        raise ModelError(msg) from error


def _cached_weights(alexnet: Path) -> dict[str, Tensor]:
    package = importlib.util.find_spec("torchmetrics")
    if package is None or package.origin is None:
        msg = "torchmetrics is not installed"
        raise OSError(msg)
    linear = torch.load(Path(package.origin).parent / LINEAR, "cpu", weights_only=True)
    return combine_weights(torch.load(alexnet, "cpu", weights_only=True), linear)


def combine_weights(alexnet: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LPIPS weights under the names of `read_weights`, from torchvision's AlexNet and LPIPS's own file."""
    own = {f"lin{stage}.weight": linear[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(STAGES))}
    return {name: own[name] if name in own else alexnet[name] for name in _names()}


def _names() -> list[str]:
    features = [f"features.{index}.{kind}" for index, _, _ in STAGES for kind in ("weight", "bias")]
    return features + [f"lin{stage}.weight" for stage in range(len(STAGES))]
