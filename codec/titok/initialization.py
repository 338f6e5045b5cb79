"""Where training of a One-D-Piece starts: at step 0 its transformers are a cosine transform, and learn the rest.

From random weights a network of this kind spends most of a short run on finding out that images have places and colours.
Here the patch embedding starts as the principal components of patches, and attention in the first layers looks by position
alone: token n sums the patches weighted by the n-th pattern of a two-dimensional cosine transform, low frequencies first, and
patch p sums the tokens with the same weights. Softmax has positive weights only, so two heads are subtracted: one sees a
pattern, the other its negative, and the class embedding takes what is left over.

Channels of a vector: [0, K) content, K = D - 1; [K, K + F) which pattern, F as many as a head has room for; then `spare`, which
fills vectors up to equal length, and `flag`, which tells what attention may look at. Further tokens and heads start at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.titok.config import TitokConfig
from codec.titok.network import AttentionBlock, ResidualBlock, Resolution, Titok, Transformer

SLOPE = 1.0  # of attention's logits in the patterns: with more, softmax is no longer about linear
SINK = 0.2  # what shows the class embedding to attention, against the -1 that hides a vector
CONTENT = 0.3  # length of the content of a vector against that of its place: norms are about linear in a small one
TANGENT = 0.5  # the same for the numbers of a code but the last, which starts constant, against that
SCORES = 1.5  # length of what the second codebook is asked for: its softmax is then neither flat nor one vector alone
FAINT = 0.03  # of colours against the constant beside which they are carried
PIXELS = 1 << 18  # of blocks to measure on, 16 at least; the pixel decoder, which is slow, sees no more
RIDGE = 1e-4  # of fits, against the mean variance of what they read


@dataclass(frozen=True)
class Channels:
    """Which channels of a vector are what."""

    content: int
    patterns: int

    @classmethod
    def of(cls, c: TitokConfig) -> Channels:
        content = min(c.code - 1, c.width // c.heads, c.width // 2)
        return cls(content, min(c.block_tokens, c.grid**2, c.width // c.heads - 1, c.width - content - 2))

    @property
    def place(self) -> slice:
        return slice(self.content, self.content + self.patterns)

    @property
    def spare(self) -> int:
        return self.content + self.patterns

    @property
    def flag(self) -> int:
        return self.spare + 1


def cosines(grid: int) -> Tensor:
    """The cosine transform of a square grid (grid^2, grid^2): a row is a pattern, of length 1, low frequencies first."""
    place = torch.arange(grid) + 0.5
    rows = torch.stack([torch.cos(math.pi / grid * k * place) for k in range(grid)])
    rows = F.normalize(rows, dim=1)
    order = sorted(((i, j) for i in range(grid) for j in range(grid)), key=lambda at: (sum(at), at))
    return torch.stack([torch.outer(rows[i], rows[j]).flatten() for i, j in order])


@torch.no_grad()
def start(network: Titok, x: Tensor) -> None:
    """Sets all weights but the codebook, from the first of the blocks x (B, 3, side, side) in [0, 1]."""
    c = network.config
    few = max(1, PIXELS // c.side**2)
    x = x[: max(16, few)]
    ch = Channels.of(c)
    patterns = cosines(c.grid)[: ch.patterns]
    for half, hidden in ((network.encoder, "latents"), (network.decoder, "patches")):
        _calm(half, ch)
        half.class_embedding.zero_()[0, [ch.flag, ch.spare]] = torch.tensor([SINK, 1.0])
        places = half.positional_embedding.zero_()[1:]
        places[:, ch.place] = patterns.t()
        places[:, ch.spare] = (1 - patterns.square().sum(0)).clamp(min=0).sqrt()
        _say_places(half, torch.full((ch.patterns,), 0.3), ch)
        (half.latent_token_positional_embedding if hidden == "latents" else places)[:, ch.flag] = -1
        _look(half, ch, c)
    network.latent_tokens[: ch.patterns] = 0
    network.decoder.mask_token.zero_()
    _embed(network.encoder.patch_embed, x, ch)
    _scale(network, x, ch)
    _pixels(network, x[:few], ch)


def _calm(half: Transformer, ch: Channels) -> None:
    """Attention sharper than PyTorch starts it, which is almost even; but layers add little, and nothing to content."""
    for block in cast("list[AttentionBlock]", half.transformer):
        nn.init.normal_(block.attn.in_proj_weight, std=1.5 * block.attn.embed_dim**-0.5)
        for layer in (block.attn.out_proj, cast(nn.Linear, block.mlp.c_proj)):
            layer.weight.mul_(0.3)[: ch.content] = 0
            layer.bias.zero_()
    half.latent_token_positional_embedding[: ch.patterns] = 0


def _say_places(half: Transformer, weights: Tensor, ch: Channels) -> None:
    """Token n looks, or is looked at, with the n-th of the weights (F,), 0..1."""
    places = half.latent_token_positional_embedding[: ch.patterns]
    flag = places[:, ch.flag].clone()
    places.zero_()[:, ch.place] = torch.diag(weights)
    places[:, ch.spare] = (1 - weights.square()).sqrt()
    places[:, ch.flag] = flag


def _look(half: Transformer, ch: Channels, c: TitokConfig) -> None:
    """The first two heads of the first layer sum content by place, the one minus the other."""
    attention = cast(AttentionBlock, half.transformer[0]).attn
    query, key, value = attention.in_proj_weight.chunk(3)
    bias = attention.in_proj_bias.zero_()
    out = attention.out_proj.weight
    size = c.width // c.heads
    sharpness = (SLOPE * size**0.5 / (c.width / 1.6)) ** 0.5  # 1.6: lengths of queries and keys before the norm, 1.4 and 1.1
    sink = math.log(min(c.grid**2, c.block_tokens)) * size**0.5 / (SINK * c.width**0.5)
    for head, sign in enumerate((1, -1)):
        rows = slice(head * size, (head + 1) * size)
        for part in (query[rows], key[rows], value[rows], out[:, rows].t()):
            part.zero_()
        query[rows][: ch.patterns, ch.place] = sharpness * torch.eye(ch.patterns)
        key[rows][: ch.patterns, ch.place] = sign * sharpness * torch.eye(ch.patterns)
        bias[rows][ch.patterns] = 1
        key[rows][ch.patterns, ch.flag] = sink
        value[rows][: ch.content, : ch.content] = torch.eye(ch.content)
        out[: ch.content, rows][:, : ch.content] = sign * torch.eye(ch.content)


def _embed(embed: nn.Conv2d, x: Tensor, ch: Channels) -> None:
    """Principal components of patches: the first become the content, others go where there is room."""
    patches = F.unfold(x, embed.stride, stride=embed.stride).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
    mean = patches.mean(0)
    _, components = torch.linalg.eigh(torch.cov(patches.t()))
    free = [*range(ch.content), *range(ch.flag + 1, len(embed.weight))][: components.shape[1]]
    rows = components.flip(1).t()[: len(free)]
    rows = rows * CONTENT / ((patches - mean) @ rows[: ch.content].t()).square().sum(1).mean().sqrt()
    embed.weight.zero_()[free] = rows.unflatten(1, embed.weight.shape[1:])
    embed.bias.zero_()[free] = -rows @ mean  # type: ignore[union-attr]


def _scale(network: Titok, x: Tensor, ch: Channels) -> None:
    """Makes tokens equally strong, low frequencies having much more to say, and has the decoder undo it."""
    c = network.config
    encoder, decoder = network.encoder, network.decoder
    convolution, embed = encoder.conv_out, decoder.decoder_embed
    convolution.weight.zero_()
    convolution.bias.zero_()[-1] = 1  # type: ignore[index,union-attr]
    channels = torch.arange(ch.content)
    convolution.weight[channels, channels] = 1

    def vectors() -> Tensor:
        return encoder(x, network.latent_tokens)[:, : ch.patterns, : ch.content]

    _amplify(encoder, vectors(), ch)
    strength = vectors().std(0).norm(dim=1)
    weights = (strength.min() / strength).clamp(0.03)
    _say_places(encoder, weights, ch)
    _amplify(encoder, vectors(), ch)
    convolution.weight[channels, channels] = TANGENT / vectors().square().sum(-1).mean().sqrt()
    _say_places(decoder, weights.min() / weights, ch)
    embed.weight.zero_()[channels, channels] = CONTENT / TANGENT
    embed.bias.zero_()
    codes = F.normalize(encoder(x, network.latent_tokens), dim=-1)
    masks = decoder.mask_token.expand(len(x), c.grid**2, -1)
    patches, _ = decoder.attend(masks, embed(codes))
    _amplify(decoder, patches[..., : ch.content], ch)


def _amplify(half: Transformer, content: Tensor, ch: Channels) -> None:
    """Multiplies what attention adds, so that content (..., K), in units of a norm's output, has the length that it should."""
    out = cast(AttentionBlock, half.transformer[0]).attn.out_proj.weight
    out[: ch.content].mul_(CONTENT * len(out) ** 0.5 / content.square().sum(-1).mean().sqrt())


def _pixels(network: Titok, x: Tensor, ch: Channels) -> None:
    """Scores are products with the second codebook itself, so that its softmax passes on what is asked for. The pixel decoder
    passes on the mean colour of each patch: even channels carry it, small against a constant that is positive in these and
    negative in the others, so that norms and SiLU are about linear in it; every second one of these carries its negative, so
    that norms do not remove it. Both ends are fitted."""
    c, pixels = network.config, network.pixel_decoder
    wide, _, scores = network.decoder.ffn
    vectors = network.pixel_quantize.embedding.weight
    wide.weight[:, : ch.content].mul_(6)  # type: ignore[operator,union-attr,index]
    inputs = 2 * c.width
    asked = torch.randn(c.pixel_code, inputs).to(x) * SCORES / (0.6 * inputs**0.5 * c.pixel_code**0.5)  # 0.6: of tanh
    scores.weight.copy_((vectors @ asked)[:, :, None, None])  # type: ignore[operator,union-attr]
    for module in pixels.modules():
        if isinstance(module, ResidualBlock):
            if hasattr(module, "nin_shortcut"):
                _pass_on(module.conv1)
                _pass_on(module.conv2)
                module.nin_shortcut.weight.zero_()
            else:
                module.conv2.weight.zero_()
        elif isinstance(module, Resolution) and not module.finest:
            _pass_on(module.upsample_conv)
    asked_for = network.pixel_quantize.mean(network.decoder(F.normalize(network.encoder(x, network.latent_tokens), dim=-1)))
    colours = F.avg_pool2d(x, c.patch)
    weight, bias = _fit(asked_for, (colours - colours.mean((0, 2, 3), keepdim=True)) / colours.std())
    pixels.conv_in.weight.zero_()
    pixels.conv_in.bias.fill_(-1)  # type: ignore[union-attr]
    for first, faint in ((0, FAINT), (2, -FAINT)):
        channels = torch.arange(first, len(pixels.conv_in.weight), 4)
        pixels.conv_in.weight[channels, :, 1, 1] = faint * weight[channels // 4 % 3]
        pixels.conv_in.bias[channels] = 1 + faint * bias[channels // 4 % 3]  # type: ignore[index]
    carried: list[Tensor] = []
    hook = pixels.conv_out.register_forward_pre_hook(lambda _, inputs: carried.append(inputs[0]))
    pixels(asked_for)
    hook.remove()
    weight, bias = _fit(carried[0], x)
    pixels.conv_out.weight.zero_()[:, :, 1, 1] = weight
    pixels.conv_out.bias.copy_(bias)  # type: ignore[union-attr]


def _pass_on(convolution: nn.Conv2d) -> None:
    """Channels (the first, where there are fewer after it) stay as they are."""
    nn.init.dirac_(convolution.weight)
    if convolution.bias is not None:
        convolution.bias.zero_()


def _fit(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, I) and bias (O,) of the linear map from (B, I, h, w) that is nearest to (B, O, h, w)."""
    a, b = (t.transpose(0, 1).flatten(1).double() for t in (inputs, wanted))
    a_mean, b_mean = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    covariance = (a - a_mean) @ (a - a_mean).t()
    covariance += RIDGE * covariance.trace() / len(a) * torch.eye(len(a)).to(a)
    weight = torch.linalg.solve(covariance, (a - a_mean) @ (b - b_mean).t()).t()
    return weight.float(), (b_mean - weight @ a_mean)[:, 0].float()
