"""Weights of the networks behind perceptual measures, made up: they see edges and colours, but nothing that was learned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

ALEXNET_WIDTHS = (64, 192, 384, 256, 256)  # as published
ALEXNET_KERNELS = {0: 11, 3: 5, 6: 3, 8: 3, 10: 3}  # by the index of the layer in torchvision's `features`
VGG_LAYERS = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv3_4")


def write_lpips_weights(path: Path, widths: tuple[int, ...] = (8, 8, 8, 8, 8)) -> Path:
    """An .npz as `codec.metrics.lpips` reads it."""
    layers = [f"features.{index}" for index in ALEXNET_KERNELS]
    arrays = _convolutions(layers, widths, ALEXNET_KERNELS.values())
    arrays |= {f"lin{stage}.weight": np.full(width, 4, np.float32) for stage, width in enumerate(widths)}
    np.savez(path, **arrays)
    return path


def write_vgg_weights(path: Path, width: int = 8) -> Path:
    """An .npz as `codec.training.vgg` reads it."""
    np.savez(path, **_convolutions(VGG_LAYERS, [width] * len(VGG_LAYERS), [3] * len(VGG_LAYERS)))
    return path


def _convolutions(names: Iterable[str], widths: Iterable[int], kernels: Iterable[int]) -> dict[str, np.ndarray]:
    """`NAME.weight` (OIHW) and `NAME.bias` of layers that follow each other, from three channels on."""
    rng, inputs = np.random.default_rng(0), 3
    arrays: dict[str, np.ndarray] = {}
    for name, width, kernel in zip(names, widths, kernels, strict=True):
        scale = np.sqrt(2 / (inputs * kernel**2))
        arrays[f"{name}.weight"] = rng.normal(0, scale, (width, inputs, kernel, kernel)).astype(np.float32)
        arrays[f"{name}.bias"] = np.zeros(width, np.float32)
        inputs = width
    return arrays
