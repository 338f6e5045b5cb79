"""Trains a pyramid: straight-through rounding, with digits priced as files code them.

Loss: mean squared error + perceptual distance + sum over levels of lambda x bits per pixel. Sequences are truncated at random
(tail token drop, One-D-Piece, arXiv 2501.10064). The recipe's `part` may also be the decoder alone, for squared error, or the
texture network alone, for perceptual distance. These keep the tokens of the model that they start from, and its stream id.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bitstream.block_order import BLOCK, CELL
from bitstream.pyramid_tokens import PyramidCode, context_grids
from codec.errors import UsageError
from codec.models.pixels import from_network, to_network
from codec.models.registry import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.integer_model import LOGISTIC_DIGITS, measure_tables
from codec.pyramid.model import PyramidModel, as_pyramid, save_pyramid
from codec.pyramid.network import (
    TABLES,
    Network,
    PyramidLevel,
    bits_of,
    choose_digits,
    entropy_of,
    logistic_tables,
    straight_through,
)
from codec.pyramid.noise import NOISE_CHANNELS, SCALES
from codec.system.device import trains_in_bf16
from codec.training.losses import PerceptualLoss, colour_distance, pattern_distance
from codec.training.photos import random_crops
from codec.training.recipe import TrainingConfig
from codec.training.trainer import Trainer

COUNT_DECAY = 0.998  # factor of the counts per step
MODEL_DIGITS = 1e6  # counted digits that a model's table stands for
STANDARD = NetworkConfig()  # configuration of networks trained from scratch
TEXTURE_WIDTHS = (64, 48, 16)  # of a texture network that starts from a model without one
PARTS = ALL, DECODER, TEXTURE = ("all", "decoder", "texture")
# Limits of a sample's squared error if only a part is trained. A few samples of strong colours would make up all the gradient.
MIN_ERROR, MAX_ERROR = 1e-3, 0.6
PREFIXES = {ALL: "", DECODER: "decoder.", TEXTURE: "decoder.texture."}  # of the parameters that are trained
BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel, for validation


@dataclass(frozen=True)
class PyramidTraining(TrainingConfig):
    """The recipe. Tuples have one value per level of `NetworkConfig`, coarse to fine."""

    part: str = ALL  # what is trained: all but texture, the decoder, or texture
    tokens_of: str = ""  # the model whose tokens are kept, if only a part is trained
    patch: int = 96
    linear_rate: float = 0.1  # learning rate of the linear layers, which start as a KLT, relative to `rate`
    # Factor of `perceptual` for sequences that are truncated within each level. Short sequences gain from large factors. For
    # long ones 0.8 cost 1.3 dB and gained nothing, and 0.25 at the ninth level made the term ten times the squared error
    # (benchmarks/training-log.md).
    perceptual_weights: tuple[float, ...] = (*(0.8,) * 6, 0.7, 0.5, 0.08, 0.05, 0.03, 0.03, 0.02, 0.02)
    # The same for texture. It cannot lower the PSNR of images that are decoded without it, so long sequences have more.
    texture_weights: tuple[float, ...] = (*(0.8,) * 8, 0.5, 0.5, 0.3, 0.3, 0.2, 0.2)
    # Weights within the perceptual distance: `aligned` for features compared position by position, `local` for their local
    # means and deviations. With both, LPIPS fell by 5 % at every rate in 24 minutes; local statistics alone were not tried.
    aligned: float = 0.5
    local: float = 1.0
    perceptual_every: int = 1  # one crop in this many gets a perceptual distance; VGG costs more than the network
    colour: float = 120.0  # weight of the mean-colour distance; with 6, PSNR was 0.3 dB lower
    pattern: float = 20.0  # weight of the error that repeats every 8 pixels; without it, that error is twice as large
    lambda_scale: float = 1.0  # multiplies `lambdas`
    # Loss per bit per pixel. It falls to a quarter from one refinement to the next as steps halve, so a bit is worth 0.12
    # squared steps in each of them. Values twice as high relative to the steps cost 0.2-0.4 dB.
    lambdas: tuple[float, ...] = (1.2, 1.2, 1.2, 1.0, 0.55, 0.55, 0.14, 0.14, 0.035, 0.035, 0.009, 0.009, 0.0024, 0.0024)
    # Relative frequency of truncation within each level.
    truncation_weights: tuple[float, ...] = (0.01, 0.02, 0.04, 0.12, 0.13, 0.11, 0.1, 0.1, 0.12, 0.12, 0.05, 0.04, 0.02, 0.02)
    level_end_probability: float = 0.4  # probability of truncation at the end of a level, not inside it

    def __post_init__(self) -> None:
        """Raises UsageError for values that training cannot use."""
        if self.part not in PARTS:
            msg = f"part {self.part} is none of {', '.join(PARTS)}"
            raise UsageError(msg)
        if min(self.lambdas) <= 0 or sum(self.truncation_weights) <= 0 or self.level_end_probability > 1:
            msg = (
                f"lambdas {self.lambdas} and the sum of truncation_weights {self.truncation_weights} must be above 0, "
                f"level_end_probability {self.level_end_probability} at most 1"
            )
            raise UsageError(msg)


class Prices(nn.Module):
    """The frequency tables of all levels: shares of absolute digits, counted during training with exponential decay. Model
    files get their tables in the same way, so training and files price digits alike."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.counts = nn.ParameterList(
            nn.Parameter(torch.zeros(TABLES, level.limit + 1), requires_grad=False) for level in config.levels
        )
        self.starts = [logistic_tables(level).float() for level in config.levels]

    def start_from(self, code: PyramidCode) -> None:
        """Sets the counts to the tables of a model."""
        for counts, model in zip(self.counts, code.entropy_models, strict=True):
            frequencies = torch.from_numpy(model.frequencies[:, model.frequencies.shape[1] // 2 :].astype(np.float32))
            frequencies[:, 1:] *= 2  # of both signs
            counts.data = (frequencies * (MODEL_DIGITS / frequencies.sum(1, keepdim=True))).to(counts.device)

    def tables(self, index: int) -> Tensor:
        """(TABLES, limit + 1) probabilities of absolute digits."""
        counts = self.counts[index] + LOGISTIC_DIGITS * self.starts[index].to(self.counts[index].device)
        return counts / counts.sum(1, keepdim=True)

    def count(self, index: int, contexts: Tensor, magnitudes: Tensor, weight: Tensor) -> None:
        """Counts absolute digits (B, D, n, m) of level `index`, each with its `weight`, in the table that `contexts` names."""
        counts = self.counts[index]
        entries = (contexts * counts.shape[1] + magnitudes.long()).flatten()
        added = torch.bincount(entries, weight.expand_as(contexts).flatten(), minlength=counts.numel())
        counts.data.mul_(COUNT_DECAY).add_(added.view_as(counts).to(counts.dtype))


def priced(raw: Tensor, digits: Tensor, score: Tensor, bits: Tensor, with_gradient: bool) -> Tensor:
    """Bits of each digit (B, D, n, m), interpolated between neighbouring tables so that `score` has a gradient. If
    `with_gradient`, the gradient of `raw` is the slope of the bits at a randomly dithered magnitude."""
    width = bits.shape[1]
    table = bits.flatten()
    position = (score - 0.5).clamp(0, TABLES - 1)
    lower = position.detach().floor().clamp(max=TABLES - 2).long()
    magnitude = digits.detach().abs().long()
    cost = torch.lerp(table[lower * width + magnitude], table[(lower + 1) * width + magnitude], position - lower)
    if with_gradient:
        dithered = (raw + torch.rand_like(raw) - 0.5).abs()
        below = dithered.detach().floor().clamp(max=width - 2).long()
        # The table's last entry holds all larger digits, so it may be cheaper than the one before it. With such a slope the
        # encoder would drift outwards without end. Beyond the limit the slope grows with the distance.
        slope = (table[lower * width + below + 1] - table[lower * width + below]).clamp(min=0)
        slope = torch.maximum(slope, dithered.detach() - (width - 1.5))
        cost = cost + slope * (dithered - dithered.detach())
    return cost


@dataclass
class Coded:
    """A batch of latents after quantization and dequantization."""

    latents: Tensor  # (B, C, h, w)
    known: Tensor  # (B, 1, h, w)
    bits: list[Tensor]  # (B,) per level
    token_bits: list[Tensor]  # (B, tokens) per level, in coding order, for the samples that reach the level


def code_for_training(network: Network, prices: Prices, latents: Tensor, stop: Tensor) -> Coded:
    """Quantizes latents (B, C, h, w) with straight-through gradients.

    `stop` (B,), in descending order, is the number of levels to keep: 4.3 keeps four levels, and the 30 % of tokens with the
    highest expected cost of the fifth. Samples leave the batch after their last level, so fine levels take little time. A
    network in training mode also counts its digits into `prices`."""
    bits_sent: list[Tensor] = []
    token_bits: list[Tensor] = []
    magnitudes: list[Tensor] = []  # absolute digits (B, D, n, m) per level
    decoded, known = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
    finished: list[tuple[Tensor, Tensor]] = []  # latents and known maps of samples that have left; the last leave first
    for index, level in enumerate(network.levels):
        assert isinstance(level, PyramidLevel)
        active = int((stop > index).sum())
        if active < len(decoded):
            finished.append((decoded[active:], known[active:]))
            decoded, known = decoded[:active], known[:active]
        if not active:
            break
        latents = latents[:active]
        magnitudes = [values[:active] for values in magnitudes]
        predicted = level.predict(decoded, known)
        raw = level.analyse(latents - predicted).float()
        size = raw.shape[2:]
        mask = torch.from_numpy(level.level.mask(*size)).to(raw.device).flatten()
        grids = context_grids(network.config.levels, index)
        planes = [F.interpolate(torch.stack([magnitudes[other] for other in grid]).sum(0), size=size) for grid in grids]
        score = level.prior(torch.cat(planes, 1) if planes else raw.new_zeros(active, 1, *size)).float()
        with torch.no_grad():
            tables = prices.tables(index)
            bits = bits_of(tables)
            contexts = score.floor().clamp(0, TABLES - 1).long()
            chosen = choose_digits(raw, contexts, bits, level.level.limit, level.rdo_lambda)
            expected = entropy_of(tables)[contexts].sum(1).flatten(1)
            expected = expected.masked_fill(~mask, -1.0)  # tokens of the other checkerboard pass come last and are not kept
            order = torch.sort(expected, dim=1, descending=True, stable=True)[1]
            ranks = torch.arange(order.shape[1], device=order.device).expand_as(order)
            rank = torch.empty_like(order).scatter_(1, order, ranks)
            count = int(mask.sum())
            kept = ((stop[:active] - index).clamp(0, 1) * count).ceil()
            keep = (rank < kept[:, None]).float().view(active, 1, *size)
            if network.training:
                prices.count(index, contexts, chosen.abs(), keep)
        cost = priced(raw, chosen, score, bits, network.training)
        bits_sent.append(F.pad((cost * keep).sum((1, 2, 3)), (0, len(stop) - active)))
        token_bits.append(cost.detach().sum(1).flatten(1).gather(1, order[:, :count]))
        digits = straight_through(raw, chosen, level.level.limit) * keep
        magnitudes.append(digits.abs())
        decoded, known = level.update(decoded, known, predicted, digits, keep)
    latents, known = (torch.cat(parts) for parts in zip((decoded, known), *reversed(finished), strict=True))
    return Coded(latents, known, bits_sent, token_bits)


def textured(network: Network, coded: Coded) -> Tensor:
    """Pixels (B, 3, H, W) with texture; only texture has gradients."""
    decoder = network.decoder
    assert decoder.texture
    with torch.no_grad():
        features = decoder.features(coded.latents, coded.known)
        image = decoder.pixels(coded.latents, features).float().clamp(-1, 1)
    count, (rows, columns) = len(image), image.shape[2:]
    sizes = [(NOISE_CHANNELS, rows // scale, columns // scale) for scale in SCALES] + [(1, rows, columns)]
    noise = (torch.randint(256, (count, *size), dtype=torch.uint8, device=image.device) for size in sizes)
    return image + decoder.texture(features, image, *noise)


@torch.no_grad()
def validate(
    network: Network, prices: Prices, photos: Tensor, perceptual: PerceptualLoss | None, texture: bool = False
) -> dict[str, float]:
    """PSNR (dB) and perceptual distance of held-out photos (N, side, side, 3) at each budget, and bits per pixel at the end of
    each level. Rates are estimated by the entropy model; budgets are reduced by 12 bytes for a header."""
    network.eval()
    rows = []
    for photo in photos:
        x = to_network(photo[None, :BLOCK, :BLOCK])
        latents = network.encoder(x)
        complete = code_for_training(network, prices, latents, torch.full((1,), float(len(network.levels)), device=x.device))
        costs = [bits[0].double() for bits in complete.token_bits]
        row = {f"end{i}": float(sum(c.sum() for c in costs[: i + 1])) / BLOCK**2 for i in range(len(costs))}
        for budget in BUDGETS:
            left = budget * BLOCK**2 - 96
            stop = 0.0
            for cost in costs:
                kept = int((cost.cumsum(0) <= left).sum())
                stop += kept / len(cost)
                left -= float(cost[:kept].sum())
                if kept < len(cost):
                    break
            coded = code_for_training(network, prices, latents, torch.tensor([stop - 1e-6], device=x.device))
            decoded = textured(network, coded) if texture else network.decoder(coded.latents, coded.known)
            y = to_network(from_network(decoded))
            row[f"psnr@{budget}"] = float(-10 * torch.log10((y - x).pow(2).mean() / 4))
            if perceptual:
                row[f"vgg@{budget}"] = float(perceptual(y, x))
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


class PyramidTrainer(Trainer):
    """Trains a `Network` and the frequency tables of its digits."""

    family = "pyramid"
    recipe: ClassVar[type[TrainingConfig]] = PyramidTraining
    loss_without_vgg = "squared error and colour"
    network: Network
    ema: Network
    config: PyramidTraining

    def __init__(self, network: Network, config: PyramidTraining, device: torch.device) -> None:
        super().__init__(network, config, device)
        self.prices = Prices(network.config).to(device)

    @classmethod
    def configure(cls, **network_options: Any) -> NetworkConfig:
        return STANDARD

    @classmethod
    def from_scratch(cls, photos: Tensor, config: PyramidTraining, device: torch.device, **network_options: Any) -> Self:
        """A trainer of a network that starts as the KLT of the photos. Raises UsageError if it would train only a part."""
        if config.part != ALL:
            msg = f"part {config.part} needs a model to start from"
            raise UsageError(msg, ("init",))
        trainer = cls(Network(cls.configure()), config, device)
        trainer.network.start_from_klt(*karhunen_loeve(photos, trainer.network.config.channels, trainer.rng))
        trainer.ema.load_state_dict(trainer.network.state_dict())
        return trainer

    @classmethod
    def from_model(cls, name: str, config: PyramidTraining, device: torch.device) -> Self:
        model = as_pyramid(open_model(name))
        network = model.network("cpu").requires_grad_(True)
        if config.part != ALL:
            config = replace(config, tokens_of=name)
        if config.part == TEXTURE and not network.decoder.texture:
            weights = network.state_dict()
            network = Network(replace(model.config, texture_widths=TEXTURE_WIDTHS))
            network.load_state_dict(weights, strict=False)
        trainer = cls(network, config, device)
        trainer.prices.start_from(model.code)
        trainer.add_totals_of(model)
        return trainer

    @classmethod
    def build_network(cls, plain: dict[str, Any]) -> Network:
        return Network(NetworkConfig.from_dict(plain))

    @property
    def network_config(self) -> NetworkConfig:
        return self.network.config

    @property
    def crop_side(self) -> int:
        return BLOCK

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        linear: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.network.named_parameters():
            if not name.startswith(PREFIXES[self.config.part]) or (self.config.part != TEXTURE and PREFIXES[TEXTURE] in name):
                continue
            is_linear = any(layer in name for layer in ("encoder.linear", "decoder.linear", "project", "expand", "smooth"))
            (linear if is_linear else others).append(parameter)
        return [(1.0, others), (self.config.linear_rate, linear)]

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {"prices": self.prices}

    def after_step(self) -> None:
        self.network.project_flat_channels()

    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        return validate(self.ema, self.prices, photos, perceptual, self.config.part == TEXTURE)

    def format_metrics(self, metrics: dict[str, float]) -> str:
        points = (f"{b}: {metrics[f'psnr@{b}']:.2f}/{metrics.get(f'vgg@{b}', math.nan):.3f}" for b in BUDGETS)
        ends = " ".join(f"{v:.4f}" for k, v in metrics.items() if k.startswith("end"))
        return f"held out, PSNR/VGG: {' | '.join(points)}; levels end at {ends} bpp"

    def write_model(self, path: Path, photos: Tensor, provenance: dict[str, Any]) -> PyramidModel:
        network = self.ema.half().float().eval()
        if not self.config.tokens_of:
            return save_pyramid(path, network, measure_tables(network, photos), provenance)
        kept = as_pyramid(open_model(self.config.tokens_of))
        # Averages of equal weights lose the sign of zeros, which the stream id covers.
        weights = kept.network("cpu").state_dict()
        same = {name: weights[name] for name in weights if not name.startswith(PREFIXES[DECODER])}
        network.load_state_dict(network.state_dict() | same)
        return save_pyramid(path, network, kept.code, provenance)

    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        c = self.config
        level, stop = self._draw_lengths(len(x))
        lambdas = torch.tensor(c.lambdas, device=x.device) * c.lambda_scale
        with torch.autocast(x.device.type, torch.bfloat16, enabled=trains_in_bf16(x.device)):
            self.network.train(c.part == ALL)  # counts digits, and gives their bits gradients
            with torch.set_grad_enabled(c.part == ALL):
                coded = code_for_training(self.network, self.prices, self.network.encoder(x).float(), stop.to(x.device))
            y = (
                textured(self.network, coded) if c.part == TEXTURE else self.network.decoder(coded.latents, coded.known)
            ).float()
            error = (y - x).pow(2).mean((1, 2, 3))
            if c.part == DECODER:
                error = error.clamp(max=MAX_ERROR)
                return (error / (error.detach() + MIN_ERROR)).mean()  # long and short sequences count alike
            if c.colour:
                error = error + c.colour * colour_distance(y, x)
            if c.pattern:
                error = error + c.pattern * pattern_distance(y, x)
            if c.part == TEXTURE:
                error = error.clamp(max=MAX_ERROR)
            if perceptual:
                error = self._add_perceptual(error, perceptual, y, x, level)
        rate = torch.stack([bits * value for bits, value in zip(coded.bits, lambdas, strict=False)]).sum(0) / BLOCK**2
        balance = lambdas[torch.from_numpy(level)].rsqrt() * math.sqrt(0.25 * c.lambda_scale)  # equalises long and short ones
        return ((error + rate) * balance).mean()

    def _draw_lengths(self, count: int) -> tuple[NDArray[np.intp], Tensor]:
        """The last level of each sequence (count,), from long to short, and its `stop` for `code_for_training`."""
        c = self.config
        probabilities = np.divide(c.truncation_weights, sum(c.truncation_weights))
        level = np.sort(self.rng.choice(len(probabilities), count, p=probabilities))[::-1].copy()
        share = np.where(self.rng.random(count) < c.level_end_probability, 1.0, self.rng.random(count))
        return level, torch.from_numpy(np.sort(level + share)[::-1].copy()).float()

    def _add_perceptual(
        self, error: Tensor, perceptual: PerceptualLoss, y: Tensor, x: Tensor, level: NDArray[np.intp]
    ) -> Tensor:
        """The error (B,) with the weighted perceptual distance of some samples."""
        c = self.config
        rows, columns = self.perceptual_window()
        # The crops are in order of length, so a stride takes all lengths.
        some = slice(int(self.rng.integers(c.perceptual_every)), None, c.perceptual_every)
        window = (some, slice(None), rows, columns)
        weights = c.texture_weights if c.part == TEXTURE else c.perceptual_weights
        weight = torch.tensor(weights, device=x.device)[torch.from_numpy(level)][some] * c.perceptual
        distance = weight * perceptual(y[window], x[window], c.aligned, c.local)
        return error.index_add(0, torch.arange(len(x), device=x.device)[some], distance * c.perceptual_every)


def karhunen_loeve(photos: Tensor, components: int, rng: np.random.Generator, crops: int = 600) -> tuple[Tensor, Tensor]:
    """Mean (768,) and first principal components (components, 768) of 16x16 patches, in (3, 16, 16) order.

    The first three components are flat colours; the others are orthogonal to them. Plain components would only be nearly flat:
    a flat area would then decode to a pattern of dots, since the small coefficients that correct it are not sent."""
    sample = random_crops(photos, crops, rng)
    patches = F.pixel_unshuffle(sample, CELL).permute(0, 2, 3, 1).reshape(-1, 3, CELL**2).double()
    colours = patches.mean(2, keepdim=True)
    mean = colours.mean(0).expand(3, CELL**2).flatten()
    flat = _principal(colours[:, :, 0], 3)[:, :, None].expand(3, 3, CELL**2).flatten(1) / CELL
    detail = _principal((patches - colours).flatten(1), components - 3)
    return mean.float(), torch.cat([flat, detail]).float().contiguous()


def _principal(samples: Tensor, count: int) -> Tensor:
    """The first `count` principal components (count, D), of unit length, of samples (N, D)."""
    _, vectors = torch.linalg.eigh(torch.cov(samples.t()))
    return vectors.flip(1)[:, :count].t()
