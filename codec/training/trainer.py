"""Learning: the pyramid with straight-through rounding, priced as the product will code it, and the training loop.

Recipe: mean squared error + perceptual distance + sum over levels of slope x bits per pixel, sequences cut at random (tail
token drop, One-D-Piece 2501.10064), AdamW at a constant rate that falls to zero at the end (2405.18392), so that a long
run can be continued or ended at will, moving average of the weights.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bitstream.blocks import BLOCK
from bitstream.errors import ModelError
from bitstream.pyramid import grids_before, in_part
from codec.device import trains_in_bf16
from codec.files import replacing
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import CLASSES, Network, PyramidLevel, bits_of, entropy_of, logistic_tables, straight_through
from codec.pyramid.pixels import from_network, to_network
from codec.pyramid.torch_parts import TorchParts
from codec.pyramid.walk import Walk
from codec.training.losses import PerceptualLoss, colour_distance
from codec.training.photos import random_crops

PRIOR_STRENGTH = 30.0  # digits that the logistic start of a table is worth against counted ones
COUNT_MEMORY = 0.998  # how much of a count is left after a step
CHECKPOINT_MINUTES = 3.0
PROGRESS = ("step", "spent", "total_crops", "total_minutes")
WARM_STEPS = 100  # in which the rate rises
LONGEST_STEP = 10.0  # seconds: a step that took longer was suspended, and the rest of it is not training
BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.4)  # bits per pixel that validation looks at


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe. Lists with an entry per level run coarse to fine, for the levels of `NetworkConfig`."""

    minutes: float = 60.0  # length of the schedule
    steps: int = 0  # if given, the length in steps instead: runs repeat exactly
    batch: int = 8  # crops per step
    rate: float = 4e-4  # 1e-3 from nothing is faster; a trained network loses 0.2 dB for a while
    linear_rate: float = 0.1  # of `rate`, for the layers that started from the KLT
    perceptual: float = 1.0  # multiplies `perceptuals`
    # Weight of the perceptual distance against the squared error, by the level that a sequence ends in. Short sequences want
    # much of it; at long ones 0.8 cost 1.3 dB and gained nothing (benchmarks/training-log.md).
    perceptuals: tuple[float, ...] = (*(0.8,) * 6, 0.5, 0.5, 0.25, 0.25, 0.15, 0.15, 0.1, 0.1)
    perceptual_every: int = 2  # crops of a batch per one that it is measured on: VGG costs more than the network
    patch: int = 64  # side of the window on which it is measured, pixels
    colour: float = 6.0  # weight of the distance of mean colours
    slope: float = 1.0  # multiplies `slopes`
    # Loss that a bit per pixel is worth. A quarter from one refinement to the next, as steps halve: a bit then buys as much at
    # the end of each level as its step is made for (0.12 squared steps). Slopes twice as high for their steps cost 0.2-0.4 dB.
    slopes: tuple[float, ...] = (1.2, 1.2, 1.2, 1.0, 0.55, 0.55, 0.14, 0.14, 0.035, 0.035, 0.009, 0.009, 0.0024, 0.0024)
    # How often a sequence ends there.
    stops: tuple[float, ...] = (0.01, 0.02, 0.05, 0.12, 0.11, 0.11, 0.13, 0.13, 0.09, 0.09, 0.04, 0.05, 0.025, 0.025)
    whole_level: float = 0.4  # share of sequences that end at a level's end; the rest end anywhere inside
    decay: float = 0.2  # share of the schedule, at its end, in which the rate falls to zero; it is constant before
    average: float = 0.999  # of the weights that ship
    seed: int = 0

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TrainingConfig:
        """From what `asdict` and JSON made of it; an unknown key is a TypeError that names it."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**values)


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
    walk = Walk(TorchParts(network), len(latents), latents.shape[2], latents.shape[3])
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


class Trainer:
    """Network, moving average, optimizer, prices and random state: all that a checkpoint holds."""

    def __init__(self, network: Network, config: TrainingConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.prices = Prices(network.config).to(device)
        self.step = 0
        self.spent = 0.0  # minutes of training in this schedule, pauses apart
        self.total_crops = 0  # over all schedules
        self.total_minutes = 0.0
        self.rng = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        slow = ("encoder.linear", "decoder.linear", "project", "expand", "smooth")
        named = list(network.named_parameters())
        linear = [p for name, p in named if any(part in name for part in slow)]
        others = [p for name, p in named if not any(part in name for part in slow)]
        self.base_rates = (config.rate, config.rate * config.linear_rate)
        groups = [{"params": others}, {"params": linear}]  # `train_step` sets their rates
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    @property
    def progress(self) -> float:
        """How much of the schedule is behind us, 0..1."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.spent / self.config.minutes)

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
            if perceptual:
                top, left = self.rng.integers(BLOCK - c.patch + 1, size=2)
                some = slice(
                    int(self.rng.integers(c.perceptual_every)), None, c.perceptual_every
                )  # sorted by length: some of each
                window = (some, slice(None), slice(top, top + c.patch), slice(left, left + c.patch))
                share = torch.tensor(c.perceptuals, device=x.device)[torch.from_numpy(level)][some] * c.perceptual
                distance = share * perceptual(y[window], x[window])
                error = error.index_add(0, torch.arange(len(x), device=x.device)[some], distance * c.perceptual_every)
        rate = torch.stack([bits * slope for bits, slope in zip(coded.bits, slopes, strict=False)]).sum(0) / BLOCK**2
        weight = slopes[torch.from_numpy(level)].rsqrt() * math.sqrt(0.25 * c.slope)  # long and short pull equally
        return ((error + rate) * weight).mean()

    def train_step(self, photos: Tensor, perceptual: PerceptualLoss | None) -> float:
        warm = min(1.0, (self.step + 1) / WARM_STEPS)
        factor = min(warm, (1 - self.progress) / self.config.decay)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        loss = self.loss(random_crops(photos, self.config.batch, self.rng), perceptual)
        value = float(loss.detach())
        self.step += 1
        self.total_crops += self.config.batch
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.network.keep_flat()
        keep = min(self.config.average, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - keep)
        return value

    def save(self, path: Path) -> None:
        """Writes the whole state, whole or not at all."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"prices.{k}": v for k, v in self.prices.state_dict().items()}
        names = {id(p): name for name, p in self.network.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in state.items()}
        tensors["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        plain = {
            "network": self.network.config.to_dict(),
            "training": asdict(self.config),
            "progress": {k: getattr(self, k) for k in PROGRESS},
            "rng": self.rng.bit_generator.state,
        }
        with replacing(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"trainer": json.dumps(plain)})

    @classmethod
    def resume(cls, path: Path, device: torch.device, config: TrainingConfig | None = None) -> Trainer:
        """The inverse of `save`. With a `config`, a new schedule starts from the saved weights and moments."""
        try:
            with safe_open(path, "pt") as file:
                plain = json.loads(file.metadata()["trainer"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            msg = f"{path}: not a training checkpoint ({error})"
            raise ModelError(msg) from error
        saved = plain["training"]
        saved = TrainingConfig.from_dict(saved)
        trainer = cls(Network(NetworkConfig.from_dict(plain["network"])), config or saved, device)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        trainer.network.load_state_dict(part("network"))
        trainer.average.load_state_dict(part("average"))
        trainer.prices.load_state_dict(part("prices"))
        for name, parameter in trainer.network.named_parameters():
            state = part(f"optimizer.{name}")
            for key in state.keys() - {"step"}:  # as the parameter lies in memory: the fused optimizer relies on it
                state[key] = torch.empty_like(parameter.detach()).copy_(state[key])
            if state:
                state["step"] = state["step"].to(device)
            trainer.optimizer.state[parameter] = state
        vars(trainer).update({name: plain["progress"][name] for name in PROGRESS})
        trainer.rng.bit_generator.state = plain["rng"]
        torch.set_rng_state(tensors["torch_rng"])
        if device.type == "cuda" and "cuda_rng" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_rng"], device)
        if config is not None:
            trainer.step, trainer.spent = 0, 0.0
        return trainer


def train(
    trainer: Trainer,
    photos: Tensor,
    held_out: Tensor,
    perceptual: PerceptualLoss | None,
    folder: Path,
    report: Callable[[str], None],
    validate_minutes: float = 20.0,
    validate_photos: int = 32,
) -> None:
    """Trains to the end of the schedule, or to SIGTERM or Ctrl-C, with checkpoints and a CSV log in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    previous = [signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGTERM, signal.SIGINT)]
    photos = photos.to(trainer.device)
    losses: list[float] = []
    logged = trainer.total_minutes
    clock = saved = checked = time.monotonic()
    try:
        while trainer.progress < 1 and not stopped:
            losses.append(trainer.train_step(photos, perceptual))
            now = time.monotonic()
            minutes = min(now - clock, LONGEST_STEP) / 60
            trainer.spent += minutes
            trainer.total_minutes += minutes
            clock = now
            if now - saved > 60 * CHECKPOINT_MINUTES:
                trainer.save(folder / "checkpoint.safetensors")
                crops = len(losses) * trainer.config.batch / (60 * (trainer.total_minutes - logged))
                loss = float(np.median(losses))
                report(f"{trainer.spent:.1f} min, {crops:.1f} crops/s, loss {loss:.4f} ({max(losses):.1f} at most)")
                row = {"minutes": trainer.total_minutes, "crops": trainer.total_crops, "crops/s": crops, "loss": loss}
                log(folder / "log.csv", row)
                losses, logged = [], trainer.total_minutes
                clock = saved = time.monotonic()
            if now - checked > 60 * validate_minutes:
                metrics = validate(trainer.average, trainer.prices, held_out[:validate_photos].to(trainer.device), perceptual)
                report(describe(metrics))
                log(folder / "validation.csv", {"minutes": trainer.total_minutes, "crops": trainer.total_crops, **metrics})
                clock = checked = time.monotonic()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), previous, strict=True):
            signal.signal(number, handler)
    trainer.save(folder / "checkpoint.safetensors")


def describe(metrics: dict[str, float]) -> str:
    points = (f"{b}: {metrics[f'psnr@{b}']:.2f}/{metrics.get(f'vgg@{b}', math.nan):.3f}" for b in BUDGETS)
    ends = " ".join(f"{v:.4f}" for k, v in metrics.items() if k.startswith("end"))
    return f"held out, PSNR/VGG: {' | '.join(points)}; levels end at {ends} bpp"


def log(path: Path, row: dict[str, float]) -> None:
    """Appends a row to a CSV file, with a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" for value in row.values())
