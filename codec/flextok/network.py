"""The network of FlexTok (arXiv 2502.13967), with the tensors of the published checkpoints.

    pixels -> latents of an autoencoder -> patches + N registers -> transformer -> N vectors -> FSQ -> N tokens of D digits
    n tokens -> registers + patches of noise -> transformer, once per step -> latents -> pixels of an autoencoder

The transformer of the decoder computes the velocity of a rectified flow (2209.03003) from noise to latents; see
`codec.flextok.sampler`. Registers see only registers before them, so the first n tokens do not depend on the number of
tokens that a file keeps. FSQ is finite scalar quantization (2309.15505).

Axes: B blocks, N registers (n known), D digits, C channels of latents, h x h latents, P patches in g rows and columns, W width.
Pixels are RGB in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.flextok.config import FlextokConfig, hidden_width
from codec.flextok.sampler import sample
from codec.networks.vae import Autoencoder

TIME_CHANNELS = 256
TIME_PERIOD = 256  # largest period of the time embedding
LEVEL_MARGIN = 1e-3  # FSQ widens the range of values by this, so that the outermost levels are reached

# Modules and parameters by their names here, and how their names begin in published checkpoints
PUBLISHED_NAMES = {
    "vae": "vae.vae",
    "encoder.patches": "encoder.module_dict.enc_patch_emb.patch_proj",
    "encoder.positions": "encoder.module_dict.enc_posemb_module.posembs",
    "encoder.registers": "encoder.module_dict.enc_register_module.registers",
    "encoder.blocks": "encoder.module_dict.enc_transformer.blocks",
    "encoder.vectors": "encoder.module_dict.enc_to_latents.proj",
    "decoder.codes": "decoder.module_dict.dec_from_latents.proj",
    "decoder.code_positions": "decoder.module_dict.dec_registers_posemb_module.posembs",
    "decoder.unknown": "decoder.module_dict.dec_nested_dropout.dropout_mask_token",
    "decoder.unconditional": "decoder.module_dict.dec_latent_dropout.nullcond",
    "decoder.patches": "decoder.module_dict.dec_noise_patch_emb.patch_proj",
    "decoder.positions": "decoder.module_dict.dec_patches_posemb_module.posembs",
    "decoder.time": "decoder.module_dict.dec_time_embedder.mlp",
    "decoder.blocks": "decoder.module_dict.dec_transformer.blocks",
    "decoder.modulation": "decoder.module_dict.dec_to_patches.adaLN_modulation",
    "decoder.velocity": "decoder.module_dict.dec_to_patches.proj",
}


def published_name(name: str) -> str:
    """The name of a tensor of the network in a published checkpoint."""
    module = next(module for module in PUBLISHED_NAMES if name == module or name.startswith(f"{module}."))
    return PUBLISHED_NAMES[module] + name.removeprefix(module)


def norm(x: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Self-attention on (B, tokens, W), with normalised queries and keys."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, width, bias=False)
        self.wv = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.head = head

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        queries, keys, values = (
            linear(x).unflatten(2, (-1, self.head)).transpose(1, 2) for linear in (self.wq, self.wk, self.wv)
        )
        scale = 8 / self.head  # of muP (2203.03466); equals 1 / sqrt(64) for the published heads
        y = F.scaled_dot_product_attention(norm(queries), norm(keys), values, mask, scale=scale)
        return self.proj(y.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """A perceptron whose hidden channels are multiplied by gates (SwiGLU, 2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = hidden_width(width)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)
        self.fc3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block on (B, tokens, W)."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attn = Attention(width, head)
        self.mlp = GatedMlp(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(norm(x), mask)
        return x + self.mlp(norm(x))


class DecoderBlock(nn.Module):
    """A transformer block on P patches and N registers, modulated by the time (adaLN, DiT, 2212.09748)."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attn = Attention(width, head)
        self.mlp = GatedMlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 12 * width))

    def forward(self, x: Tensor, time: Tensor, patches: int) -> Tensor:
        """`time` (W,) is the embedding of the time, the same for all blocks of the batch."""
        modulation = self.adaLN_modulation(time).reshape(2, -1)  # one row for the patches, another one for the registers
        counts = torch.tensor([patches, x.shape[1] - patches], device=x.device)
        gate_attn, gate_mlp, shift_attn, scale_attn, shift_mlp, scale_mlp = modulation.repeat_interleave(counts, 0).chunk(6, 1)
        x = x + gate_attn * self.attn(norm(x) * (1 + scale_attn) + shift_attn, None)
        return x + gate_mlp * self.mlp(norm(x) * (1 + scale_mlp) + shift_mlp)


class Encoder(nn.Module):
    """Latents (B, C, h, h) -> vectors to be quantized (B, N, D)."""

    mask: Tensor

    def __init__(self, c: FlextokConfig) -> None:
        super().__init__()
        self.patch = c.patch
        self.patches = nn.Linear(c.channels * c.patch**2, c.encoder_width)
        self.positions = nn.Parameter(torch.randn(1, c.encoder_width, c.grid, c.grid))
        self.registers = nn.Parameter(torch.randn(c.block_tokens, c.encoder_width))
        self.blocks = nn.ModuleList(EncoderBlock(c.encoder_width, c.head) for _ in range(c.encoder_layers))
        self.vectors = nn.Linear(c.encoder_width, len(c.levels))

    def forward(self, latents: Tensor) -> Tensor:
        patches = self.patches(to_patches(latents, self.patch)) + self.positions.flatten(2).transpose(1, 2)
        x = torch.cat([patches, self.registers.expand(len(patches), -1, -1)], 1)
        count = patches.shape[1]
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask[:, :count] = True  # all see all patches; a register also sees itself and those before it
        for block in self.blocks:
            x = block(x, mask)
        return self.vectors(norm(x[:, count:]))


class Decoder(nn.Module):
    """The velocity of noisy latents, given the registers."""

    def __init__(self, c: FlextokConfig) -> None:
        super().__init__()
        self.config, width = c, c.decoder_width
        self.codes = nn.Linear(len(c.levels), width)
        self.code_positions = nn.Parameter(torch.randn(1, 1, width, c.block_tokens))
        self.unknown = nn.Parameter(torch.randn(width))
        self.unconditional = nn.Parameter(torch.randn(width))
        self.patches = nn.Linear(c.channels * c.patch**2, width)
        self.positions = nn.Parameter(torch.randn(1, width, c.grid, c.grid))
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, c.head) for _ in range(c.decoder_layers))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.velocity = nn.Linear(width, c.channels * c.patch**2)

    def registers(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Registers (B, N, W) from codes (B, N, D), of which the first `lengths` (B,) of each block are known."""
        registers = self.codes(codes) + self.code_positions[0, 0].t()
        known = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
        return torch.where(known[..., None], registers, self.unknown)

    def forward(self, latents: Tensor, time: float, registers: Tensor) -> Tensor:
        """The velocity (B, C, h, h) of latents (B, C, h, h) at a time from 0 (image) to 1 (noise)."""
        patches = self.patches(to_patches(latents, self.config.patch)) + self.positions.flatten(2).transpose(1, 2)
        x, count = torch.cat([patches, registers], 1), patches.shape[1]
        embedding = self.time(time_embedding(time, self.config.max_time).to(x))
        for block in self.blocks:
            x = block(x, embedding, count)
        shift, scale = self.modulation(embedding).chunk(2)
        return from_patches(self.velocity(norm(x[:, :count]) * (1 + scale) + shift), self.config.patch)


class Flextok(nn.Module):
    """The tokenizer of a block."""

    def __init__(self, config: FlextokConfig) -> None:
        super().__init__()
        self.config = c = config
        self.vae = Autoencoder(c.channels, c.vae_widths, c.vae_depth, c.vae_groups)
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    @torch.inference_mode()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Digits (B, N, D) of blocks (B, 3, side, side) in [0, 1]. Raises ValueError for another shape."""
        if pixels.shape[1:] != (3, self.config.side, self.config.side):
            msg = f"blocks of {tuple(pixels.shape[1:])}, not (3, {self.config.side}, {self.config.side})"
            raise ValueError(msg)
        latents = self.vae.encode(2 * pixels - 1) * self.config.scale
        return nearest_digits(self.encoder(latents), self.config.levels)

    @torch.inference_mode()
    def detokenize(
        self,
        digits: Tensor,
        lengths: Tensor,
        noise: Tensor,
        steps: int,
        guidance: float,
        progress: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Blocks (B, 3, side, side) in [0, 1] from digits (B, N, D), of which the first `lengths` (B,) tokens are known, and
        noise (B, C, h, h). `progress` is called after each of the sampler's `steps`."""
        codes = codes_of(digits, self.config.levels).to(noise)
        registers = self.decoder.registers(codes, lengths)
        unconditional = self.decoder.unconditional.expand_as(registers)

        def velocities(latents: Tensor, time: float) -> tuple[Tensor, Tensor | None]:
            if guidance == 1:
                return self.decoder(latents, time, registers), None
            both = self.decoder(latents.repeat(2, 1, 1, 1), time, torch.cat([registers, unconditional]))
            return both.chunk(2)

        latents = sample(velocities, noise, steps, guidance, progress)
        return (self.vae.decode(latents / self.config.scale) / 2 + 0.5).clamp(0, 1)


def to_patches(latents: Tensor, patch: int) -> Tensor:
    """(B, C, h, h) -> (B, P, patch^2 C): rows, columns, then channels within each patch."""
    rows = latents.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # (B, C, g, patch, g, patch)
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    grid = math.isqrt(x.shape[1])
    rows = x.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, -1))  # (B, g, g, patch, patch, C)
    return rows.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def time_embedding(time: float, max_time: float) -> Tensor:
    """Cosines and sines (256,) of the time."""
    half = TIME_CHANNELS // 2
    frequencies = 1000 / max_time * torch.exp(-math.log(TIME_PERIOD) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([torch.cos(time * frequencies), torch.sin(time * frequencies)])


def nearest_digits(vectors: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Digits (B, N, D) of vectors (B, N, D): tanh bounds each channel, then it is rounded to one of its levels."""
    counts = torch.tensor(levels, device=vectors.device)
    half = (counts - 1) * (1 + LEVEL_MARGIN) / 2
    offset = (counts % 2 == 0) * 0.5  # an even number of levels has none at zero
    bounded = torch.tanh(vectors.float() + torch.atanh(offset / half)) * half - offset
    return bounded.round().long() + counts // 2


def codes_of(digits: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes (B, N, D) in [-1, 1] of digits, the inverse of `nearest_digits`."""
    half = torch.tensor(levels, device=digits.device) // 2
    return (digits - half) / half
