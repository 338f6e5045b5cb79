"""Learning a pyramid: straight-through rounding, priced as the product will code it.

Recipe: mean squared error + perceptual distance + sum over levels of slope x bits per pixel, sequences cut at random (tail
token drop, One-D-Piece 2501.10064).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitstream.block_order import BLOCK
from bitstream.pyramid_tokens import grids_before, in_part
from codec.errors import ModelError, UsageError
from codec.models.pixels import from_network, to_network
from codec.models.registry import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.integer_model import measure_tables
from codec.pyramid.model import PyramidModel, save_pyramid
from codec.pyramid.network import CLASSES, Network, PyramidLevel, bits_of, entropy_of, logistic_tables, straight_through
from codec.pyramid.residual_decoder import ResidualDecoder
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.system.device import trains_in_bf16
from codec.training.losses import PerceptualLoss, colour_distance, pattern_distance
from codec.training.photos import karhunen_loeve
from codec.training.trainer import Trainer, TrainingConfig

PRIOR_STRENGTH = 30.0  # digits that the logistic start of a table is worth against counted ones
COUNT_MEMORY = 0.998  # how much of a count is left after a step
STANDARD = NetworkConfig()  # what a run from nothing trains
BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel that validation looks at


@dataclass(frozen=True)
class PyramidTraining(TrainingConfig):
    """The recipe. Lists with an entry per level run coarse to fine, for the levels of `NetworkConfig`."""

    patch: int = 96
    linear_rate: float = 0.1  # of `rate`, for the layers that started from the KLT
    # Multiplies `perceptual`, by the level that a sequence ends in. Short sequences want much of it; at long ones
    # 0.8 cost 1.3 dB and gained nothing, and 0.25 at the ninth level was ten times the squared error
    # (benchmarks/training-log.md).
    perceptuals: tuple[float, ...] = (*(0.8,) * 6, 0.7, 0.5, 0.08, 0.05, 0.03, 0.03, 0.02, 0.02)
    # What the perceptual distance is made of: features place by place, and their means and deviations over some pixels. The
    # latter alone was not tried; with both LPIPS fell by 5 % at every rate in 24 minutes.
    aligned: float = 0.5
    local: float = 1.0
    # Crops of a batch per one that the perceptual loss is measured on. VGG costs more than the network, but brings LPIPS.
    perceptual_every: int = 1
    colour: float = 120.0  # weight of the distance of mean colours; 6 left PSNR .3 dB and a fifth of the colour error behind
    pattern: float = 20.0  # weight of the error that repeats every 8 pixels; without it twice as much of that is left
    slope: float = 1.0  # multiplies `slopes`
    # Loss that a bit per pixel is worth. A quarter from one refinement to the next, as steps halve: a bit then buys as much at
    # the end of each level as its step is made for (0.12 squared steps). Slopes twice as high for their steps cost 0.2-0.4 dB.
    slopes: tuple[float, ...] = (1.2, 1.2, 1.2, 1.0, 0.55, 0.55, 0.14, 0.14, 0.035, 0.035, 0.009, 0.009, 0.0024, 0.0024)
    # How often a sequence ends there.
    stops: tuple[float, ...] = (0.01, 0.02, 0.04, 0.12, 0.13, 0.11, 0.1, 0.1, 0.12, 0.12, 0.05, 0.04, 0.02, 0.02)
    whole_level: float = 0.4  # share of sequences that end at a level's end; the rest end anywhere inside

    def __post_init__(self) -> None:
        """Raises UsageError for values that nothing can be learned with."""
        if min(self.slopes) <= 0 or sum(self.stops) <= 0 or self.whole_level > 1:
            msg = f"slopes {self.slopes} and the sum of stops {self.stops} are above 0, whole_level {self.whole_level} up to 1"
            raise UsageError(msg)


class Prices(nn.Module):
    """What digits cost: for each level the share of each absolute digit in each class of the prior, counted while training
    goes on and forgotten slowly. These are the tables of the product, so the encoder is taught what it will pay."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.counts = nn.ParameterList(
            nn.Parameter(torch.zeros(CLASSES, level.limit + 1), requires_grad=False) for level in config.levels
        )
        self.starts = [logistic_tables(level).float() for level in config.levels]

    def tables(self, index: int) -> Tensor:
        """(CLASSES, limit + 1) probabilities of absolute digits."""
        counts = self.counts[index] + PRIOR_STRENGTH * self.starts[index].to(self.counts[index].device)
        return counts / counts.sum(1, keepdim=True)

    def count(self, index: int, classes: Tensor, magnitudes: Tensor, weight: Tensor) -> None:
        """Adds digits, (B, D, n, m) each; `weight` is 0 where a digit was not sent."""
        counts = self.counts[index]
        flat = (classes * counts.shape[1] + magnitudes.long()).flatten()
        new = torch.bincount(flat, weight.expand_as(classes).flatten(), minlength=counts.numel())
        counts.data.mul_(COUNT_MEMORY).add_(new.view_as(counts).to(counts.dtype))


def priced(raw: Tensor, digits: Tensor, score: Tensor, bits: Tensor, noisy: bool) -> Tensor:
    """Bits of each digit (B, D, n, m). The value is that of the digits sent, interpolated between neighbouring classes, so
    that the prior has a gradient; the encoder's gradient is the slope of the price at a randomly dithered magnitude."""
    width = bits.shape[1]
    flat = bits.flatten()
    place = (score - 0.5).clamp(0, CLASSES - 1)
    lower = place.detach().floor().clamp(max=CLASSES - 2).long()
    magnitude = digits.detach().abs().long()
    cost = torch.lerp(flat[lower * width + magnitude], flat[(lower + 1) * width + magnitude], place - lower)
    if noisy:
        dithered = (raw + torch.rand_like(raw) - 0.5).abs()
        below = dithered.detach().floor().clamp(max=width - 2).long()
        # A larger digit never counts as cheaper: the table's last entry holds all that is past the limit, so it can be, and
        # the encoder would drift out for ever. Past the limit the pull back grows with the distance.
        rise = (flat[lower * width + below + 1] - flat[lower * width + below]).clamp(min=0)
        rise = torch.maximum(rise, dithered.detach() - (width - 1.5))
        cost = cost + rise * (dithered - dithered.detach())
    return cost


@dataclass
class Coded:
    """What became of a batch of latents."""

    latents: Tensor  # (B, C, h, w) decoded
    known: Tensor  # (B, 1, h, w)
    bits: list[Tensor]  # (B,) per level
    token_bits: list[Tensor]  # (B, tokens) per level, in the order they are sent; of the samples that reach it


def code_for_training(network: Network, prices: Prices, latents: Tensor, stop: Tensor) -> Coded:
    """Quantizes latents (B, C, h, w), with gradients past the rounding.

    `stop` (B,), never rising, is the number of levels kept, the last one in part: 4.3 keeps four levels and the dearest 30 %
    of the fifth's tokens. Samples leave the walk where they stop, so the fine levels cost little. A network in training mode
    also counts its digits into `prices`."""
    bits_sent: list[Tensor] = []
    token_bits: list[Tensor] = []
    seen: list[Tensor] = []
    walk = ResidualDecoder(TorchBackend(network), len(latents), latents.shape[2], latents.shape[3])
    for index, predicted in walk.levels([int((stop > index).sum()) for index in range(len(network.levels))]):
        level = network.levels[index]
        assert isinstance(level, PyramidLevel)
        going = len(predicted)
        latents = latents[:going]
        seen = [digits[:going] for digits in seen]
        raw = level.analyse(latents - predicted).float()
        size = raw.shape[2:]
        mask = torch.from_numpy(in_part(level.level.part, *size)).to(raw.device).flatten()
        grids = grids_before(network.config.levels, index)
        context = [F.interpolate(torch.stack([seen[other] for other in grid]).sum(0), size=size) for grid in grids]
        score = level.prior(torch.cat(context, 1) if context else raw.new_zeros(len(raw), 1, *size)).float()
        with torch.no_grad():
            tables = prices.tables(index)
            bits = bits_of(tables)
            classes = score.floor().clamp(0, CLASSES - 1).long()
            sent = level.round(raw, classes, bits)
            expected = entropy_of(tables)[classes].sum(1).flatten(1)
            expected = expected.masked_fill(~mask, -1.0)  # those of the other half come last, and are never kept
            order = torch.sort(expected, dim=1, descending=True, stable=True)[1]
            rank = torch.empty_like(order).scatter_(
                1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
            )
            count = int(mask.sum())
            kept = ((stop[:going] - index).clamp(0, 1) * count).ceil()
            keep = (rank < kept[:, None]).float().view(len(raw), 1, *size)
            if network.training:
                prices.count(index, classes, sent.abs(), keep)
        cost = priced(raw, sent, score, bits, network.training)
        bits_sent.append(F.pad((cost * keep).sum((1, 2, 3)), (0, len(stop) - going)))
        token_bits.append(cost.detach().sum(1).flatten(1).gather(1, order[:, :count]))
        digits = straight_through(raw, sent, level.level.limit) * keep
        seen.append(digits.abs())
        walk.add(digits, keep)
    return Coded(walk.latents, walk.known, bits_sent, token_bits)


@torch.no_grad()
def validate(network: Network, prices: Prices, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
    """PSNR (dB) and perceptual distance of held-out photos (N, side, side, 3) at each budget, and bits per pixel at the end of
    each level. Rates are the prior's own, less 12 bytes for a header."""
    network.eval()
    rows = []
    for photo in photos:
        x = to_network(photo[None, :BLOCK, :BLOCK])
        latents = network.encoder(x)
        whole = code_for_training(network, prices, latents, torch.full((1,), float(len(network.levels)), device=x.device))
        costs = [bits[0].double() for bits in whole.token_bits]
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
            y = to_network(from_network(network.decoder(coded.latents, coded.known)))
            row[f"psnr@{budget}"] = float(-10 * torch.log10((y - x).pow(2).mean() / 4))
            if perceptual:
                row[f"vgg@{budget}"] = float(perceptual(y, x))
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


class PyramidTrainer(Trainer):
    """A pyramid in training, with the prices of its digits."""

    family = "pyramid"
    recipe: ClassVar[type[TrainingConfig]] = PyramidTraining
    plain_loss = "squared error and colour"
    network: Network
    average: Network
    config: PyramidTraining

    def __init__(self, network: Network, config: PyramidTraining, device: torch.device) -> None:
        super().__init__(network, config, device)
        self.prices = Prices(network.config).to(device)

    @classmethod
    def shaped(cls, **shape: Any) -> NetworkConfig:
        return STANDARD

    @classmethod
    def fresh(cls, photos: Tensor, config: PyramidTraining, device: torch.device, **shape: Any) -> Self:
        """A network that starts as the KLT of the photos."""
        trainer = cls(Network(cls.shaped()), config, device)
        trainer.network.start_from_klt(*karhunen_loeve(photos, trainer.network.config.channels, trainer.rng))
        trainer.average.load_state_dict(trainer.network.state_dict())
        return trainer

    @classmethod
    def continued(cls, name: str, config: PyramidTraining, device: torch.device) -> Self:
        model = open_pyramid(name)
        trainer = cls(model.network(torch.device("cpu")).requires_grad_(True), config, device)
        trainer.count_from(model)
        return trainer

    @classmethod
    def build(cls, plain: dict[str, Any]) -> Network:
        return Network(NetworkConfig.from_dict(plain))

    @property
    def network_config(self) -> NetworkConfig:
        return self.network.config

    @property
    def side(self) -> int:
        return BLOCK

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        slow = ("encoder.linear", "decoder.linear", "project", "expand", "smooth")
        named = list(self.network.named_parameters())
        linear = [p for name, p in named if any(part in name for part in slow)]
        others = [p for name, p in named if not any(part in name for part in slow)]
        return [(1.0, others), (self.config.linear_rate, linear)]

    def parts(self) -> dict[str, nn.Module]:
        return super().parts() | {"prices": self.prices}

    def after_step(self) -> None:
        self.network.keep_flat()

    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        return validate(self.average, self.prices, photos, perceptual)

    def describe(self, metrics: dict[str, float]) -> str:
        points = (f"{b}: {metrics[f'psnr@{b}']:.2f}/{metrics.get(f'vgg@{b}', math.nan):.3f}" for b in BUDGETS)
        ends = " ".join(f"{v:.4f}" for k, v in metrics.items() if k.startswith("end"))
        return f"held out, PSNR/VGG: {' | '.join(points)}; levels end at {ends} bpp"

    def write_model(self, path: Path, photos: Tensor, card: dict[str, Any]) -> PyramidModel:
        """Weights in fp16, the prior in integers."""
        network = self.average.half().float().eval()
        return save_pyramid(path, network, measure_tables(network, photos), card)

    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        """One batch (B, 3, 256, 256) of crops in [-1, 1] -> the loss to descend."""
        c = self.config
        stops = np.array(c.stops) / sum(c.stops)
        level = np.sort(self.rng.choice(len(stops), len(x), p=stops))[::-1].copy()
        part = np.where(self.rng.random(len(x)) < c.whole_level, 1.0, self.rng.random(len(x)))
        stop = torch.from_numpy(np.sort(level + part)[::-1].copy()).float().to(x.device)
        slopes = torch.tensor(c.slopes, device=x.device) * c.slope
        with torch.autocast(x.device.type, torch.bfloat16, enabled=trains_in_bf16(x.device)):
            coded = code_for_training(self.network, self.prices, self.network.encoder(x).float(), stop)
            y = self.network.decoder(coded.latents, coded.known).float()
            error = (y - x).pow(2).mean((1, 2, 3))
            if c.colour:
                error = error + c.colour * colour_distance(y, x)
            if c.pattern:
                error = error + c.pattern * pattern_distance(y, x)
            if perceptual:
                rows, columns = self.window()
                some = slice(
                    int(self.rng.integers(c.perceptual_every)), None, c.perceptual_every
                )  # sorted by length: some of each
                window = (some, slice(None), rows, columns)
                share = torch.tensor(c.perceptuals, device=x.device)[torch.from_numpy(level)][some] * c.perceptual
                distance = share * perceptual(y[window], x[window], c.aligned, c.local)
                error = error.index_add(0, torch.arange(len(x), device=x.device)[some], distance * c.perceptual_every)
        rate = torch.stack([bits * slope for bits, slope in zip(coded.bits, slopes, strict=False)]).sum(0) / BLOCK**2
        weight = slopes[torch.from_numpy(level)].rsqrt() * math.sqrt(0.25 * c.slope)  # long and short pull equally
        return ((error + rate) * weight).mean()


def open_pyramid(name: str) -> PyramidModel:
    """A pyramid by its name or path. Raises ModelError for a model of another family, or where there is none."""
    model = open_model(name)
    if not isinstance(model, PyramidModel):
        msg = f"{name}: a model of kind {model.kind!r}, not {PyramidModel.kind!r}"
        raise ModelError(msg)
    return model
