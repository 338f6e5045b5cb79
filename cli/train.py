"""`tessera train`: photographs to a model."""

from __future__ import annotations

from typing import Any

import click

from cli import options
from cli.report import ReportOptions, reporting, say


@click.command()
@click.argument("photos", metavar="PHOTOS...", nargs=-1, required=True, type=click.Path(exists=True))
@options.output
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="N", help="Length of the schedule.  [default: 60]")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Length in steps instead, so that runs repeat exactly.")
@click.option(
    "--state",
    metavar="DIR",
    default=".data/train",
    show_default=True,
    help="Checkpoint and logs; a run found there is continued.",
)
@click.option("--init", metavar="MODEL", help="Start from a model instead of from the KLT of the photos.")
@click.option("--restart", is_flag=True, help="Start a new schedule from the checkpoint's weights.")
@click.option(
    "--vgg",
    metavar="FILE|none",
    help="VGG19 for the perceptual loss: torchvision's file, or an .npz of its first convolutions; 'none' trains on squared "
    "error and colour alone.  [default: torchvision's in torch's cache, downloaded if missing]",
)
@click.option("--perceptual", type=float, metavar="W", help="Weight of the perceptual loss.")
@click.option("--patch", type=click.IntRange(16, 256), metavar="PIXELS", help="Side of the window that this loss sees.")
@click.option("--rate", type=float, metavar="LR", help="Highest learning rate.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Crops per step.")
@click.option("--slope", type=float, metavar="S", help="Factor on the weight of bits in the loss.")
@click.option("--average", type=float, metavar="DECAY", help="Decay of the moving average of the weights that is written.")
@click.option("--seed", type=int, metavar="N", help="Seed of the random crops and lengths.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Processor threads (default: cores).")
@click.option(
    "--tables",
    "table_photos",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    metavar="N",
    help="Photos that the prior's tables are measured on.",
)
@options.device
@options.reporting
def train(photos: tuple[str, ...], **given: Any) -> None:
    """Train a model on photographs (folders, tar files, pictures), or continue a run that stopped.

    SIGTERM and Ctrl-C write a checkpoint and end the run. With -o, a run that reaches its end writes a model file, with the
    prior in integers and its tables measured on the photos.

    \b
    tessera train photos/ --minutes 600 -o mine.safetensors
    tessera encode a.jpg --model mine.safetensors
    """
    from codec.device import require_torch

    report_options = options.gather(ReportOptions, given)
    with reporting("train", given["output"], report_options) as report:
        require_torch("train")
        from codec.training.run import Run
        from codec.training.trainer import TrainingConfig

        recipe = {name: given.pop(name) for name in TrainingConfig.__dataclass_fields__ if name in given}
        recipe = {name: value for name, value in recipe.items() if value is not None}
        model = Run(photos=photos, recipe=recipe, **given).execute((lambda _: None) if report_options.quiet else say)
        report.values["input"] = ", ".join(photos)
        if model:
            card = model.metadata["card"]
            described = {"stream_id": model.stream_id.hex(), "crops": card["crops"], "minutes": card["minutes"]}
            report.values |= {"model": model.name, "bytes": model.path.stat().st_size} | described
            spent = f"{card['crops']} crops in {card['minutes']:.0f} minutes"
            report.line = f"{model.path}: {spent}, stream id {described['stream_id']}"
