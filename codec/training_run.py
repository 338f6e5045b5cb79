"""One training run from start to model file: what `tessera train` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from codec.config import NetworkConfig
from codec.device import pick_device
from codec.integer import measure_tables
from codec.losses import PerceptualLoss
from codec.network import Network
from codec.photos import karhunen_loeve, load_photos
from codec.training import Trainer, TrainingConfig, train
from codec.weights import Model, open_model, save_model

CHECKPOINT = "checkpoint.safetensors"


def run(
    photos: Sequence[str],
    state: str,
    output: str | None,
    init: str | None,
    restart: bool,
    vgg: str | None,
    threads: int | None,
    table_photos: int,
    device_name: str,
    recipe: dict[str, Any],
    report: Callable[[str], None],
) -> None:
    """Trains as far as the schedule goes; with `output`, writes the model file. Raises TesseraError."""
    if threads:
        torch.set_num_threads(threads)
    device = pick_device(device_name)
    perceptual = PerceptualLoss(Path(vgg)).to(device) if vgg else None
    crops, held_out = load_photos([Path(name) for name in photos])
    report(f"{len(crops)} photos to train on, {len(held_out)} held out, on {device} with {torch.get_num_threads()} threads")
    folder = Path(state)
    trainer = start(folder / CHECKPOINT, crops, init, restart, recipe, device)
    if perceptual is None:
        report("no --vgg given: training on squared error alone, pictures will be smoother")
    train(trainer, crops, held_out, perceptual, folder, report)
    if output:
        model = export(trainer, crops[:: max(1, len(crops) // table_photos)][:table_photos], Path(output))
        report(
            f"{output}: {trainer.total_crops} crops in {trainer.total_minutes:.0f} minutes, stream id {model.stream_id.hex()}"
        )


def start(
    checkpoint: Path, crops: torch.Tensor, init: str | None, restart: bool, recipe: dict[str, Any], device: torch.device
) -> Trainer:
    """The run found at `checkpoint`; or a new one, from a model or from the KLT of the photos."""
    if checkpoint.exists() and not init:
        trainer = Trainer.resume(checkpoint, device)
        config = replace(trainer.config, **recipe)
        return Trainer.resume(checkpoint, device, config) if restart else trainer
    config = TrainingConfig(**recipe)
    if init:
        model = open_model(init)
        network = model.network(torch.device("cpu")).requires_grad_(True)
        trainer = Trainer(network, config, device)
        trainer.total_crops = model.metadata["card"].get("crops", 0)
        trainer.total_minutes = model.metadata["card"].get("minutes", 0.0)
        return trainer
    network = Network(NetworkConfig())
    trainer = Trainer(network, config, device)
    network.start_from_klt(*karhunen_loeve(crops, network.config.channels, trainer.rng))
    trainer.average.load_state_dict(network.state_dict())
    return trainer


def export(trainer: Trainer, photos: torch.Tensor, path: Path) -> Model:
    """Writes the moving average as a model file: weights in fp16, the prior in integers, tables measured on `photos`."""
    network = trainer.average.half().float().eval()
    card = {
        "made_by": "tessera " + " ".join(sys.argv[1:]),
        "training": asdict(trainer.config),
        "crops": trainer.total_crops,
        "minutes": round(trainer.total_minutes, 1),
        "table_photos": len(photos),
    }
    return save_model(path, network, measure_tables(network, photos), card)
