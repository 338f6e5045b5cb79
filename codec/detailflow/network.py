"""The network of DetailFlow (arXiv 2505.21473), with the tensors of the published checkpoints.

    pixels -> patches + N latent tokens -> transformer -> N vectors -> nearest in the codebook -> N indices
    n indices -> vectors + mask tokens on a grid of g x g -> transformer -> image of g x g patches -> resized to a block

Both transformers have the layers of SigLIP 2 (2502.14786). The first tokens hold the coarse content: with fewer known tokens, g
is smaller. The network was trained for some numbers of tokens only (`DetailFlowConfig.trained_length`); others are rounded down
to one of these.

Axes: B blocks, N latent tokens (n of them when decoding), P patches in g rows and columns, W width, D length of a code.
Pixels are RGB in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.detailflow.config import DetailFlowConfig
from codec.networks.codebook import Codebook

EPSILON = 1e-6  # epsilon of layer norms
CHANNELS = 3


class Attention(nn.Module):
    """Self-attention on (B, tokens, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`mask` (tokens, tokens) is true where the token of the row sees the token of the column; None if all see all."""
        queries, keys, values = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """(B, tokens, W) -> (B, tokens, W), token by token."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    """A pre-norm transformer layer of SigLIP 2 on (B, tokens, W): attention, then a perceptron, each with a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, EPSILON)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = Perceptron(width, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """Pixels (B, 3, side, side) in [-1, 1] -> normalised latents (B, N, W)."""

    def __init__(self, c: DetailFlowConfig) -> None:
        super().__init__()
        self.config = c
        self.patch_embedding = nn.Linear(CHANNELS * c.patch**2, c.width)
        self.position_embedding = nn.Embedding(c.grid**2, c.width)
        self.latent_tokens = nn.Parameter(_noise(1, c.block_tokens, c.width))
        self.latent_pos_embed = nn.Parameter(_noise(1, c.block_tokens, c.width))
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.hidden) for _ in range(c.layers))
        self.post_layernorm = nn.LayerNorm(c.width, EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(to_patches(pixels, self.config.patch)) + self.position_embedding.weight
        latents = (self.latent_tokens + self.latent_pos_embed).expand(len(pixels), -1, -1)
        x = torch.cat([patches, latents], 1)
        mask = self.mask().to(x.device)
        for layer in self.layers:
            x = layer(x, mask)
        return self.post_layernorm(x[:, patches.shape[1] :])

    def mask(self) -> Tensor:
        """(P + N, P + N), true where a row sees a column. Patches see patches. A latent sees all patches, the latents of
        earlier groups, and its own group: all of it or, in the first group, the tokens up to itself."""
        c = self.config
        position = torch.arange(c.block_tokens)
        last_seen = torch.where(position < c.group, position, position // c.group * c.group + c.group - 1)
        mask = torch.ones(c.grid**2 + c.block_tokens, c.grid**2 + c.block_tokens, dtype=torch.bool)
        mask[: c.grid**2, c.grid**2 :] = False
        mask[c.grid**2 :, c.grid**2 :] = position <= last_seen[:, None]
        return mask


class Decoder(nn.Module):
    """Embedded codes (B, n, W) -> pixels (B, 3, S, S), about in [-1, 1], S being g patches, where g depends on n."""

    def __init__(self, c: DetailFlowConfig) -> None:
        super().__init__()
        self.config = c
        self.mask_token = nn.Parameter(_noise(1, 1, c.decoder_width))
        self.position_embedding = nn.Embedding(c.grid**2, c.decoder_width)
        # The positions of smaller grids: one table (g * g, W) for each g. They are not in checkpoints. An import computes them
        # with `resize_positions` and stores them, since another machine might round differently.
        self.resized_positions = nn.ParameterList(_noise(grid**2, c.decoder_width) for grid in range(1, c.grid))
        self.latent_pos_embed = nn.Parameter(_noise(1, c.block_tokens, c.decoder_width))
        layers = (Layer(c.decoder_width, c.decoder_heads, c.decoder_hidden) for _ in range(c.decoder_layers))
        self.layers = nn.ModuleList(layers)
        self.post_layernorm = nn.LayerNorm(c.decoder_width, EPSILON)
        self.to_pixel = nn.Linear(c.decoder_width, CHANNELS * c.patch**2)

    def forward(self, codes: Tensor) -> Tensor:
        batch, count, _ = codes.shape
        grid = self.config.grid_of(count)
        positions = self.position_embedding.weight if grid == self.config.grid else self.resized_positions[grid - 1]
        masks = (self.mask_token + positions).expand(batch, -1, -1)
        x = torch.cat([masks, codes + self.latent_pos_embed[:, :count]], 1)
        for layer in self.layers:
            x = layer(x)
        return from_patches(self.to_pixel(self.post_layernorm(x[:, : grid**2])), self.config.patch)


class DetailFlow(nn.Module):
    """The tokenizer of a block."""

    def __init__(self, config: DetailFlowConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(c)
        self.quant_conv = nn.Linear(c.width, c.code)
        self.quantize = Codebook(c.codebook, c.code)
        self.post_quant_conv = nn.Linear(c.code, c.decoder_width)
        self.decoder = Decoder(c)

    @torch.inference_mode()
    def tokenize(self, pixels: Tensor) -> Tensor:
        """Indices (B, N) of blocks (B, 3, side, side) in [0, 1]. Raises ValueError for blocks of another shape."""
        if pixels.shape[1:] != (CHANNELS, self.config.side, self.config.side):
            msg = f"blocks of {tuple(pixels.shape[1:])}, not ({CHANNELS}, {self.config.side}, {self.config.side})"
            raise ValueError(msg)
        return self.quantize.nearest(self.quant_conv(self.encoder(2 * pixels - 1)))

    @torch.inference_mode()
    def detokenize(self, indices: Tensor) -> Tensor:
        """Blocks (B, 3, side, side) in [0, 1] from the first n indices of each (B, n), rounded down to a trained number.

        Raises TesseraError if n is 0, or greater than the number of tokens of a block."""
        self.config.check_length(indices.shape[1])
        codes = self.quantize.lookup(indices[:, : self.config.trained_length(indices.shape[1])])
        pixels = self.decoder(self.post_quant_conv(codes))
        if pixels.shape[-1] != self.config.side:
            pixels = F.interpolate(pixels, (self.config.side, self.config.side), mode="bicubic")
        return ((pixels + 1) / 2).clamp(0, 1)


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """Pixels (B, 3, S, S) -> (B, P, patch * patch * 3): the numbers of each patch by row, column and channel."""
    batch, channels, side, _ = pixels.shape
    grid = side // patch
    patches = pixels.reshape(batch, channels, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, grid**2, -1)


def from_patches(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `to_patches`."""
    batch, count, _ = patches.shape
    grid = round(count**0.5)
    pixels = patches.reshape(batch, grid, grid, patch, patch, CHANNELS).permute(0, 5, 1, 3, 2, 4)
    return pixels.reshape(batch, CHANNELS, grid * patch, grid * patch)


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Resizes a table of positions (g * g, W) to a smaller grid (grid * grid, W), linearly with antialiasing."""
    side = round(len(table) ** 0.5)
    image = table.float().t().reshape(1, -1, side, side)
    return F.interpolate(image, (grid, grid), mode="bilinear", antialias=True).flatten(2)[0].t().contiguous()


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape) * shape[-1] ** -0.5
