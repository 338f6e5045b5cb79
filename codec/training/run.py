"""A training run, from photographs to a model file, as `tessera train` executes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codec.errors import ModelError, UsageError
from codec.models.base import Model
from codec.system.device import pick_device
from codec.training.distributed import ProcessGroup, run_distributed
from codec.training.losses import PerceptualLoss
from codec.training.photos import load_photos
from codec.training.recipe import TrainingConfig
from codec.training.trainer import CHECKPOINT, Trainer, train
from codec.training.vgg import torchvision_vgg

NO_VGG = "none"  # value of `vgg` that disables the perceptual loss


@dataclass(frozen=True)
class Run:
    """The options of a training run."""

    trainer: type[Trainer]  # trainer class of the family
    photos: Sequence[str]  # folders, tar files or images
    state: str  # folder of the checkpoint and the logs
    output: str | None  # model file to write at the end
    init: str | None  # model to start from
    restart: bool  # start a new schedule from the checkpoint's weights
    vgg: str | None  # file of VGG19, or NO_VGG; None for torchvision's
    threads: int | None
    processes: int | None  # number of single-threaded processes
    table_photos: int  # number of photos to measure the model's tables on
    device: str
    validate_minutes: float  # minutes of training between two validations
    network_options: dict[str, Any]  # options that differ from the family's defaults
    recipe: dict[str, Any]  # values that differ from the family's recipe
    command: str  # how the model was made, for its file

    def execute(self, report: Callable[[str], None]) -> Model | None:
        """Trains until the end of the schedule or a stop signal; writes and returns the model if `output` is given.

        Raises TesseraError."""
        device = torch.device(pick_device(self.device))
        processes = self.processes or 1
        if processes > 1:
            self._check_processes(device)
        if self.threads or processes > 1:
            torch.set_num_threads(self.threads or 1)
        perceptual = self._perceptual_loss(report)
        photos, held_out = load_photos([Path(name) for name in self.photos])
        workers = f"{processes} processes" if processes > 1 else f"{torch.get_num_threads()} threads"
        report(f"{len(photos)} photos to train on, {len(held_out)} held out, on {device} with {workers}")
        trainer = self.start(photos, device, report)

        def work(group: ProcessGroup) -> None:
            trainer.join_group(group)
            loss = perceptual and perceptual.to(device)
            train(trainer, photos, held_out, loss, Path(self.state), report, self.validate_minutes)

        run_distributed(processes, work)
        if not self.output:
            return None
        sample = photos[:: max(1, len(photos) // self.table_photos)][: self.table_photos]
        return trainer.export(sample, Path(self.output), self.command)

    def _check_processes(self, device: torch.device) -> None:
        """Raises UsageError if this run cannot be shared by several processes."""
        if device.type != "cpu":
            msg = f"several processes can train on the CPU only, not on {device}"
            raise UsageError(msg, ("processes",))
        if not self.trainer.can_average:
            msg = f"several processes cannot train a {self.trainer.family}, since its codebook cannot be averaged"
            raise UsageError(msg, ("processes",))

    def _perceptual_loss(self, report: Callable[[str], None]) -> PerceptualLoss | None:
        """The perceptual loss; None if it is disabled, or if no file is given and torchvision's is not available."""
        consequence = f"training on {self.trainer.loss_without_vgg} alone; images will be smoother"
        if self.vgg == NO_VGG:
            report(f"perceptual loss disabled: {consequence}")
            return None
        try:
            loss = PerceptualLoss(Path(self.vgg) if self.vgg else torchvision_vgg())
        except ModelError as error:
            if self.vgg:
                raise
            report(f"VGG19 is not available ({error}): {consequence}")
            return None
        report(f"perceptual loss by VGG19 of {loss.origin}")
        return loss

    def start(self, photos: torch.Tensor, device: torch.device, report: Callable[[str], None]) -> Trainer:
        """A trainer that continues from the checkpoint in `state`, or else starts from a model or from scratch."""
        checkpoint = Path(self.state) / CHECKPOINT
        recipe = self.recipe
        if "minutes" in recipe:
            recipe = recipe | {"steps": 0}  # the checkpoint's recipe may have a length in steps
        if checkpoint.exists() and not self.init:
            trainer = self.trainer.resume(checkpoint, device)
            trainer.check_network(self.network_options, str(checkpoint))
            config = replace(trainer.config, **recipe)
            if self.restart:
                return self.trainer.resume(checkpoint, device, config)
            if config != trainer.config:
                report(f"{checkpoint} continues with the values that it was started with: to change them, restart it")
            return trainer
        config = self.trainer.recipe(**recipe)
        if checkpoint.exists():
            self.trainer.read_checkpoint(checkpoint)  # a run never replaces the checkpoint of another family
        if self.init:
            trainer = self.trainer.from_model(self.init, config, device)
            trainer.check_network(self.network_options, self.init)
            return trainer
        return self.trainer.from_scratch(photos, config, device, **self.network_options)


def trainer_of(family: str) -> type[Trainer]:
    """The trainer of the family of this name."""
    from codec.pyramid.training import PyramidTrainer
    from codec.titok.training import TitokTrainer

    return {trainer.family: trainer for trainer in (PyramidTrainer, TitokTrainer)}[family]


def parse_settings(recipe: type[TrainingConfig], settings: Sequence[str], excluded: Container[str]) -> dict[str, Any]:
    """Values of a recipe by name, from strings NAME=VALUE. A tuple takes its number of values, separated by commas.

    Raises UsageError for a value that does not fit, and for a name that is `excluded` or not in the recipe."""
    fields = vars(recipe()).items()
    defaults = {name: value for name, value in fields if name not in excluded and not isinstance(value, str)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in defaults:
            msg = f"{setting}: unknown training value; choose from {', '.join(defaults) or 'none'}"
            raise UsageError(msg)
        default = defaults[name]
        count = len(default) if isinstance(default, tuple) else 1
        number_type = type(default[0] if isinstance(default, tuple) else default)
        try:
            numbers = tuple(number_type(number) for number in text.split(","))
        except ValueError:
            numbers = ()
        minimum = 1 if number_type is int else 0
        if len(numbers) != count or not all(minimum <= number < math.inf for number in numbers):
            noun = "whole number" if number_type is int else "number"
            amount = f"a {noun}" if count == 1 else f"{count} {noun}s, separated by commas,"
            msg = f"{setting}: {name} takes {amount} of at least {minimum}"
            raise UsageError(msg)
        values[name] = numbers if isinstance(default, tuple) else numbers[0]
    return values
