"""One training run from start to model file: what `tessera train` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bitstream.errors import ModelError
from codec.device import pick_device
from codec.models import open_model
from codec.pyramid.config import NetworkConfig
from codec.pyramid.model import PyramidModel, save_pyramid
from codec.pyramid.network import Network
from codec.training.integer import measure_tables
from codec.training.losses import PerceptualLoss
from codec.training.photos import karhunen_loeve, load_photos
from codec.training.trainer import Trainer, TrainingConfig, train
from codec.training.vgg import NONE, torchvision_vgg

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Run:
    """What `tessera train` was asked to do."""

    photos: Sequence[str]  # folders, tar files or pictures
    state: str  # folder of checkpoint and logs
    output: str | None  # model file to write at the end
    init: str | None  # model to start from
    restart: bool  # a new schedule from the checkpoint's weights
    vgg: str | None  # file of VGG19; without one torchvision's; 'none' for none
    threads: int | None
    table_photos: int  # that the prior's tables are measured on
    device: str
    recipe: dict[str, Any]  # what differs from `TrainingConfig`

    def execute(self, report: Callable[[str], None]) -> PyramidModel | None:
        """Trains as far as the schedule goes; with `output`, writes the model file and returns it. Raises TesseraError."""
        if self.threads:
            torch.set_num_threads(self.threads)
        device = torch.device(pick_device(self.device))
        perceptual = self.perceptual(report)
        crops, held_out = load_photos([Path(name) for name in self.photos])
        report(f"{len(crops)} photos to train on, {len(held_out)} held out, on {device} with {torch.get_num_threads()} threads")
        trainer = self.start(crops, device, report)
        train(trainer, crops, held_out, perceptual and perceptual.to(device), Path(self.state), report)
        if not self.output:
            return None
        return export(trainer, crops[:: max(1, len(crops) // self.table_photos)][: self.table_photos], Path(self.output))

    def perceptual(self, report: Callable[[str], None]) -> PerceptualLoss | None:
        """The perceptual loss; none where it is not wanted, or where no weights were named and torchvision's cannot be had."""
        without = "training on squared error and colour alone, pictures will be smoother"
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
        """The run found in `state`; or a new one, from a model or from the KLT of the photos."""
        checkpoint = Path(self.state) / CHECKPOINT
        if checkpoint.exists() and not self.init:
            trainer = Trainer.resume(checkpoint, device)
            config = replace(trainer.config, **self.recipe)
            if self.restart:
                return Trainer.resume(checkpoint, device, config)
            if config != trainer.config:
                report(f"{checkpoint} goes on with its own settings: those given need a restart, with a new schedule")
            return trainer
        config = TrainingConfig(**self.recipe)
        if self.init:
            model = open_pyramid(self.init)
            trainer = Trainer(model.network(torch.device("cpu")).requires_grad_(True), config, device)
            trainer.total_crops = model.metadata["card"].get("crops", 0)
            trainer.total_minutes = model.metadata["card"].get("minutes", 0.0)
            return trainer
        trainer = Trainer(Network(NetworkConfig()), config, device)
        trainer.network.start_from_klt(*karhunen_loeve(crops, trainer.network.config.channels, trainer.rng))
        trainer.average.load_state_dict(trainer.network.state_dict())
        return trainer


def open_pyramid(name: str) -> PyramidModel:
    """A model that can be trained on. Raises ModelError for one of another family, or where there is none."""
    model = open_model(name)
    if not isinstance(model, PyramidModel):
        msg = f"{name}: a model of kind {model.kind!r}: only {PyramidModel.kind!r} is trained here"
        raise ModelError(msg)
    return model


def export(trainer: Trainer, photos: torch.Tensor, path: Path) -> PyramidModel:
    """Writes the moving average as a model file: weights in fp16, the prior in integers, tables measured on `photos`."""
    network = trainer.average.half().float().eval()
    card = {
        "made_by": "tessera " + " ".join(sys.argv[1:]),
        "training": asdict(trainer.config),
        "crops": trainer.total_crops,
        "minutes": round(trainer.total_minutes, 1),
        "table_photos": len(photos),
    }
    return save_pyramid(path, network, measure_tables(network, photos), card)
