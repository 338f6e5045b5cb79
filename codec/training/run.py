"""One training run from start to model file: what `tessera train` does."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codec.errors import ModelError, UsageError
from codec.models.base import Model
from codec.system.device import pick_device
from codec.training.distributed import Team, together
from codec.training.losses import PerceptualLoss
from codec.training.photos import load_photos
from codec.training.trainer import Trainer, TrainingConfig, train
from codec.training.vgg import NONE, torchvision_vgg

CHECKPOINT = "checkpoint.safetensors"


def read_settings(recipe: type[TrainingConfig], settings: Sequence[str], elsewhere: Container[str]) -> dict[str, Any]:
    """NAME=VALUE each -> values of a recipe by name: whole numbers where the recipe has them, and lists of its length.

    Raises UsageError for a value that does not fit, and a name that the recipe does not have or that is set `elsewhere`."""
    usual = {name: value for name, value in vars(recipe()).items() if name not in elsewhere}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in usual:
            msg = f"{setting}: no such value of the recipe; there are {', '.join(usual) or 'none'}"
            raise UsageError(msg)
        each = usual[name] if isinstance(usual[name], tuple) else (usual[name],)
        kind = type(each[0])
        try:
            numbers = tuple(kind(number) for number in text.split(","))
        except ValueError:
            numbers = ()
        lowest = 1 if kind is int else 0
        if len(numbers) != len(each) or not all(lowest <= number < math.inf for number in numbers):
            what = "whole number" if kind is int else "number"
            amount = f"a {what}" if len(each) == 1 else f"{len(each)} {what}s, separated by commas,"
            msg = f"{setting}: {name} takes {amount} of at least {lowest}"
            raise UsageError(msg)
        values[name] = numbers if isinstance(usual[name], tuple) else numbers[0]
    return values


@dataclass(frozen=True)
class Run:
    """What `tessera train` was asked to do."""

    photos: Sequence[str]  # folders, tar files or images
    trainer: type[Trainer]  # of the family to train
    state: str  # folder of checkpoint and logs
    output: str | None  # model file to write at the end
    init: str | None  # model to start from
    restart: bool  # a new schedule from the checkpoint's weights
    vgg: str | None  # file of VGG19; without one torchvision's; 'none' for none
    threads: int | None
    processes: int | None  # of one thread each, which learn together
    table_photos: int  # that the tables of the model are measured on
    device: str
    validate_minutes: float  # of training, from one measurement of the held-out photos to the next
    shape: dict[str, Any]  # of a new network, where it differs from the family's
    recipe: dict[str, Any]  # what differs from the family's recipe

    def execute(self, report: Callable[[str], None]) -> Model | None:
        """Trains as far as the schedule goes; with `output`, writes the model file and returns it. Raises TesseraError."""
        device = torch.device(pick_device(self.device))
        processes = self.processes or 1
        self.check(device)
        if self.threads or processes > 1:
            torch.set_num_threads(self.threads or 1)
        perceptual = self.perceptual(report)
        crops, held_out = load_photos([Path(name) for name in self.photos])
        workers = f"{processes} processes" if processes > 1 else f"{torch.get_num_threads()} threads"
        report(f"{len(crops)} photos to train on, {len(held_out)} held out, on {device} with {workers}")
        trainer = self.start(crops, device, report)

        def learn(team: Team) -> None:
            trainer.join(team)
            loss = perceptual and perceptual.to(device)
            train(trainer, crops, held_out, loss, Path(self.state), report, self.validate_minutes)

        together(processes, learn)
        if not self.output:
            return None
        chosen = crops[:: max(1, len(crops) // self.table_photos)][: self.table_photos]
        return trainer.export(chosen, Path(self.output), "tessera " + " ".join(sys.argv[1:]))

    def check(self, device: torch.device) -> None:
        """Raises UsageError where processes cannot learn together."""
        if self.processes in (None, 1):
            return
        if device.type != "cpu":
            msg = f"processes that learn together need the processor, and cannot use {device}"
            raise UsageError(msg)
        if not self.trainer.averages:
            msg = f"processes cannot train a {self.trainer.family} together, since its codebook cannot be averaged"
            raise UsageError(msg)

    def perceptual(self, report: Callable[[str], None]) -> PerceptualLoss | None:
        """The perceptual loss; none where it is not wanted, or where no weights were named and torchvision's cannot be had."""
        without = f"training on {self.trainer.plain_loss} alone, images will be smoother"
        if self.vgg == NONE:
            report(f"no VGG19 wanted: {without}")
            return None
        try:
            loss = PerceptualLoss(Path(self.vgg) if self.vgg else torchvision_vgg())
        except ModelError as error:
            if self.vgg:
                raise
            report(f"no VGG19, so {without}: {error}")
            return None
        report(f"perceptual loss by VGG19 of {loss.origin}")
        return loss

    def start(self, crops: torch.Tensor, device: torch.device, report: Callable[[str], None]) -> Trainer:
        """The run found in `state`; or a new one, from a model or from nothing."""
        family = self.trainer
        checkpoint = Path(self.state) / CHECKPOINT
        recipe = self.recipe
        if "minutes" in recipe:
            recipe = recipe | {"steps": 0}  # a checkpoint may say otherwise
        if checkpoint.exists() and not self.init:
            trainer = family.resume(checkpoint, device)
            trainer.check_shape(self.shape, str(checkpoint))
            config = replace(trainer.config, **recipe)
            if self.restart:
                return family.resume(checkpoint, device, config)
            if config != trainer.config:
                report(f"{checkpoint} goes on with its own settings: those given need a restart, with a new schedule")
            return trainer
        config = family.recipe(**recipe)
        if checkpoint.exists():
            family.read(checkpoint)  # it will be replaced: not by a run of another family
        if self.init:
            trainer = family.continued(self.init, config, device)
            trainer.check_shape(self.shape, self.init)
            return trainer
        return family.fresh(crops, config, device, **self.shape)
