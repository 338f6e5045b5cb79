"""Convolutional blocks of VQGANs (arXiv 2012.09841), whole or in tiles. All map (B, C, h, w) to the same layout.

A group norm sees a complete image, so tiles of an image that are computed one by one would be scaled differently, with seams
between them. `TileStatistics` gives them common means and variances: first the average over tiles is measured, then used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of all norms

_normalise: ContextVar[Callable[[GroupNorm, Tensor], Tensor] | None] = ContextVar("normalise", default=None)


class GroupNorm(nn.GroupNorm):
    """A group norm that also works in tiles: see `TileStatistics`."""

    def __init__(self, groups: int, width: int, affine: bool = True) -> None:
        super().__init__(groups, width, EPSILON, affine)

    def forward(self, x: Tensor) -> Tensor:
        normalise = _normalise.get()
        return normalise(self, x) if normalise else super().forward(x)


class TileStatistics:
    """Means and variances of each group of each norm of a network, averaged over tiles of one image."""

    def __init__(self) -> None:
        self._moments: dict[GroupNorm, Tensor] = {}  # (2, groups) sums over tiles of the mean of x and of its square
        self._tiles: dict[GroupNorm, int] = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Each norm that this thread computes in the block adds its tile (1, C, h, w) to the average."""
        with _norms_computed_by(self._measure):
            yield

    @contextmanager
    def used(self) -> Iterator[None]:
        """Each norm that this thread computes in the block takes the average of the measured tiles."""
        with _norms_computed_by(self._use):
            yield

    def _measure(self, norm: GroupNorm, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.reshape(norm.num_groups, -1), 1, correction=0)
        moments = torch.stack([mean, variance + mean.square()]).double()
        self._moments[norm] = self._moments.get(norm, 0) + moments
        self._tiles[norm] = self._tiles.get(norm, 0) + 1
        return nn.GroupNorm.forward(norm, x)

    def _use(self, norm: GroupNorm, x: Tensor) -> Tensor:
        mean, square = (self._moments[norm] / self._tiles[norm]).repeat_interleave(x.shape[1] // norm.num_groups, 1)
        scale = ((square - mean.square()).clamp(min=0) + norm.eps).rsqrt()
        shift = -mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


@contextmanager
def _norms_computed_by(normalise: Callable[[GroupNorm, Tensor], Tensor]) -> Iterator[None]:
    token = _normalise.set(normalise)
    try:
        yield
    finally:
        _normalise.reset(token)


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3, each after a norm and SiLU, with a shortcut.

    If the width changes, the shortcut is a convolution of 1x1 of the input, or with `output_shortcut` of the output of the
    convolutions, as in MaskBit and TiTok."""

    def __init__(self, inputs: int, outputs: int, groups: int, bias: bool, output_shortcut: bool) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs if output_shortcut else inputs, outputs, 1, bias=bias)
        self.output_shortcut = output_shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        if x.shape[1] == y.shape[1]:
            return y + x
        return y + self.nin_shortcut(y if self.output_shortcut else x)


class AttentionBlock(nn.Module):
    """Attention with one head between all positions, after a norm, with a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).squeeze(1)
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))
