"""What learning is for every family of models: the schedule, the moving average, checkpoints, logs, and the loop around them.

AdamW at a constant rate that falls to zero at the end (2405.18392), so that a long run can be continued or ended at will;
moving average of the weights. A family says what its loss is, and what becomes of a trained network.
"""

from __future__ import annotations

import copy
import csv
import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from codec.errors import ModelError, UsageError
from codec.models.base import Model
from codec.system.files import atomic_write
from codec.training.distributed import Team
from codec.training.losses import PerceptualLoss
from codec.training.photos import random_crops

CHECKPOINT_MINUTES = 3.0
PROGRESS = ("step", "spent", "total_crops", "total_minutes")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
WARM_STEPS = 100  # in which the rate rises
LONGEST_STEP = 10.0  # seconds: steps that took longer were suspended, and the rest of it is not training


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: what all families have in common."""

    minutes: float = 60.0  # length of the schedule
    steps: int = 0  # if given, the length in steps instead: runs repeat exactly
    batch: int = 8  # crops per step
    rate: float = 4e-4  # 1e-3 from nothing is faster; a trained network loses 0.2 dB for a while
    perceptual: float = 1.0  # weight of the perceptual distance against the squared error
    patch: int = 64  # side of the window on which it is measured, pixels
    decay: float = 0.2  # share of the schedule, at its end, in which the rate falls to zero; it is constant before
    average: float = 0.999  # of the weights that ship
    seed: int = 0

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """From what `asdict` and JSON made of it; an unknown key is a TypeError that names it."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**values)


class Trainer(ABC):
    """Network, moving average, optimizer and random state: all that a checkpoint holds."""

    family: ClassVar[str]  # what `tessera train --family` calls it
    recipe: ClassVar[type[TrainingConfig]]
    shape: ClassVar[tuple[str, ...]] = ()  # what may be said of a new network, by name
    plain_loss: ClassVar[str] = "squared error"  # without a perceptual loss
    averages: ClassVar[bool] = True  # whether the mean of two networks in training is one
    network: nn.Module
    average: nn.Module
    config: TrainingConfig

    def __init__(self, network: nn.Module, config: TrainingConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.team = Team()
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.step = 0
        self.spent = 0.0  # minutes of training in this schedule, pauses apart
        self.total_crops = 0  # over all schedules
        self.total_minutes = 0.0
        self.rng = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        groups = self.groups()  # `train_step` sets their rates
        self.base_rates = [config.rate * share for share, _ in groups]
        parameters = [{"params": parameters} for _, parameters in groups]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    @classmethod
    @abstractmethod
    def shaped(cls, **shape: Any) -> Any:
        """The configuration of a new network. Raises TesseraError for a shape that is none."""

    @classmethod
    @abstractmethod
    def fresh(cls, photos: Tensor, config: Any, device: torch.device, **shape: Any) -> Self:
        """A new network, untrained. Raises as `shaped` does."""

    @classmethod
    @abstractmethod
    def continued(cls, name: str, config: Any, device: torch.device) -> Self:
        """The network of a model, by its name or path. Raises ModelError where that is of another family."""

    @classmethod
    @abstractmethod
    def build(cls, plain: dict[str, Any]) -> nn.Module:
        """A network of the configuration that a checkpoint states."""

    @property
    @abstractmethod
    def network_config(self) -> Any:
        """The network's configuration, a dataclass with `to_dict`."""

    @property
    @abstractmethod
    def side(self) -> int:
        """Of a crop, pixels."""

    @abstractmethod
    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        """One batch (B, 3, side, side) of crops in [-1, 1] -> the loss to descend."""

    @abstractmethod
    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        """Measures the moving average on held-out photos (N, side, side, 3) uint8."""

    @abstractmethod
    def describe(self, metrics: dict[str, float]) -> str:
        """What `validate` found, on one line."""

    @abstractmethod
    def write_model(self, path: Path, photos: Tensor, card: dict[str, Any]) -> Model:
        """Writes the moving average as a model file, its tables measured on photos (N, side, side, 3) uint8."""

    def check_shape(self, shape: dict[str, Any], source: str) -> None:
        """Raises UsageError where a network of another shape was asked for than that of `source`, which goes on here."""
        if shape and (wanted := self.shaped(**shape)) != self.network_config:
            msg = f"{source} holds {self.network_config.name}, which cannot become {wanted.name}"
            raise UsageError(msg, ("shape",))

    def count_from(self, model: Model) -> None:
        """Counts crops and minutes on from those of a model."""
        self.total_crops = model.metadata["card"].get("crops", 0)
        self.total_minutes = model.metadata["card"].get("minutes", 0.0)

    def groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """All parameters, by the share of the learning rate that they have."""
        return [(1.0, list(self.network.parameters()))]

    def parts(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps, by name."""
        return {"network": self.network, "average": self.average}

    def join(self, team: Team) -> None:
        """From now on learns in a team whose processes have all started from this state, on crops of its own."""
        self.team = team
        if not team.leads:
            self.rng = np.random.default_rng([self.config.seed, self.step, team.rank])
            torch.manual_seed(int(self.rng.integers(2**31)))
        for parameter in self.network.parameters():  # what no crop has reached here has no moments, but may have some elsewhere
            if team.size > 1 and not self.optimizer.state[parameter]:
                moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.zeros((), device=self.device), **moments}

    def meet(self) -> None:
        """Goes on from the mean of what the processes of the team have learned."""
        if self.team.size == 1:
            return
        tensors = [tensor for part in self.parts().values() for tensor in part.state_dict().values()]
        tensors += [self.optimizer.state[parameter][name] for parameter in self.network.parameters() for name in MOMENTS]
        self.team.average(tensors)

    def after_step(self) -> None:  # noqa: B027 (most families have nothing to do)
        """What is done to the network after each step of the optimizer."""

    @property
    def progress(self) -> float:
        """How much of the schedule is behind us, 0..1."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.spent / self.config.minutes)

    def window(self) -> tuple[slice, slice]:
        """A random window of a crop, on which the perceptual distance is measured."""
        side = min(self.config.patch, self.side)
        top, left = self.rng.integers(self.side - side + 1, size=2)
        return slice(top, top + side), slice(left, left + side)

    def train_step(self, photos: Tensor, perceptual: PerceptualLoss | None) -> float:
        """One step on random crops of photos (N, side, side, 3) uint8 -> the loss before it."""
        warm = min(1.0, (self.step + 1) / WARM_STEPS)
        factor = min(warm, (1 - self.progress) / self.config.decay)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        loss = self.loss(random_crops(photos, self.config.batch, self.rng, self.side), perceptual)
        value = float(loss.detach())
        self.step += 1
        self.total_crops += self.config.batch * self.team.size
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.after_step()
        keep = min(self.config.average, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - keep)
        return value

    def save(self, path: Path) -> None:
        """Writes the whole state, whole or not at all."""
        tensors = {f"{name}.{k}": v for name, part in self.parts().items() for k, v in part.state_dict().items()}
        names = {id(p): name for name, p in self.network.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in state.items()}
        tensors["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        plain = {
            "family": self.family,
            "network": self.network_config.to_dict(),
            "training": asdict(self.config),
            "progress": {k: getattr(self, k) for k in PROGRESS},
            "rng": self.rng.bit_generator.state,
        }
        with atomic_write(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"trainer": json.dumps(plain)})

    @classmethod
    def resume(cls, path: Path, device: torch.device, config: TrainingConfig | None = None) -> Self:
        """The inverse of `save`. With a `config`, a new schedule starts from the saved weights and moments. Raises as `read`
        does."""
        plain, tensors = cls.read(path)
        saved = cls.recipe.from_dict(plain["training"])
        trainer = cls(cls.build(plain["network"]), config or saved, device)
        trainer._load(plain, tensors)
        if config is not None:
            trainer.step, trainer.spent = 0, 0.0
        return trainer

    @classmethod
    def read(cls, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint says, and its tensors. Raises ModelError for what is no checkpoint of this family."""
        try:
            with safe_open(path, "pt") as file:
                plain = json.loads(file.metadata()["trainer"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            msg = f"{path}: not a training checkpoint ({error})"
            raise ModelError(msg) from error
        family = plain.get("family", "pyramid")  # which was the only one when checkpoints did not say it
        if family != cls.family:
            msg = f"{path}: a checkpoint of the family {family}, not {cls.family}"
            raise ModelError(msg, ("family",))
        return plain, tensors

    def _load(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes on the state that a checkpoint holds."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        for name, module in self.parts().items():
            module.load_state_dict(part(name))
        for name, parameter in self.network.named_parameters():
            state = part(f"optimizer.{name}")
            for key in state.keys() - {"step"}:  # as the parameter lies in memory: the fused optimizer relies on it
                state[key] = torch.empty_like(parameter.detach()).copy_(state[key])
            if state:
                state["step"] = state["step"].to(self.device)
            self.optimizer.state[parameter] = state
        vars(self).update({name: plain["progress"][name] for name in PROGRESS})
        self.rng.bit_generator.state = plain["rng"]
        torch.set_rng_state(tensors["torch_rng"])
        if self.device.type == "cuda" and "cuda_rng" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_rng"], self.device)

    def export(self, photos: Tensor, path: Path, made_by: str) -> Model:
        """Writes the moving average as a model file, with a card that says how it was made."""
        card = {
            "made_by": made_by,
            "training": asdict(self.config),
            "crops": self.total_crops,
            "minutes": round(self.total_minutes, 1),
            "table_photos": len(photos),
        }
        return self.write_model(path, photos, card)


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
    """Trains to the end of the schedule, or to SIGTERM or Ctrl-C, with checkpoints and a CSV log in `folder`. Each process of a
    team calls this; they stop together, and the one that leads writes."""
    folder.mkdir(parents=True, exist_ok=True)
    team = trainer.team
    asked: list[int] = []  # to stop: by the signals that came
    stopped = False
    previous = [signal.signal(s, lambda number, _: asked.append(number)) for s in SIGNALS] if team.leads else []
    photos = photos.to(trainer.device)
    losses: list[float] = []
    logged, logged_crops = trainer.total_minutes, trainer.total_crops
    clock = saved = checked = time.monotonic()
    try:
        while trainer.progress < 1 and not stopped:
            losses.append(trainer.train_step(photos, perceptual))
            if trainer.step % team.round and trainer.progress < 1:
                continue
            trainer.meet()
            now = time.monotonic()
            minutes, halt = team.follow(min(now - clock, LONGEST_STEP * team.round) / 60, len(asked))
            stopped = halt > 0
            trainer.spent += minutes
            trainer.total_minutes += minutes
            clock = now
            if not team.leads:
                continue
            if now - saved > 60 * CHECKPOINT_MINUTES:
                trainer.save(folder / "checkpoint.safetensors")
                crops = (trainer.total_crops - logged_crops) / (60 * (trainer.total_minutes - logged))
                loss = float(np.median(losses))
                report(f"{trainer.spent:.1f} min, {crops:.1f} crops/s, loss {loss:.4f} ({max(losses):.1f} at most)")
                row = {"minutes": trainer.total_minutes, "crops": trainer.total_crops, "crops/s": crops, "loss": loss}
                log(folder / "log.csv", row)
                losses, logged, logged_crops = [], trainer.total_minutes, trainer.total_crops
                clock = saved = time.monotonic()
            if now - checked > 60 * validate_minutes:
                metrics = trainer.validate(held_out[:validate_photos].to(trainer.device), perceptual)
                report(trainer.describe(metrics))
                log(folder / "validation.csv", {"minutes": trainer.total_minutes, "crops": trainer.total_crops, **metrics})
                clock = checked = time.monotonic()
    finally:
        for number, handler in zip(SIGNALS, previous, strict=False):
            signal.signal(number, handler)
    if team.leads:
        trainer.save(folder / "checkpoint.safetensors")


def log(path: Path, row: dict[str, float]) -> None:
    """Appends a row to a CSV file, with a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if new:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" for value in row.values())
