"""The network: a linear transform, a residual pyramid of integer tokens, and convolutional corrections around both.

What it takes from where: the pyramid of residual levels from VAR (arXiv 2404.02905) and ResGen (2412.10208), the scalar
quantizer with its small integers from FSQ (2309.15505), tail token drop from One-D-Piece (2501.10064), the start from a
Karhunen-Loeve transform and the embedded deadzone quantizer from transform coding. At step 0 the network *is* a KLT codec;
every correction starts at zero and learns the rest.

Axes: B images, C latent channels, D digits of a token, and height x width as H x W in pixels, h x w in cells (16x16
pixels), n x m in tokens of a level. Pixels are RGB in [-1, 1]. Canvases are whole blocks, so H and W are multiples of 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.block_order import BLOCK_CELLS, CELL
from bitstream.pyramid_tokens import Level, grids_before
from codec.pyramid.config import NetworkConfig

CLASSES = 64  # scales that a prior tells apart
SCORE_RANGE = 12.0  # log-scales from -6 to 6 span the classes
SLOPES = ((1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))  # horizontal, vertical and diagonal slope of 2x2 sub-cells


class Residual(nn.Module):
    """x + mix(gelu(conv3x3(x))): one spatial convolution, one pointwise that starts small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        with torch.no_grad():
            self.mix.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.conv(x)))


def exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer in float32, also where the rest trains in bf16: what carries the signal itself, not a correction to it."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def residuals(width: int, depth: int) -> list[nn.Module]:
    return [Residual(width) for _ in range(depth)]


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Starts a layer at zero, so that what it ends begins as no correction at all."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> latents (B, C, H/16, W/16): a linear transform plus a convolutional correction."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.reach = 2 + c.encoder_depth  # cells around a cell that its latents depend on
        self.linear = nn.Conv2d(3, c.channels, CELL, CELL)
        self.correction = nn.Sequential(
            nn.PixelUnshuffle(8),
            nn.Conv2d(3 * 64, c.encoder_width8, 3, padding=1),
            Residual(c.encoder_width8),
            nn.Conv2d(c.encoder_width8, c.encoder_width16, 2, 2),
            *residuals(c.encoder_width16, c.encoder_depth),
            zero(nn.Conv2d(c.encoder_width16, c.channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return exactly(self.linear, x) + self.correction(x)


class Decoder(nn.Module):
    """Latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> pixels (B, 3, 16h, 16w)."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        reach = 1 + 2 * c.decoder_depth16 + 2 * (1 + c.decoder_depth32) + c.decoder_depth8 // 2 + 2
        self.reach = 2 * -(-reach // 2)  # cells around a cell that its pixels depend on; even, because of the 1/32 branch
        self.pixel_reach = c.decoder_depth8 // 2 + 1  # those of which they take features
        self.depth16 = c.decoder_depth16
        w32, w16, w8, w4 = c.decoder_width32, c.decoder_width16, c.decoder_width8, c.decoder_width4
        self.linear = nn.Conv2d(c.channels, 3 * CELL * CELL, 1)
        self.stem = nn.Sequential(nn.Conv2d(c.channels + 1, w16, 3, padding=1), *residuals(w16, c.decoder_depth16))
        self.context = nn.Sequential(
            nn.Conv2d(w16, w32, 2, 2), *residuals(w32, c.decoder_depth32), nn.ConvTranspose2d(w32, w16, 2, 2)
        )
        self.correction = nn.Sequential(
            *residuals(w16, c.decoder_depth16),
            nn.Conv2d(w16, 4 * w8, 1),
            nn.PixelShuffle(2),
            *residuals(w8, c.decoder_depth8),
            nn.Conv2d(w8, 4 * w4, 1),
            nn.PixelShuffle(2),
            Residual(w4),
            zero(nn.Conv2d(w4, 3 * 16, 3, padding=1)),
            nn.PixelShuffle(4),
        )

    def forward(self, latents: Tensor, known: Tensor) -> Tensor:
        return self.pixels(latents, self.features(latents, known))

    def features(self, latents: Tensor, known: Tensor) -> Tensor:
        """What is computed at 1/16 and 1/32 (B, F, h, w): it sees far, and takes little memory."""
        x = self.stem(torch.cat([latents, known], 1))
        return self.correction[: self.depth16](x + self.context(x))

    def pixels(self, latents: Tensor, features: Tensor) -> Tensor:
        """The rest, at 1/8 and 1/4: it sees no further than `pixel_reach`."""
        return F.pixel_shuffle(exactly(self.linear, latents), CELL) + self.correction[self.depth16 :](features)


class Predictor(nn.Sequential):
    """What the decoded latents and the map of known tokens say of the latents (B, C, h, w): decorrelation before
    quantization, as in EF-LIC (2605.23323). Channels past the first so many stay as they are decoded."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels + 1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            zero(nn.Conv2d(width, channels, 1)),
        )
        self.channels = channels

    def forward(self, latents: Tensor, known: Tensor) -> Tensor:  # type: ignore[override]
        seen = latents[:, : self.channels]
        predicted = seen + super().forward(torch.cat([seen, known], 1))
        if self.channels == latents.shape[1]:
            return predicted
        return torch.cat([predicted, latents[:, self.channels :]], 1)


class FloatEntropyModel(nn.Sequential):
    """Absolute digits of the last levels (B, K, n, m) -> a score in 0..CLASSES for each digit (B, D, n, m).

    This is the float form, for training. `codec.pyramid.integer_model` turns it into integers for the product."""

    def __init__(self, inputs: int, width: int, kernels: Sequence[int], digits: int) -> None:
        widths = [inputs, *[width] * (len(kernels) - 1), digits]
        layers: list[nn.Module] = []
        for kernel, wide_in, wide_out in zip(kernels, widths, widths[1:], strict=False):
            layers += [nn.Conv2d(wide_in, wide_out, kernel, padding=kernel // 2), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, digits: Tensor) -> Tensor:
        return CLASSES / 2 + CLASSES / SCORE_RANGE * super().forward(digits / 4)


class PyramidLevel(nn.Module):
    """One level of the residual pyramid: its prediction, its quantizer's transform, its prior."""

    def __init__(self, c: NetworkConfig, index: int) -> None:
        super().__init__()
        self.level = level = c.levels[index]
        self.step, self.bit_worth = c.steps[index], c.bit_worth[index]
        self.coarse = level.side < BLOCK_CELLS
        parts = 4 if self.coarse else 1  # coarse tokens see 2x2 sub-cells, so that they carry slopes as well as means
        seen = sum(c.levels[grid[0]].digits for grid in grids_before(c.levels, index))
        self.predict = Predictor(c.predicted_channels, c.predictor_width)
        self.prior = FloatEntropyModel(max(1, seen), c.prior_width, c.prior_kernels, level.digits)
        self.project = nn.Conv2d(parts * c.channels, level.digits, 1)
        self.expand = nn.Conv2d(level.digits, parts * c.channels, 1)
        self.smooth = nn.Conv2d(c.channels, c.channels, 3, padding=1, groups=c.channels)
        self._start(c.channels, parts)

    def _start(self, channels: int, parts: int) -> None:
        """Digits begin as the means of the first channels divided by the step; the last three of a coarse level as the
        slopes of the first channel."""
        level = self.level
        weight = torch.zeros(level.digits, channels, parts)
        for d in range(level.digits - 3 if self.coarse else level.digits):
            weight[d, d] = 1 / parts
        if self.coarse:
            weight[-3:, 0] = torch.tensor(SLOPES) / 4
        self.project.weight.data = (weight / self.step).reshape(level.digits, -1, 1, 1)
        self.expand.weight.data = (weight * parts * self.step).reshape(level.digits, -1).t()[:, :, None, None].contiguous()
        nn.init.dirac_(self.smooth.weight, channels)
        for layer in (self.smooth, self.expand, self.project, self.prior[-1]):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def analyse(self, residual: Tensor) -> Tensor:
        """What is left of the latents (B, C, h, w) -> digits before rounding (B, D, n, m)."""
        if self.coarse:
            if (sub_cell := BLOCK_CELLS // 2 // self.level.side) > 1:
                residual = F.avg_pool2d(residual, sub_cell)
            residual = F.pixel_unshuffle(residual, 2)
        return exactly(self.project, residual)

    def round(self, raw: Tensor, classes: Tensor, bits: Tensor) -> Tensor:
        """The digits to send for `raw` (..., D, n, m), by the class of each and the bits of its class (CLASSES, limit + 1)."""
        return choose_digits(raw, classes, bits, self.level.limit, self.bit_worth)

    def synthesise(self, digits: Tensor) -> Tensor:
        """The inverse of `analyse`, up to what the level cannot carry: (B, D, n, m) -> (B, C, h, w)."""
        latents = exactly(self.expand, digits)
        if self.coarse:
            latents = F.pixel_shuffle(latents, 2)
            if (sub_cell := BLOCK_CELLS // 2 // self.level.side) > 1:
                latents = F.interpolate(latents, scale_factor=sub_cell, mode="bilinear", align_corners=False)
        return exactly(self.smooth, latents)

    def update(self, latents: Tensor, known: Tensor, predicted: Tensor, digits: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the level's tokens where `keep` (B, 1, n, m) is 1; elsewhere the latents stay as they are."""
        kept = F.interpolate(keep, scale_factor=BLOCK_CELLS // self.level.side) if self.coarse else keep
        refined = predicted + self.synthesise(digits * keep)
        return torch.where(kept > 0, refined, latents), known + kept / 5


class Network(nn.Module):
    """Encoder, levels and decoder. How tokens are chosen is in `codec.pyramid.tokenizer` (coding) and
    `codec.pyramid.training` (learning)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.levels = nn.ModuleList(PyramidLevel(config, index) for index in range(len(config.levels)))
        self.decoder = Decoder(config)

    def start_from_klt(self, mean: Tensor, components: Tensor) -> None:
        """Makes the linear transforms a KLT and its inverse.

        mean (768,), components (C, 768), orthonormal, of 16x16 RGB patches in (3, 16, 16) order, pixels in [-1, 1]. Latents
        are the coefficients divided by 4, which is the unit of the levels' steps."""
        scaled = components / 4
        self.encoder.linear.weight.data = scaled.view(-1, 3, CELL, CELL).clone()
        self.encoder.linear.bias.data = -scaled @ mean  # type: ignore[union-attr]
        self.decoder.linear.weight.data = (components.t() * 4)[:, :, None, None].contiguous()
        self.decoder.linear.bias.data = mean.clone()  # type: ignore[union-attr]

    @torch.no_grad()
    def keep_flat(self) -> None:
        """Makes what the decoder's linear transform adds for the flat channels, and for none, one colour per cell again.

        Training drifts away from that by a hundredth, which already shows as dots in smooth areas."""
        linear, count = self.decoder.linear, self.config.flat_channels
        if count and linear.bias is not None:
            for part in (linear.weight[:, :count, 0, 0], linear.bias[:, None]):
                means = part.reshape(3, CELL**2, -1).mean(1, keepdim=True)
                part.copy_(means.expand(3, CELL**2, -1).reshape(part.shape))


def logistic_tables(level: Level) -> Tensor:
    """(CLASSES, limit + 1) probabilities of absolute digits under a rounded logistic of each class's scale, before photos
    have been counted; the last entry takes the tail."""
    log_scale = (torch.arange(CLASSES, dtype=torch.float64) + 0.5) * (SCORE_RANGE / CLASSES) - SCORE_RANGE / 2
    scale = F.softplus(log_scale + (1.0 if level.side < 8 else -0.5)) + 0.05
    edges = torch.arange(level.limit + 1, dtype=torch.float64) + 0.5
    inside = 2 * torch.sigmoid(edges / scale[:, None]) - 1  # P(|digit| <= k)
    inside[:, -1] = 1
    return torch.diff(inside, prepend=torch.zeros(CLASSES, 1, dtype=torch.float64))


def bits_of(tables: Tensor) -> Tensor:
    """Probabilities of absolute digits -> bits of a digit, the sign's bit included where there is one."""
    bits = -torch.log2(tables.clamp(min=2.0**-20))
    bits[..., 1:] += 1
    return bits


def entropy_of(tables: Tensor) -> Tensor:
    """Expected bits of a digit, by class (CLASSES,)."""
    return (tables * bits_of(tables)).sum(-1)


def choose_digits(raw: Tensor, classes: Tensor, bits: Tensor, limit: int, bit_worth: float) -> Tensor:
    """Rate-distortion optimised rounding of `raw`, in steps, of any shape: the smaller magnitude wins where the bits that it
    saves under `bits` (CLASSES, limit + 1), at `bit_worth` squared steps each, outweigh its error."""
    magnitude = raw.abs()
    near = magnitude.round().clamp(max=limit)
    less = (near - 1).clamp(min=0)
    row = classes * bits.shape[1]
    flat = bits.flatten()
    saved = flat[row + near.long()] - flat[row + less.long()]
    error = (magnitude - less) ** 2 - (magnitude - near) ** 2
    return raw.sign() * torch.where(error < bit_worth * saved, less, near)


def straight_through(raw: Tensor, digits: Tensor, limit: int) -> Tensor:
    """The digits chosen for `raw`, with the gradient of `raw` (straight-through rounding, Theis et al., arXiv 1703.00395).

    Past its limit a digit does not follow, and neither does its gradient: it would push the encoder ever further out, after a
    while on every image."""
    reach = raw.clamp(-limit - 0.5, limit + 0.5)
    return reach + (digits - reach).detach()
