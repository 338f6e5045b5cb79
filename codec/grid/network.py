"""The networks of MaskBit (arXiv 2409.16211), Open-MAGVIT2 (2409.04410), IBQ (2412.02692) and LlamaGen (2406.06525).

    pixels -> convolutions at each resolution -> D numbers per cell -> quantizer -> token
    token -> D numbers -> convolutions at each resolution -> pixels

All four are the autoencoder of VQGAN (2012.09841) with small differences, which `GridConfig` lists. Modules are named and
ordered as they are executed; `codec.grid.names` translates published names.

Axes: B images, h x w cells, D numbers and E digits of a token, V vectors of a codebook, H x W pixels. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.grid.config import GridConfig
from codec.networks.convolution import EPSILON, AttentionBlock, ResidualBlock

CALL_SCORES = 1 << 26  # maximum products of cells and vectors of the codebook in one step: 256 MB


class Stage(nn.Module):
    """One resolution: residual blocks, each followed by attention if the network has it here, then resampling."""

    def __init__(self, c: GridConfig, inputs: int, outputs: int, depth: int, attention: bool, resample: nn.Module) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * depth
        self.blocks = nn.ModuleList(_residual(c, *pair) for pair in pairwise(widths))
        self.attention = nn.ModuleList(AttentionBlock(outputs, c.groups) for _ in range(depth if attention else 0))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attention:
                x = self.attention[index](x)
        return self.resample(x)


class Downsampling(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2)"""

    def __init__(self, width: int, centred: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)
        self.padding = (1, 1, 1, 1) if centred else (0, 1, 0, 1)  # left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Upsampling(nn.Module):
    """(B, C, h, w) -> (B, C, 2h, 2w)"""

    def __init__(self, width: int, depth_to_space: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width if depth_to_space else width, 3, padding=1)
        self.depth_to_space = depth_to_space

    def forward(self, x: Tensor) -> Tensor:
        if not self.depth_to_space:
            return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        # Channels are ordered by row and column of the new pixel first, unlike in `pixel_shuffle`.
        batch, width, rows, columns = x.shape
        blocks = self.conv(x).reshape(batch, 2, 2, width, rows, columns)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(batch, width, 2 * rows, 2 * columns)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in the range of the network -> latents (B, C, h, w)."""

    def __init__(self, c: GridConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, c.widths[0], 3, padding=1, bias=c.bias)
        self.stages = nn.ModuleList()
        for index, (wide_in, wide_out) in enumerate(pairwise([c.widths[0], *c.widths])):
            coarsest = index == len(c.widths) - 1
            resample = nn.Identity() if coarsest else Downsampling(wide_out, c.centred_downsampling)
            self.stages.append(Stage(c, wide_in, wide_out, c.encoder_depth, c.attention and coarsest, resample))
        self.middle = _middle(c)
        self.norm_out = nn.GroupNorm(c.groups, c.widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(c.widths[-1], c.latent, *((3, 1, 1) if c.attention else (1,)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) -> pixels (B, 3, H, W) in the range of the network, not clipped."""

    def __init__(self, c: GridConfig) -> None:
        super().__init__()
        widths = c.widths[::-1]
        inputs = [widths[0], *widths[:-1]]
        self.conv_in = nn.Conv2d(c.latent, widths[0], 3, padding=1)
        self.middle = _middle(c)
        self.adaptive = nn.ModuleList(AdaptiveNorm(c.code, width, c.groups) for width in inputs if c.adaptive)
        self.stages = nn.ModuleList()
        for index, (wide_in, wide_out) in enumerate(zip(inputs, widths, strict=True)):
            finest = index == len(widths) - 1
            resample = nn.Identity() if finest else Upsampling(wide_out, c.depth_to_space)
            self.stages.append(Stage(c, wide_in, wide_out, c.decoder_depth, c.attention and index == 0, resample))
        self.norm_out = nn.GroupNorm(c.groups, widths[-1], EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor, style: Tensor) -> Tensor:
        """`style` (B, 2, D) is the result of `code_style` for the whole image; only adaptive networks read it."""
        x = self.middle(self.conv_in(latents))
        for index, stage in enumerate(self.stages):
            x = stage(self.adaptive[index](x, style) if self.adaptive else x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AdaptiveNorm(nn.Module):
    """A group norm of (B, C, h, w) whose scale and shift follow from the codes of the whole image."""

    def __init__(self, code: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, EPSILON, affine=False)
        self.gamma = nn.Linear(code, width)
        self.beta = nn.Linear(code, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        mean, deviation = style.unbind(1)
        return self.gamma(deviation)[..., None, None] * self.norm(x) + self.beta(mean)[..., None, None]


def code_style(codes: Tensor) -> Tensor:
    """Mean and standard deviation (B, 2, D) of the codes (B, D, h, w) of an image. One cell has the deviation 0."""
    cells = codes.shape[2] * codes.shape[3]
    variance = codes.var((2, 3)) if cells > 1 else torch.zeros_like(codes[:, :, 0, 0])
    return torch.stack([codes.mean((2, 3)), (variance + EPSILON).sqrt()], 1)


class SignQuantizer(nn.Module):
    """One bit per number (lookup-free quantization, arXiv 2310.05737; MaskBit): 1 for positive numbers, 0 for others."""

    def forward(self, latents: Tensor) -> Tensor:
        """Bits (B, D, h, w) of numbers (B, D, h, w)."""
        return (latents > 0).long()

    def lookup(self, digits: Tensor) -> Tensor:
        """The codes (B, D, h, w), 1 or -1, of bits (B, D, h, w)."""
        return digits * 2.0 - 1.0


class VectorQuantizer(nn.Module):
    """An index into a codebook (V, D): the vector with the largest scalar product. Unit vectors are the nearest, too."""

    def __init__(self, vectors: int, code: int, unit: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vectors, code))  # faster than random numbers
        self.unit = unit

    def forward(self, latents: Tensor) -> Tensor:
        """Indices (B, 1, h, w) of vectors (B, D, h, w)."""
        cells, codebook = latents.permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight
        if self.unit:
            cells, codebook = F.normalize(cells, dim=-1), F.normalize(codebook, dim=-1)
        step = max(1, CALL_SCORES // len(codebook))
        indices = torch.cat([(some @ codebook.t()).argmax(-1) for some in cells.split(step)])
        return indices.reshape(len(latents), 1, *latents.shape[2:])

    def lookup(self, digits: Tensor) -> Tensor:
        """The vectors (B, D, h, w) of indices (B, 1, h, w)."""
        vectors = F.embedding(digits.squeeze(1), self.embedding.weight)
        return (F.normalize(vectors, dim=-1) if self.unit else vectors).permute(0, 3, 1, 2)


class Grid(nn.Module):
    """The tokenizer of an image, or of a tile of it. Sides are multiples of a cell."""

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quantize = (
            SignQuantizer() if c.quantizer == "sign" else VectorQuantizer(c.codebook, c.code, c.quantizer == "unit-vector")
        )
        self.quant_conv = nn.Conv2d(c.latent, c.code, 1) if c.codebook else nn.Identity()
        self.post_quant_conv = nn.Conv2d(c.code, c.latent, 1) if c.codebook else nn.Identity()

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Numbers (B, D, h, w), the input of the quantizer, of pixels (B, 3, H, W)."""
        return self.quant_conv(self.encoder(pixels * 2 - 1 if self.config.signed else pixels))

    @torch.inference_mode()
    def decode(self, codes: Tensor, style: Tensor | None = None) -> Tensor:
        """Pixels (B, 3, H, W), clipped, of codes (B, D, h, w). `style` is that of the whole image, if this is a tile of it."""
        pixels = self.decoder(self.post_quant_conv(codes), code_style(codes) if style is None else style)
        return ((pixels + 1) / 2 if self.config.signed else pixels).clamp(0, 1)


def _residual(c: GridConfig, inputs: int, outputs: int) -> ResidualBlock:
    return ResidualBlock(inputs, outputs, c.groups, c.bias, c.output_shortcut)


def _middle(c: GridConfig) -> nn.Sequential:
    """Residual blocks at the coarsest resolution, with attention between them."""
    width = c.widths[-1]
    modules: list[nn.Module] = []
    for index in range(c.middle_depth):
        if c.attention and index:
            modules.append(AttentionBlock(width, c.groups))
        modules.append(_residual(c, width, width))
    return nn.Sequential(*modules)
