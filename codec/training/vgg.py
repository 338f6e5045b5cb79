"""The weights of VGG19 (Simonyan & Zisserman, 1409.1556) for the perceptual loss: torchvision's file, or an .npz.

Both are trained on ImageNet, but take pixels in different ways: torchvision's RGB in units of their spread, the original
network's BGR in 0..255 less the mean.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.errors import ModelError

LAYERS = tuple(f"conv{stage}_{i}" for stage, depth in ((1, 2), (2, 2), (3, 4)) for i in range(1, depth + 1))
FEATURES = (0, 2, 5, 7, 10, 12, 14, 16)  # places of LAYERS in torchvision's `features`
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
DIGEST = "dcbb9e9d"  # the first digits of the file's SHA-256
PATIENCE = 20  # seconds that a download may stand still; torch's downloader has no limit of its own
NONE = "none"  # instead of a file
BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, pixels in 0..255
RGB_MEAN, RGB_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, pixels in 0..1


@dataclass(frozen=True)
class Vgg:
    """The first convolutions of VGG19, and how they take pixels: (scale (x + 1) - mean) / spread for x in [-1, 1]."""

    weights: Mapping[str, Tensor]  # `convS_I.weight` (OIHW) and `.bias` of LAYERS
    scale: float
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    bgr: bool
    origin: str  # and licence, in words


def read_vgg(path: Path) -> Vgg:
    """VGG19 from an .npz of `convS_I.weight` and `.bias`, or from torchvision's file (.pth). Raises ModelError."""
    places = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]
    try:
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, "cpu", weights_only=True)
            there = [f"features.{place}.{part}" for place in FEATURES for part in ("weight", "bias")]
            weights = {name: state[other] for name, other in zip(places, there, strict=True)}
            origin = f"{path} (torchvision's, BSD-3-Clause, trained on ImageNet)"
            return Vgg(weights, 0.5, RGB_MEAN, RGB_SPREAD, False, origin)
        with np.load(path, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in places}
        origin = f"{path} (its authors' own weights are under CC BY 4.0, trained on ImageNet)"
        return Vgg(weights, 127.5, BGR_MEAN, (1.0, 1.0, 1.0), True, origin)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"{path}: not a VGG19 feature file ({type(error).__name__}: {reason})"
        raise ModelError(msg) from error


def torchvision_vgg() -> Path:
    """torchvision's file in torch's cache, downloaded first where it is missing (548 MB). Raises ModelError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if path.is_file():
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), DIGEST, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        msg = f"{URL} cannot be downloaded ({error}), and is not in {path.parent}"
        raise ModelError(msg, ("vgg",)) from error
    finally:
        socket.setdefaulttimeout(before)
    return path
