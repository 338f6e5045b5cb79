"""Weights of VGG19 (Simonyan & Zisserman, arXiv 1409.1556) for the perceptual loss, from torchvision's file or an .npz.

Both were trained on ImageNet, but differ in their input: torchvision's weights take RGB, normalised by mean and standard
deviation; the authors' weights take BGR in 0..255 minus the mean.
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
TORCHVISION_INDEXES = (0, 2, 5, 7, 10, 12, 14, 16)  # indexes of LAYERS in torchvision's `features`
URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
SHA256_PREFIX = "dcbb9e9d"
STALL_TIMEOUT = 20  # seconds without a byte; torch's downloader has no timeout
BGR_MEAN = (103.939, 116.779, 123.68)  # mean of ImageNet, pixels in 0..255
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet, pixels in 0..1


@dataclass(frozen=True)
class Vgg:
    """The first convolutions of VGG19. Their input for x in [-1, 1] is (scale (x + 1) - mean) / std."""

    weights: Mapping[str, Tensor]  # `convS_I.weight` (OIHW) and `.bias` of LAYERS
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool
    origin: str  # file, authors and licence


def read_vgg(path: Path) -> Vgg:
    """VGG19 from torchvision's file (.pth), or from an .npz of `convS_I.weight` and `.bias`. Raises ModelError."""
    names = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    try:
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, "cpu", weights_only=True)
            keys = [f"features.{index}.{kind}" for index in TORCHVISION_INDEXES for kind in ("weight", "bias")]
            weights = {name: state[key] for name, key in zip(names, keys, strict=True)}
            origin = f"{path} (torchvision's, BSD-3-Clause, trained on ImageNet)"
            return Vgg(weights, 0.5, RGB_MEAN, RGB_STD, False, origin)
        with np.load(path, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in names}
        origin = f"{path} (its authors' own weights are under CC BY 4.0, trained on ImageNet)"
        return Vgg(weights, 127.5, BGR_MEAN, (1.0, 1.0, 1.0), True, origin)
    except Exception as error:  # torch.load raises almost anything for damaged bytes
        reason = (str(error).strip().splitlines() or [""])[0]
        msg = f"not a VGG19 feature file ({type(error).__name__}: {reason})"
        raise ModelError(msg, file=path) from error


def torchvision_vgg() -> Path:
    """Path of torchvision's file in torch's cache; downloads it (548 MB) if it is missing. Raises ModelError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if path.is_file():
        return path
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), SHA256_PREFIX, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        msg = f"{URL} cannot be downloaded ({error}), and is not in {path.parent}"
        raise ModelError(msg, ("vgg",)) from error
    finally:
        socket.setdefaulttimeout(default_timeout)
    return path
