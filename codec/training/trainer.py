"""Training, for every family of models: `train` is the loop, `Trainer` the state that it advances.

A step draws random crops, computes the family's loss and updates the weights with AdamW. A model file gets the moving average
of the weights. The learning rate is constant and falls to zero at the end (arXiv 2405.18392), so a run can be prolonged or
ended at any time. A checkpoint holds the whole state: a resumed run takes the same steps as an uninterrupted run. A family
subclasses `Trainer` to build, measure and write its networks, and to compute their loss.
"""

from __future__ import annotations

import copy
import csv
import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
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
from codec.training.distributed import ProcessGroup
from codec.training.losses import PerceptualLoss
from codec.training.photos import random_crops
from codec.training.recipe import TrainingConfig

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_MINUTES = 3.0  # minutes between two checkpoints
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
MAX_STEP_SECONDS = 10.0  # longest time of a step that counts as training; a longer step was suspended
WARMUP_STEPS = 100  # steps with a rising learning rate
MAX_GRADIENT_NORM = 1.0
COUNTERS = ("step", "schedule_minutes", "total_crops", "total_minutes")  # attributes of `Trainer` in a checkpoint
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's moments of a parameter


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
    """Trains until the end of the schedule, SIGTERM or SIGINT; writes a checkpoint and CSV logs in `folder`.

    In a process group, every process calls this; all stop at the same step, and only the leader writes."""
    folder.mkdir(parents=True, exist_ok=True)
    group = trainer.group
    photos = photos.to(trainer.device)
    received: list[int] = []  # stop signals
    handlers = [signal.signal(s, lambda number, _: received.append(number)) for s in STOP_SIGNALS] if group.is_leader else []
    stopped = False
    losses: list[float] = []  # losses since the last row of the log
    logged_minutes, logged_crops = trainer.total_minutes, trainer.total_crops
    clock = last_checkpoint = last_validation = time.monotonic()
    try:
        while trainer.progress < 1 and not stopped:
            losses.append(trainer.train_step(photos, perceptual))
            if trainer.step % group.sync_steps and trainer.progress < 1:
                continue
            trainer.synchronize()
            now = time.monotonic()
            # The leader's clock and signals are decisive, so all processes take the same number of steps.
            minutes, stop = group.broadcast(min(now - clock, MAX_STEP_SECONDS * group.sync_steps) / 60, len(received))
            stopped = stop > 0
            trainer.schedule_minutes += minutes
            trainer.total_minutes += minutes
            clock = now
            if not group.is_leader:
                continue
            if now - last_checkpoint > 60 * CHECKPOINT_MINUTES:
                trainer.save(folder / CHECKPOINT)
                speed = (trainer.total_crops - logged_crops) / (60 * (trainer.total_minutes - logged_minutes))
                loss = float(np.median(losses))
                report(f"{trainer.schedule_minutes:.1f} min, {speed:.1f} crops/s, loss {loss:.4f} ({max(losses):.1f} at most)")
                row = {"minutes": trainer.total_minutes, "crops": trainer.total_crops, "crops/s": speed, "loss": loss}
                _append_csv(folder / "log.csv", row)
                losses, logged_minutes, logged_crops = [], trainer.total_minutes, trainer.total_crops
                clock = last_checkpoint = time.monotonic()
            if now - last_validation > 60 * validate_minutes:
                metrics = trainer.validate(held_out[:validate_photos].to(trainer.device), perceptual)
                report(trainer.format_metrics(metrics))
                row = {"minutes": trainer.total_minutes, "crops": trainer.total_crops, **metrics}
                _append_csv(folder / "validation.csv", row)
                clock = last_validation = time.monotonic()
    finally:
        for number, handler in zip(STOP_SIGNALS, handlers, strict=False):
            signal.signal(number, handler)
    if group.is_leader:
        trainer.save(folder / CHECKPOINT)


def _append_csv(path: Path, row: dict[str, float]) -> None:
    """Appends a row to a CSV file; a new file gets a header."""
    is_new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream)
        if is_new:
            writer.writerow(row)
        writer.writerow(f"{value:.6g}" for value in row.values())


class Trainer(ABC):
    """A network in training, with its moving average, optimizer and random state.

    The methods stand in this order: a step; the hooks of a family, abstract or with a default; process groups; checkpoints."""

    family: ClassVar[str]  # name in `tessera train --family`
    recipe: ClassVar[type[TrainingConfig]]
    network_options: ClassVar[tuple[str, ...]] = ()  # keyword arguments of `configure`
    loss_without_vgg: ClassVar[str] = "squared error"  # name of the remaining loss, in messages
    can_average: ClassVar[bool] = True  # whether the mean of two networks in training is a network of the same quality
    network: nn.Module
    ema: nn.Module
    config: TrainingConfig

    def __init__(self, network: nn.Module, config: TrainingConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.group = ProcessGroup()
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.network).requires_grad_(False)  # exponential moving average of the weights
        self.step = 0  # steps taken in this schedule
        self.schedule_minutes = 0.0  # minutes of training in this schedule, without pauses
        self.total_crops = 0  # crops in all schedules, as for `total_minutes`
        self.total_minutes = 0.0
        self.rng = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        groups = self.parameter_groups()
        self.peak_rates = [config.rate * share for share, _ in groups]
        parameters = [{"params": parameters} for _, parameters in groups]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def train_step(self, photos: Tensor, perceptual: PerceptualLoss | None) -> float:
        """Takes one step on random crops of photos (N, side, side, 3) uint8, and returns the loss before it."""
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        factor = min(warmup, (1 - self.progress) / self.config.decay)
        for group, rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * factor
        self.network.train()
        loss = self.loss(random_crops(photos, self.config.batch, self.rng, self.crop_side), perceptual)
        value = float(loss.detach())
        self.step += 1
        self.total_crops += self.config.batch * self.group.world_size
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.after_step()
        decay = min(self.config.average, (self.step + 1) / (self.step + 20))  # shorter memory in the first steps
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - decay)
        return value

    @property
    def progress(self) -> float:
        """Position in the schedule, 0 to 1."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.schedule_minutes / self.config.minutes)

    # Hooks of a family

    @classmethod
    @abstractmethod
    def configure(cls, **network_options: Any) -> Any:
        """The configuration of a new network. Raises TesseraError if there is no such network."""

    @classmethod
    @abstractmethod
    def from_scratch(cls, photos: Tensor, config: Any, device: torch.device, **network_options: Any) -> Self:
        """A trainer of a new network, initialised from the photos. Raises as `configure` does."""

    @classmethod
    @abstractmethod
    def from_model(cls, name: str, config: Any, device: torch.device) -> Self:
        """A trainer of a model's network; `name` is a name or path for `open_model`. Raises ModelError for a model of another
        family."""

    @classmethod
    @abstractmethod
    def build_network(cls, plain: dict[str, Any]) -> nn.Module:
        """The network of a configuration, given as its `to_dict`."""

    @property
    @abstractmethod
    def network_config(self) -> Any:
        """The network's configuration, a dataclass with `to_dict`."""

    @property
    @abstractmethod
    def crop_side(self) -> int:
        """Pixels along the side of a crop."""

    @abstractmethod
    def loss(self, x: Tensor, perceptual: PerceptualLoss | None) -> Tensor:
        """The loss of one batch of crops (B, 3, side, side) in [-1, 1]."""

    @abstractmethod
    def validate(self, photos: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
        """Measures the moving average on held-out photos (N, side, side, 3) uint8; metrics by name."""

    @abstractmethod
    def format_metrics(self, metrics: dict[str, float]) -> str:
        """The metrics of `validate` on one line."""

    @abstractmethod
    def write_model(self, path: Path, photos: Tensor, provenance: dict[str, Any]) -> Model:
        """Writes the moving average as a model file, with tables measured on photos (N, side, side, 3) uint8."""

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """All parameters, grouped by their share of the learning rate."""
        return [(1.0, list(self.network.parameters()))]

    def modules(self) -> dict[str, nn.Module]:
        """The modules in a checkpoint, by name."""
        return {"network": self.network, "average": self.ema}

    def after_step(self) -> None:  # noqa: B027 (most families have nothing to do)
        """Adjusts the network after each step of the optimizer."""

    # Helpers for families

    def perceptual_window(self) -> tuple[slice, slice]:
        """Rows and columns of a random window of a crop, for the perceptual distance."""
        side = min(self.config.patch, self.crop_side)
        top, left = self.rng.integers(self.crop_side - side + 1, size=2)
        return slice(top, top + side), slice(left, left + side)

    def add_totals_of(self, model: Model) -> None:
        """Adds the crops and minutes of a model's training to this run's totals."""
        self.total_crops += model.metadata["card"].get("crops", 0)
        self.total_minutes += model.metadata["card"].get("minutes", 0.0)

    # Process groups

    def join_group(self, group: ProcessGroup) -> None:
        """Joins a process group. All its processes start from this state, and each draws its own crops."""
        self.group = group
        if not group.is_leader:
            self.rng = np.random.default_rng([self.config.seed, self.step, group.rank])
            torch.manual_seed(int(self.rng.integers(2**31)))
        if group.world_size == 1:
            return
        for parameter in self.network.parameters():
            # The same tensors must exist in all processes. A parameter without a gradient here may have one elsewhere.
            if not self.optimizer.state[parameter]:
                moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.zeros((), device=self.device), **moments}

    def synchronize(self) -> None:
        """Replaces weights and moments by their means over the process group."""
        if self.group.world_size == 1:
            return
        tensors = [tensor for module in self.modules().values() for tensor in module.state_dict().values()]
        tensors += [self.optimizer.state[parameter][name] for parameter in self.network.parameters() for name in MOMENTS]
        self.group.average(tensors)

    # Checkpoints and models

    def save(self, path: Path) -> None:
        """Writes the complete state to a checkpoint, atomically."""
        tensors = {f"{name}.{k}": v for name, module in self.modules().items() for k, v in module.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}.{k}": v for k, v in state.items()}
        tensors["torch_rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        plain = {
            "family": self.family,
            "network": self.network_config.to_dict(),
            "training": asdict(self.config),
            "progress": {name: getattr(self, name) for name in COUNTERS},
            "rng": self.rng.bit_generator.state,
        }
        with atomic_write(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"trainer": json.dumps(plain)})

    @classmethod
    def resume(cls, path: Path, device: torch.device, config: TrainingConfig | None = None) -> Self:
        """The trainer in a checkpoint written by `save`. With a `config`, a new schedule starts from its weights and moments.

        Raises as `read_checkpoint` does."""
        plain, tensors = cls.read_checkpoint(path)
        trainer = cls(cls.build_network(plain["network"]), config or cls.recipe.from_dict(plain["training"]), device)
        trainer._load(plain, tensors)
        if config is not None:
            trainer.step, trainer.schedule_minutes = 0, 0.0
        return trainer

    @classmethod
    def read_checkpoint(cls, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain data and tensors of a checkpoint. Raises ModelError if it is damaged or of another family."""
        try:
            with safe_open(path, "pt") as file:
                plain = json.loads(file.metadata()["trainer"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            family = plain["family"]
        except Exception as error:
            msg = f"not a training checkpoint ({error})"
            raise ModelError(msg, file=path) from error
        if family != cls.family:
            msg = f"a checkpoint of the family {family}, not {cls.family}"
            raise ModelError(msg, ("family",), file=path)
        return plain, tensors

    def _load(self, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        for name, module in self.modules().items():
            module.load_state_dict(under(name))
        for name, parameter in self.network.named_parameters():
            state = under(f"optimizer.{name}")
            for key in state.keys() - {"step"}:  # the fused optimizer needs moments in the memory layout of their parameter
                state[key] = torch.empty_like(parameter.detach()).copy_(state[key])
            if state:
                state["step"] = state["step"].to(self.device)
            self.optimizer.state[parameter] = state
        vars(self).update({name: plain["progress"][name] for name in COUNTERS})
        self.rng.bit_generator.state = plain["rng"]
        torch.set_rng_state(tensors["torch_rng"])
        if self.device.type == "cuda" and "cuda_rng" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_rng"], self.device)

    def check_network(self, network_options: dict[str, Any], source: str) -> None:
        """Raises UsageError if these options ask for another network than the one in `source`, which this trainer continues."""
        if network_options and (wanted := self.configure(**network_options)) != self.network_config:
            msg = f"{source} contains {self.network_config.name} and cannot be trained as {wanted.name}"
            raise UsageError(msg, ("shape",))

    def export(self, photos: Tensor, path: Path, command: str) -> Model:
        """Writes a model file, with tables measured on the photos; its metadata records `command` and the training."""
        provenance = {
            "made_by": command,
            "training": asdict(self.config),
            "crops": self.total_crops,
            "minutes": round(self.total_minutes, 1),
            "table_photos": len(photos),
        }
        return self.write_model(path, photos, provenance)
