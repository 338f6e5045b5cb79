"""The variational autoencoder of latent diffusion (arXiv 2112.10752), with the tensors of AutoencoderKL in diffusers.

    pixels -> residual blocks, halving the resolution -> mean of each latent
    latents -> residual blocks, doubling the resolution -> pixels

A resolution has the same number of residual blocks in the encoder, and one more in the decoder. The coarsest one has self-
attention over all positions between two further blocks. The encoder also computes variances, which coding does not need.

Axes: B images, C latent channels, H x W pixels, h x w latents. Pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # epsilon of all norms


class ResidualBlock(nn.Module):
    """(B, I, h, w) -> (B, O, h, w): two convolutions of 3x3."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (self.conv_shortcut(x) if x.shape[1] != y.shape[1] else x)


class Attention(nn.Module):
    """Self-attention with one head over all positions of (B, W, h, w), with a residual connection."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        y = self.to_out(F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y)))
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


class Middle(nn.Module):
    """The blocks between encoder and latents, and between latents and decoder."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width, width, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsampler(nn.Module):
    """(B, W, h, w) -> (B, W, h / 2, w / 2). Zeros are added on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsampler(nn.Module):
    """(B, W, h, w) -> (B, W, 2 h, 2 w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Resolution(nn.Module):
    """The residual blocks of one resolution, then the change to the next resolution, if there is one."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, groups: int, *, downsampled: bool = False, upsampled: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.Sequential(
            *(ResidualBlock(inputs if index == 0 else outputs, outputs, groups) for index in range(depth))
        )
        self.downsamplers = nn.Sequential(*([Downsampler(outputs)] if downsampled else []))
        self.upsamplers = nn.Sequential(*([Upsampler(outputs)] if upsampled else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.downsamplers(self.resnets(x)))


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> means and logarithms of variances (B, 2 C, h, w)."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            Resolution(inputs, outputs, depth, groups, downsampled=index < last)
            for index, (inputs, outputs) in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) -> pixels (B, 3, H, W), not clipped."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, groups: int) -> None:
        super().__init__()
        coarse_first = widths[::-1]
        self.conv_in = nn.Conv2d(channels, coarse_first[0], 3, padding=1)
        self.mid_block = Middle(coarse_first[0], groups)
        last = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            Resolution(inputs, outputs, depth + 1, groups, upsampled=index < last)
            for index, (inputs, outputs) in enumerate(pairwise((coarse_first[0], *coarse_first)))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Autoencoder(nn.Module):
    """Encoder and decoder. `widths` are those of the resolutions, fine to coarse; each is half the resolution before it."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, groups: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, widths, depth, groups)
        self.decoder = Decoder(channels, widths, depth, groups)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """The mean (B, C, h, w) of the latents' distribution for pixels (B, 3, H, W)."""
        return self.quant_conv(self.encoder(pixels)).chunk(2, 1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`, with losses: pixels, not clipped."""
        return self.decoder(self.post_quant_conv(latents))
