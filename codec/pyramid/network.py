"""The network: a linear transform, a residual pyramid of integer tokens, and convolutional corrections around both.

Sources: the pyramid of residual levels is from VAR (arXiv 2404.02905) and ResGen (2412.10208), the scalar quantizer with small
integers from FSQ (2309.15505), tail token drop from One-D-Piece (2501.10064), and the initial Karhunen-Loeve transform (KLT)
and the embedded deadzone quantizer from transform coding. Before training the network is a KLT codec: every correction starts
at zero.

The decoder's image is as close to the original as it can be; a texture network adds detail to it that looks right
(`Texture`).

Axes: B images, C latent channels, D digits of a token, and height x width as H x W in pixels, h x w in cells (16x16
pixels), n x m in tokens of a level. Pixels are RGB in [-1, 1]. Canvases are whole blocks, so H and W are multiples of 256.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.block_order import BLOCK_CELLS, CELL
from bitstream.pyramid_tokens import Level, context_grids
from codec.pyramid.config import NetworkConfig
from codec.pyramid.noise import NOISE_CHANNELS

TABLES = 64  # frequency tables of a level, one for each scale of its digits
SCORE_RANGE = 12.0  # log-scales from -6 to 6 span the tables
NOISE_MEAN, NOISE_DEVIATION = 127.5, 73.9  # those of bytes that are all equally likely
HAAR = ((1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))  # horizontal, vertical and diagonal detail of 2x2 sub-cells


class Residual(nn.Module):
    """x + mix(gelu(conv(x))): a 3x3 and a 1x1 convolution; the second starts with small weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)
        with torch.no_grad():
            self.mix.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.conv(x)))


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a layer of the signal path in float32, even if the corrections train in bf16."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def residuals(width: int, depth: int) -> list[nn.Module]:
    return [Residual(width) for _ in range(depth)]


def zero_initialized(layer: nn.Conv2d) -> nn.Conv2d:
    """Zeroes a layer so that the correction ending in it initially has no effect."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> latents (B, C, H/16, W/16): a linear transform plus a convolutional correction. Its receptive
    field is `NetworkConfig.encoder_radius`."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3, c.channels, CELL, CELL)
        self.correction = nn.Sequential(
            nn.PixelUnshuffle(8),
            nn.Conv2d(3 * 64, c.encoder_width8, 3, padding=1),
            Residual(c.encoder_width8),
            nn.Conv2d(c.encoder_width8, c.encoder_width16, 2, 2),
            *residuals(c.encoder_width16, c.encoder_depth),
            zero_initialized(nn.Conv2d(c.encoder_width16, c.channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return in_float32(self.linear, x) + self.correction(x)


class Decoder(nn.Module):
    """Latents (B, C, h, w) and map of known tokens (B, 1, h, w) -> pixels (B, 3, 16h, 16w). Its receptive field is
    `NetworkConfig.decoder_radius`."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
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
            zero_initialized(nn.Conv2d(w4, 3 * 16, 3, padding=1)),
            nn.PixelShuffle(4),
        )
        self.texture = Texture(c) if c.texture_widths else None

    def forward(self, latents: Tensor, known: Tensor) -> Tensor:
        return self.pixels(latents, self.features(latents, known))

    def features(self, latents: Tensor, known: Tensor) -> Tensor:
        """The first part, at 1/16 and 1/32 (B, F, h, w): a large receptive field at little memory."""
        x = self.stem(torch.cat([latents, known], 1))
        return self.correction[: self.depth16](x + self.context(x))

    def pixels(self, latents: Tensor, features: Tensor) -> Tensor:
        """The second part, at 1/8 and 1/4, with a receptive field of `NetworkConfig.pixel_radius`."""
        return F.pixel_shuffle(in_float32(self.linear, latents), CELL) + self.correction[self.depth16 :](features)

    def textured(self, latents: Tensor, features: Tensor, detail: Tensor | float, *noise: Tensor) -> Tensor:
        """`pixels` with texture of strength `detail`, with a receptive field of `NetworkConfig.pixel_radius`. `noise` is as in
        `Texture.forward`."""
        assert self.texture
        image = self.pixels(latents, features).float().clamp(-1, 1)
        return image + detail * self.texture(features, image, *noise)


class Texture(nn.Module):
    """Texture that the tokens do not hold, as a difference from the decoded image.

    A decoder with pixel shuffles, trained for a perceptual loss, repeats one pattern everywhere, in step with its grid. Here
    all upsampling is bilinear, so texture can only come from noise. Gates control the noise at each scale."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        widths = (c.decoder_width16, *c.texture_widths)
        self.scales = nn.ModuleList(map(TextureScale, widths, widths[1:]))  # at 1/8, 1/4 and 1/2
        self.output = zero_initialized(nn.Conv2d(widths[-1], 5, 1))

    def forward(self, features: Tensor, image: Tensor, *noise: Tensor) -> Tensor:
        """Features (B, F, h, w), image (B, 3, 16h, 16w) -> difference (B, 3, 16h, 16w). `noise` holds random bytes: four
        channels (1, 4, n, m) at each of 1/8, 1/4 and 1/2, and one (1, 1, 16h, 16w) at full size."""
        *scaled, grain = [(bytes_.float() - NOISE_MEAN) * (1 / NOISE_DEVIATION) for bytes_ in noise]
        half = F.avg_pool2d(image, 2)
        quarter = F.avg_pool2d(half, 2)
        x = features
        for scale, image_there, noise_there in zip(self.scales, (F.avg_pool2d(quarter, 2), quarter, half), scaled, strict=True):
            x = scale(x, image_there, noise_there)
        colours, amounts = self.output(x).float().split((3, 2), 1)
        colours, amounts, blurred = upsample(torch.cat([colours, torch.tanh(amounts), half], 1)).split((3, 2, 3), 1)
        return colours + amounts[:, :1] * grain + amounts[:, 1:] * (image - blurred)


class TextureScale(nn.Module):
    """Doubles the size of features, and adds noise to them."""

    def __init__(self, wide_in: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(wide_in, width, 1)
        self.image = nn.Conv2d(3, width, 3, padding=1)
        self.gate = zero_initialized(nn.Conv2d(width, NOISE_CHANNELS, 1))
        self.noise = nn.Conv2d(NOISE_CHANNELS, width, 3, padding=1)
        self.residual = Residual(width)
        nn.init.normal_(self.noise.weight, std=0.06)
        nn.init.zeros_(self.noise.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, image: Tensor, noise: Tensor) -> Tensor:
        """Features (B, F, n/2, m/2), image (B, 3, n, m), noise (1, 4, n, m) -> features (B, G, n, m)."""
        x = upsample(self.enter(x)) + self.image(image)
        return self.residual(x + self.noise(noise * 2 * torch.sigmoid(self.gate(x))))


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Predictor(nn.Sequential):
    """Predicts the latents (B, C, h, w) from the latents decoded so far and the map of known tokens: decorrelation before
    quantization, as in EF-LIC (2605.23323). Channels after the first `channels` are returned unchanged."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels + 1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            zero_initialized(nn.Conv2d(width, channels, 1)),
        )
        self.channels = channels

    def forward(self, latents: Tensor, known: Tensor) -> Tensor:  # type: ignore[override]
        decoded = latents[:, : self.channels]
        predicted = decoded + super().forward(torch.cat([decoded, known], 1))
        if self.channels == latents.shape[1]:
            return predicted
        return torch.cat([predicted, latents[:, self.channels :]], 1)


class FloatEntropyModel(nn.Sequential):
    """Absolute digits of the last levels (B, K, n, m) -> a score for each digit (B, D, n, m); rounded down and clipped to
    0..TABLES-1 it is the index of the digit's frequency table.

    This is the float form, for training. `codec.pyramid.integer_model` converts it to integers for model files."""

    def __init__(self, inputs: int, width: int, kernels: Sequence[int], digits: int) -> None:
        widths = [inputs, *[width] * (len(kernels) - 1), digits]
        layers: list[nn.Module] = []
        for kernel, wide_in, wide_out in zip(kernels, widths, widths[1:], strict=False):
            layers += [nn.Conv2d(wide_in, wide_out, kernel, padding=kernel // 2), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, digits: Tensor) -> Tensor:
        return TABLES / 2 + TABLES / SCORE_RANGE * super().forward(digits / 4)


class PyramidLevel(nn.Module):
    """One level of the residual pyramid: its predictor, its quantizer's transform and its entropy model (`prior`)."""

    def __init__(self, c: NetworkConfig, index: int) -> None:
        super().__init__()
        self.level = level = c.levels[index]
        self.step, self.rdo_lambda = c.steps[index], c.bit_worth[index]
        self.coarse = level.side < BLOCK_CELLS
        sub_cells = 4 if self.coarse else 1  # coarse tokens see 2x2 sub-cells, so they carry details as well as means
        inputs = sum(c.levels[grid[0]].digits for grid in context_grids(c.levels, index))
        self.predict = Predictor(c.predicted_channels, c.predictor_width)
        self.prior = FloatEntropyModel(max(1, inputs), c.prior_width, c.prior_kernels, level.digits)
        self.project = nn.Conv2d(sub_cells * c.channels, level.digits, 1)
        self.expand = nn.Conv2d(level.digits, sub_cells * c.channels, 1)
        self.smooth = nn.Conv2d(c.channels, c.channels, 3, padding=1, groups=c.channels)
        self._initialize(c.channels, sub_cells)

    def _initialize(self, channels: int, sub_cells: int) -> None:
        """Digits start as the means of the first channels divided by the step; the last three of a coarse level as the Haar
        details of the first channel."""
        level = self.level
        weight = torch.zeros(level.digits, channels, sub_cells)
        for d in range(level.digits - 3 if self.coarse else level.digits):
            weight[d, d] = 1 / sub_cells
        if self.coarse:
            weight[-3:, 0] = torch.tensor(HAAR) / 4
        self.project.weight.data = (weight / self.step).reshape(level.digits, -1, 1, 1)
        self.expand.weight.data = (weight * sub_cells * self.step).reshape(level.digits, -1).t()[:, :, None, None].contiguous()
        nn.init.dirac_(self.smooth.weight, channels)
        for layer in (self.smooth, self.expand, self.project, self.prior[-1]):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def analyse(self, residual: Tensor) -> Tensor:
        """Difference to the predicted latents (B, C, h, w) -> digits before rounding (B, D, n, m)."""
        if self.coarse:
            if (sub_cell := BLOCK_CELLS // 2 // self.level.side) > 1:
                residual = F.avg_pool2d(residual, sub_cell)
            residual = F.pixel_unshuffle(residual, 2)
        return in_float32(self.project, residual)

    def synthesise(self, digits: Tensor) -> Tensor:
        """The approximate inverse of `analyse`: (B, D, n, m) -> (B, C, h, w)."""
        latents = in_float32(self.expand, digits)
        if self.coarse:
            latents = F.pixel_shuffle(latents, 2)
            if (sub_cell := BLOCK_CELLS // 2 // self.level.side) > 1:
                latents = F.interpolate(latents, scale_factor=sub_cell, mode="bilinear", align_corners=False)
        return in_float32(self.smooth, latents)

    def update(self, latents: Tensor, known: Tensor, predicted: Tensor, digits: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and map of known tokens with the level's tokens added where `keep` (B, 1, n, m) is 1."""
        kept = F.interpolate(keep, scale_factor=BLOCK_CELLS // self.level.side) if self.coarse else keep
        refined = predicted + self.synthesise(digits * keep)
        return torch.where(kept > 0, refined, latents), known + kept / 5


class Network(nn.Module):
    """Encoder, levels and decoder. `codec.pyramid.tokenizer` has the loop over the levels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.levels = nn.ModuleList(PyramidLevel(config, index) for index in range(len(config.levels)))
        self.decoder = Decoder(config)

    def start_from_klt(self, mean: Tensor, components: Tensor) -> None:
        """Sets the linear transforms to a KLT and its inverse.

        `mean` (768,) and the orthonormal `components` (C, 768) are of 16x16 RGB patches in (3, 16, 16) order, pixels in
        [-1, 1]. Latents are the coefficients divided by 4; the levels' steps are in that unit."""
        scaled = components / 4
        self.encoder.linear.weight.data = scaled.view(-1, 3, CELL, CELL).clone()
        self.encoder.linear.bias.data = -scaled @ mean  # type: ignore[union-attr]
        self.decoder.linear.weight.data = (components.t() * 4)[:, :, None, None].contiguous()
        self.decoder.linear.bias.data = mean.clone()  # type: ignore[union-attr]

    @torch.no_grad()
    def project_flat_channels(self) -> None:
        """Makes the flat channels and the bias of the decoder's linear transform contribute one colour per cell again.

        Training drifts away from this by a hundredth, which is visible as dots in smooth areas."""
        linear, count = self.decoder.linear, self.config.flat_channels
        if count and linear.bias is not None:
            for weights in (linear.weight[:, :count, 0, 0], linear.bias[:, None]):
                means = weights.reshape(3, CELL**2, -1).mean(1, keepdim=True)
                weights.copy_(means.expand(3, CELL**2, -1).reshape(weights.shape))


def logistic_tables(level: Level) -> Tensor:
    """(TABLES, limit + 1) probabilities of absolute digits under a rounded logistic distribution, one scale per table; the last
    entry takes the tail. Training starts from these tables, before it has counted any digits."""
    log_scale = (torch.arange(TABLES, dtype=torch.float64) + 0.5) * (SCORE_RANGE / TABLES) - SCORE_RANGE / 2
    scale = F.softplus(log_scale + (1.0 if level.side < 8 else -0.5)) + 0.05
    edges = torch.arange(level.limit + 1, dtype=torch.float64) + 0.5
    cumulative = 2 * torch.sigmoid(edges / scale[:, None]) - 1  # P(|digit| <= k)
    cumulative[:, -1] = 1
    return torch.diff(cumulative, prepend=torch.zeros(TABLES, 1, dtype=torch.float64))


def bits_of(tables: Tensor) -> Tensor:
    """Probabilities of absolute digits -> cost of each in bits, with one bit for the sign of a nonzero digit."""
    bits = -torch.log2(tables.clamp(min=2.0**-20))
    bits[..., 1:] += 1
    return bits


def entropy_of(tables: Tensor) -> Tensor:
    """Expected bits of a digit, per table (TABLES,)."""
    return (tables * bits_of(tables)).sum(-1)


def choose_digits(raw: Tensor, contexts: Tensor, bits: Tensor, limit: int, rdo_lambda: float) -> Tensor:
    """Rate-distortion optimised rounding of `raw`, in steps, of any shape. `contexts` holds the table index of each digit, and
    `bits` (TABLES, limit + 1) the cost of absolute digits.

    The smaller magnitude wins if the bits that it saves, times `rdo_lambda` in squared steps per bit, outweigh its error."""
    magnitude = raw.abs()
    nearest = magnitude.round().clamp(max=limit)
    smaller = (nearest - 1).clamp(min=0)
    rows, table = contexts * bits.shape[1], bits.flatten()
    saved = table[rows + nearest.long()] - table[rows + smaller.long()]
    error = (magnitude - smaller) ** 2 - (magnitude - nearest) ** 2
    return raw.sign() * torch.where(error < rdo_lambda * saved, smaller, nearest)


def straight_through(raw: Tensor, digits: Tensor, limit: int) -> Tensor:
    """The digits chosen for `raw`, with the gradient of `raw` (straight-through rounding, Theis et al., arXiv 1703.00395).

    Beyond the limit the gradient is zero, since the digit no longer follows `raw`. Otherwise the gradient would push the
    encoder further out at every step."""
    clamped = raw.clamp(-limit - 0.5, limit + 0.5)
    return clamped + (digits - clamped).detach()
