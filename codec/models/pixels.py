"""Conversion between the pixels of images and the values that networks take."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 127.5  # half of the range 0..255


def to_network(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1], channels last in memory."""
    scaled = pixels.permute(0, 3, 1, 2).float().div_(HALF).sub_(1)
    return scaled.contiguous(memory_format=torch.channels_last)


def from_network(x: Tensor) -> Tensor:
    """The inverse of `to_network`, rounded and clipped."""
    return x.float().mul(HALF).add_(HALF).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
