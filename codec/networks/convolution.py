"""Convolutional blocks of VQGANs (arXiv 2012.09841). All map (B, C, h, w) to the same layout."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # epsilon of all norms


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3, each after a norm and SiLU, with a shortcut.

    If the width changes, the shortcut is a 1x1 convolution: of the input or, with `output_shortcut`, of the output of the two
    convolutions, as in MaskBit and TiTok."""

    def __init__(self, inputs: int, outputs: int, groups: int, bias: bool, output_shortcut: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(groups, outputs, EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs if output_shortcut else inputs, outputs, 1, bias=bias)
        self.output_shortcut = output_shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x), inplace=True))  # in place: a third less memory
        y = self.conv2(F.silu(self.norm2(y), inplace=True))
        if x.shape[1] == y.shape[1]:
            return y + x
        return y + self.nin_shortcut(y if self.output_shortcut else x)


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, after a norm, with a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, EPSILON)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))
