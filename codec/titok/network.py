"""The network of TiTok (arXiv 2406.07550) and One-D-Piece (2501.10064), with the tensors of the published checkpoints.

    pixels -> patches + N latent tokens -> transformer -> N vectors -> nearest in the codebook -> N indices
    n indices -> vectors + mask tokens -> transformer -> means of a second codebook -> pixel decoder -> pixels

The file holds the indices. The pixel decoder comes from MaskGIT's VQGAN (2202.04200). TiTok's second generation has none: its
decoder returns pixels (`TitokConfig.direct`). Comments mark the deviations from the papers that the published weights require.

Axes: B blocks, N latent tokens (n of them when decoding), P patches in g rows and columns, W width, D length of a code, V
indices, H x W pixels. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.networks.codebook import Codebook
from codec.networks.convolution import EPSILON, ResidualBlock
from codec.titok.config import TitokConfig

MLP_RATIO = 4


class AttentionBlock(nn.Module):
    """A pre-norm transformer block on (B, tokens, W): attention, then a perceptron, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, MLP_RATIO * width),
                gelu=nn.GELU(),  # exact, not the tanh approximation
                c_proj=nn.Linear(MLP_RATIO * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The common part of encoder and decoder. Its input is a class embedding, the patches and the latent tokens, in this order,
    with positional embeddings."""

    def __init__(self, c: TitokConfig, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(_noise(1, width))
        self.positional_embedding = nn.Parameter(_noise(1 + c.grid**2, width))
        self.latent_token_positional_embedding = nn.Parameter(_noise(c.block_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(AttentionBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def attend(self, patches: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of all layers for patches (B, P, W) and the first n latent tokens (B, n, W)."""
        leading = self.class_embedding.expand(len(patches), 1, -1)
        patches = torch.cat([leading, patches], 1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding[: latents.shape[1]]
        x = self.ln_pre(torch.cat([patches, latents], 1))
        for block in self.transformer:
            x = block(x)
        return x[:, 1 : patches.shape[1]], x[:, patches.shape[1] :]


class Encoder(Transformer):
    """Pixels (B, 3, H, W) and learned latent tokens (N, W) -> vectors to be quantized (B, N, D)."""

    def __init__(self, c: TitokConfig) -> None:
        super().__init__(c, c.width, c.layers, c.heads)
        self.patch_embed = nn.Conv2d(3, c.width, c.patch, c.patch)
        self.conv_out = nn.Conv2d(c.width, c.code, 1)
        self.mixed = c.mixed

    def forward(self, pixels: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        _, latents = self.attend(patches, latent_tokens.expand(len(pixels), -1, -1))
        latents = self.ln_post(latents)
        # The published networks were trained with (N, W) reinterpreted as (W, N) here, without a transpose: the
        # convolution mixes channels of several tokens.
        batch, count, width = latents.shape
        columns = latents.reshape(batch, width, count) if self.mixed else latents.transpose(1, 2)
        return self.conv_out(columns[..., None]).squeeze(3).transpose(1, 2)


class Decoder(Transformer):
    """Vectors of the codebook (B, n, D) -> scores of all vectors of the second codebook, per patch (B, V, g, g)."""

    def __init__(self, c: TitokConfig) -> None:
        super().__init__(c, *c.decoder)
        width = c.decoder[0]
        self.grid = c.grid
        self.decoder_embed = nn.Linear(c.code, width)
        self.mask_token = nn.Parameter(_noise(1, 1, width))
        self.ffn = self.last_layers(c, width)

    def last_layers(self, c: TitokConfig, width: int) -> nn.Sequential:
        """The layers that are applied to each patch alone."""
        return nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, c.pixel_codebook, 1))

    def forward(self, codes: Tensor) -> Tensor:
        masks = self.mask_token.expand(len(codes), self.grid**2, -1)
        patches, _ = self.attend(masks, self.decoder_embed(codes))
        return self.ffn(self.ln_post(patches).transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class DirectDecoder(Decoder):
    """The decoder of TiTok's second generation: vectors of the codebook (B, n, D) -> pixels (B, 3, H, W), not clipped."""

    def __init__(self, c: TitokConfig) -> None:
        super().__init__(c)
        self.patch = c.patch
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def last_layers(self, c: TitokConfig, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, 3 * c.patch**2, 1))

    def forward(self, codes: Tensor) -> Tensor:
        numbers = super().forward(codes).unflatten(1, (self.patch, self.patch, 3))  # (B, row, column, channel, g, g)
        pixels = numbers.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
        return self.conv_out(pixels)


class PixelCodebook(Codebook):
    """The second codebook, of which the decoder takes weighted means."""

    def mean(self, scores: Tensor) -> Tensor:
        """The mean (B, D, g, g) of all vectors, not scaled to norm 1, weighted by the softmax of scores (B, V, g, g)."""
        return torch.einsum("bvhw,vd->bdhw", scores.softmax(1), self.embedding.weight)


class Resolution(nn.Module):
    """The residual blocks of one resolution, followed by upsampling unless it is the finest."""

    def __init__(self, inputs: int, outputs: int, c: TitokConfig, finest: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(*(_residual(c, inputs if i == 0 else outputs, outputs) for i in range(c.pixel_depth)))
        if not finest:
            self.upsample_conv = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.finest = finest

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x if self.finest else self.upsample_conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class PixelDecoder(nn.Module):
    """Means of the second codebook (B, D, g, g) -> pixels (B, 3, H, W), not clipped."""

    def __init__(self, c: TitokConfig) -> None:
        super().__init__()
        widths = [c.pixel_width * multiplier for multiplier in c.pixel_multipliers]  # fine to coarse
        self.conv_in = nn.Conv2d(c.pixel_code, widths[-1], 3, padding=1)
        self.mid = nn.Sequential(*(_residual(c, widths[-1], widths[-1]) for _ in range(c.pixel_depth)))
        self.up = nn.ModuleList(
            Resolution(inputs, outputs, c, index == 0)
            for index, (inputs, outputs) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(c.pixel_groups, widths[0], EPSILON)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for resolution in reversed(self.up):
            x = resolution(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Titok(nn.Module):
    """The tokenizer of a block."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__()
        self.config = c = config
        self.latent_tokens = nn.Parameter(_noise(c.block_tokens, c.width))
        self.encoder = Encoder(c)
        self.decoder = DirectDecoder(c) if c.direct else Decoder(c)
        self.quantize = Codebook(c.codebook, c.code, c.unit)
        if not c.direct:
            self.pixel_quantize = PixelCodebook(c.pixel_codebook, c.pixel_code)
            self.pixel_decoder = PixelDecoder(c)

    @torch.inference_mode()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Indices (B, N) of blocks (B, 3, side, side) in [0, 1]. Raises ValueError for blocks of another shape."""
        if pixels.shape[1:] != (3, self.config.side, self.config.side):
            msg = f"blocks of {tuple(pixels.shape[1:])}, not (3, {self.config.side}, {self.config.side})"
            raise ValueError(msg)
        return self.quantize.nearest(self.encoder(pixels, self.latent_tokens))

    @torch.inference_mode()
    def detokenize(self, indices: Tensor) -> Tensor:
        """Blocks (B, 3, side, side) in [0, 1] from the first n indices of each (B, n).

        Raises TesseraError for a number n that the network cannot decode."""
        self.config.check_length(indices.shape[1])
        decoded = self.decoder(self.quantize.lookup(indices))
        pixels = decoded if self.config.direct else self.pixel_decoder(self.pixel_quantize.mean(decoded))
        return pixels.clamp(0, 1)


def _residual(c: TitokConfig, inputs: int, outputs: int) -> ResidualBlock:
    return ResidualBlock(inputs, outputs, c.pixel_groups, bias=False, output_shortcut=True)


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape) * shape[-1] ** -0.5
