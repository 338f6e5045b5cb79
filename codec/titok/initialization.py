"""Initialisation of a One-D-Piece: at step 0 its transformers are a cosine transform.

From random weights, such a network spends most of a short run on learning that images have positions and colours. Here the
patch embedding starts as the principal components of patches, and the first layers attend by position alone. Token n sums the
patches weighted by the n-th pattern of a two-dimensional cosine transform, low frequencies first; patch p sums the tokens with
the same weights. A softmax has positive weights only, so two heads are subtracted: one sees a pattern, the other its negative,
and the class embedding takes the remaining attention.

Channels of a vector: [0, K) content, K = D - 1; [K, K + F) position, F the number of patterns that fit a head; then `spare`,
which makes the position vectors equally long, and `flag`, which hides vectors from attention. Further tokens and heads start at
random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.networks.convolution import ResidualBlock
from codec.titok.config import TitokConfig
from codec.titok.network import AttentionBlock, Resolution, Titok, Transformer

LOGIT_SCALE = 1.0  # attention logit per unit of a pattern; at larger scales, softmax is no longer close to linear
SINK = 0.2  # flag of the class embedding, which shows it to attention; -1 hides a vector
CONTENT_NORM = 0.3  # norm of the content relative to the position; layer norms are close to linear in a small content
CODE_NORM = 0.5  # norm of a code's other channels relative to its last channel, which starts constant
SCORE_NORM = 1.5  # norm of queries to the second codebook: softmax then selects neither all vectors nor a single one
COLOUR_SCALE = 0.03  # scale of colours relative to the constant that the pixel decoder adds them to
# Scales are measured on blocks of this many pixels: at least 16 blocks, except for the slow pixel decoder.
MEASURED_PIXELS = 1 << 18
RIDGE = 1e-4  # regularisation of fits, relative to the mean variance of their inputs


@dataclass(frozen=True)
class Channels:
    """The use of a vector's channels."""

    content: int  # K
    patterns: int  # F

    @classmethod
    def of(cls, c: TitokConfig) -> Channels:
        content = min(c.code - 1, c.width // c.heads, c.width // 2)
        return cls(content, min(c.block_tokens, c.grid**2, c.width // c.heads - 1, c.width - content - 2))

    @property
    def position(self) -> slice:
        return slice(self.content, self.content + self.patterns)

    @property
    def spare(self) -> int:
        return self.content + self.patterns

    @property
    def flag(self) -> int:
        return self.spare + 1


@torch.no_grad()
def initialize(network: Titok, x: Tensor) -> None:
    """Sets all weights except the codebook. Scales are measured on the first blocks of x (B, 3, side, side) in [0, 1]."""
    c = network.config
    pixel_blocks = max(1, MEASURED_PIXELS // c.side**2)
    x = x[: max(16, pixel_blocks)]
    ch = Channels.of(c)
    patterns = cosines(c.grid)[: ch.patterns]
    for half in (network.encoder, network.decoder):
        _reset_layers(half, ch)
        half.class_embedding.zero_()[0, [ch.flag, ch.spare]] = torch.tensor([SINK, 1.0])
        patch_positions = half.positional_embedding.zero_()[1:]
        patch_positions[:, ch.position] = patterns.t()
        patch_positions[:, ch.spare] = (1 - patterns.square().sum(0)).clamp(min=0).sqrt()
        _set_token_positions(half, torch.full((ch.patterns,), 0.3), ch)
        # Tokens are computed from patches in the encoder, and patches from tokens in the decoder.
        outputs = half.latent_token_positional_embedding if half is network.encoder else patch_positions
        outputs[:, ch.flag] = -1
        _set_cosine_heads(half, ch, c)
    network.latent_tokens[: ch.patterns] = 0
    network.decoder.mask_token.zero_()
    _set_patch_embedding(network.encoder.patch_embed, x, ch)
    _balance_tokens(network, x, ch)
    _set_pixel_decoder(network, x[:pixel_blocks], ch)


def cosines(grid: int) -> Tensor:
    """The cosine transform of a square grid (grid^2, grid^2): each row is a pattern of length 1, low frequencies first."""
    positions = torch.arange(grid) + 0.5
    rows = torch.stack([torch.cos(math.pi / grid * k * positions) for k in range(grid)])
    rows = F.normalize(rows, dim=1)
    order = sorted(((i, j) for i in range(grid) for j in range(grid)), key=lambda index: (sum(index), index))
    return torch.stack([torch.outer(rows[i], rows[j]).flatten() for i, j in order])


def _reset_layers(half: Transformer, ch: Channels) -> None:
    """Makes attention sharper than PyTorch's almost uniform default. Layers add little, and nothing to the content."""
    for block in cast("list[AttentionBlock]", half.transformer):
        nn.init.normal_(block.attn.in_proj_weight, std=1.5 * block.attn.embed_dim**-0.5)
        for layer in (block.attn.out_proj, cast(nn.Linear, block.mlp.c_proj)):
            layer.weight.mul_(0.3)[: ch.content] = 0
            layer.bias.zero_()
    half.latent_token_positional_embedding[: ch.patterns] = 0


def _set_token_positions(half: Transformer, weights: Tensor, ch: Channels) -> None:
    """Gives token n the n-th pattern, with the n-th of the weights (F,) in 0..1."""
    positions = half.latent_token_positional_embedding[: ch.patterns]
    flag = positions[:, ch.flag].clone()
    positions.zero_()[:, ch.position] = torch.diag(weights)
    positions[:, ch.spare] = (1 - weights.square()).sqrt()
    positions[:, ch.flag] = flag


def _set_cosine_heads(half: Transformer, ch: Channels, c: TitokConfig) -> None:
    """Makes the first two heads of the first layer sum content by position; the second is subtracted from the first."""
    attention = cast(AttentionBlock, half.transformer[0]).attn
    query, key, value = attention.in_proj_weight.chunk(3)
    bias = attention.in_proj_bias.zero_()
    out = attention.out_proj.weight
    size = c.width // c.heads
    # 1.6: product of the lengths of queries and keys before the layer norm, 1.4 and 1.1
    sharpness = (LOGIT_SCALE * size**0.5 / (c.width / 1.6)) ** 0.5
    sink = math.log(min(c.grid**2, c.block_tokens)) * size**0.5 / (SINK * c.width**0.5)
    for head, sign in enumerate((1, -1)):
        rows = slice(head * size, (head + 1) * size)
        for matrix in (query[rows], key[rows], value[rows], out[:, rows].t()):
            matrix.zero_()
        query[rows][: ch.patterns, ch.position] = sharpness * torch.eye(ch.patterns)
        key[rows][: ch.patterns, ch.position] = sign * sharpness * torch.eye(ch.patterns)
        bias[rows][ch.patterns] = 1
        key[rows][ch.patterns, ch.flag] = sink
        value[rows][: ch.content, : ch.content] = torch.eye(ch.content)
        out[: ch.content, rows][:, : ch.content] = sign * torch.eye(ch.content)


def _set_patch_embedding(embed: nn.Conv2d, x: Tensor, ch: Channels) -> None:
    """Sets the patch embedding to the principal components of patches: the first give the content, others fill free
    channels."""
    patches = F.unfold(x, embed.stride, stride=embed.stride).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
    mean = patches.mean(0)
    _, components = torch.linalg.eigh(torch.cov(patches.t()))
    free = [*range(ch.content), *range(ch.flag + 1, len(embed.weight))][: components.shape[1]]
    rows = components.flip(1).t()[: len(free)]
    rows = rows * CONTENT_NORM / ((patches - mean) @ rows[: ch.content].t()).square().sum(1).mean().sqrt()
    embed.weight.zero_()[free] = rows.unflatten(1, embed.weight.shape[1:])
    embed.bias.zero_()[free] = -rows @ mean  # type: ignore[union-attr]


def _balance_tokens(network: Titok, x: Tensor, ch: Channels) -> None:
    """Makes the content of all tokens equally long, although low frequencies are stronger; the decoder inverts this."""
    c = network.config
    encoder, decoder = network.encoder, network.decoder
    convolution, embed = encoder.conv_out, decoder.decoder_embed
    convolution.weight.zero_()
    convolution.bias.zero_()[-1] = 1  # type: ignore[index,union-attr]
    channels = torch.arange(ch.content)
    convolution.weight[channels, channels] = 1

    def token_contents() -> Tensor:
        return encoder(x, network.latent_tokens)[:, : ch.patterns, : ch.content]

    _scale_attention(encoder, token_contents(), ch)
    strength = token_contents().std(0).norm(dim=1)
    weights = (strength.min() / strength).clamp(0.03)
    _set_token_positions(encoder, weights, ch)
    _scale_attention(encoder, token_contents(), ch)
    convolution.weight[channels, channels] = CODE_NORM / token_contents().square().sum(-1).mean().sqrt()
    _set_token_positions(decoder, weights.min() / weights, ch)
    embed.weight.zero_()[channels, channels] = CONTENT_NORM / CODE_NORM
    embed.bias.zero_()
    codes = F.normalize(encoder(x, network.latent_tokens), dim=-1)
    masks = decoder.mask_token.expand(len(x), c.grid**2, -1)
    patches, _ = decoder.attend(masks, embed(codes))
    _scale_attention(decoder, patches[..., : ch.content], ch)


def _scale_attention(half: Transformer, content: Tensor, ch: Channels) -> None:
    """Scales the output of attention such that the content, now (..., K) after a layer norm, gets the length CONTENT_NORM."""
    out = cast(AttentionBlock, half.transformer[0]).attn.out_proj.weight
    out[: ch.content].mul_(CONTENT_NORM * len(out) ** 0.5 / content.square().sum(-1).mean().sqrt())


def _set_pixel_decoder(network: Titok, x: Tensor, ch: Channels) -> None:
    """Makes the pixel decoder return the mean colour of each patch.

    Scores are products with the second codebook itself, so that its softmax passes on a linear function of the patch. Even
    channels of the pixel decoder carry the colours, small against a constant that is positive in these channels and negative in
    the others, so that norms and SiLU are close to linear in them. Every second one carries its colour negated, so that norms
    do not remove the colour. The first and last layers are fitted."""
    c, pixels = network.config, network.pixel_decoder
    wide, _, scores = network.decoder.ffn
    vectors = network.pixel_quantize.embedding.weight
    wide.weight[:, : ch.content].mul_(6)  # type: ignore[operator,union-attr,index]
    inputs = 2 * c.width
    # 0.6: deviation of tanh outputs
    projection = torch.randn(c.pixel_code, inputs).to(x) * SCORE_NORM / (0.6 * inputs**0.5 * c.pixel_code**0.5)
    scores.weight.copy_((vectors @ projection)[:, :, None, None])  # type: ignore[operator,union-attr]
    for module in pixels.modules():
        if isinstance(module, ResidualBlock):
            if hasattr(module, "nin_shortcut"):
                _set_identity(module.conv1)
                _set_identity(module.conv2)
                module.nin_shortcut.weight.zero_()
            else:
                module.conv2.weight.zero_()
        elif isinstance(module, Resolution) and not module.finest:
            _set_identity(module.upsample_conv)
    means = network.pixel_quantize.mean(network.decoder(F.normalize(network.encoder(x, network.latent_tokens), dim=-1)))
    colours = F.avg_pool2d(x, c.patch)
    weight, bias = _fit(means, (colours - colours.mean((0, 2, 3), keepdim=True)) / colours.std())
    pixels.conv_in.weight.zero_()
    pixels.conv_in.bias.fill_(-1)  # type: ignore[union-attr]
    for first, scale in ((0, COLOUR_SCALE), (2, -COLOUR_SCALE)):
        channels = torch.arange(first, len(pixels.conv_in.weight), 4)
        pixels.conv_in.weight[channels, :, 1, 1] = scale * weight[channels // 4 % 3]
        pixels.conv_in.bias[channels] = 1 + scale * bias[channels // 4 % 3]  # type: ignore[index]
    last_inputs: list[Tensor] = []
    hook = pixels.conv_out.register_forward_pre_hook(lambda _, inputs: last_inputs.append(inputs[0]))
    pixels(means)
    hook.remove()
    weight, bias = _fit(last_inputs[0], x)
    pixels.conv_out.weight.zero_()[:, :, 1, 1] = weight
    pixels.conv_out.bias.copy_(bias)  # type: ignore[union-attr]


def _set_identity(convolution: nn.Conv2d) -> None:
    """Makes a convolution copy its input channels; with fewer outputs than inputs, the first channels."""
    nn.init.dirac_(convolution.weight)
    if convolution.bias is not None:
        convolution.bias.zero_()


def _fit(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, I) and bias (O,) of the ridge regression from inputs (B, I, h, w) to targets (B, O, h, w)."""
    a, b = (t.transpose(0, 1).flatten(1).double() for t in (inputs, targets))
    a_mean, b_mean = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    covariance = (a - a_mean) @ (a - a_mean).t()
    covariance += RIDGE * covariance.trace() / len(a) * torch.eye(len(a)).to(a)
    weight = torch.linalg.solve(covariance, (a - a_mean) @ (b - b_mean).t()).t()
    return weight.float(), (b_mean - weight @ a_mean)[:, 0].float()
