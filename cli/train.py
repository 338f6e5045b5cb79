"""`tessera train`: photographs to a model."""

from __future__ import annotations

from typing import Any

import click

from cli import options
from cli.outputs import STANDARD, check_output
from cli.report import ReportOptions, reporting, say
from codec.errors import UsageError

ALTERNATIVES = (
    ("minutes", "steps", "either is the length of the schedule"),
    ("processes", "threads", "each process has one thread"),
)


@click.command()
@click.argument("photos", metavar="PHOTOS...", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("-o", "--output", type=options.Name(), metavar="PATH", help="The model file to write.")
@click.option(
    "--family",
    type=click.Choice(["pyramid", "one-d-piece"]),
    default="pyramid",
    show_default=True,
    help="What to train: the network of the standard model, or a transformer with 1-D tokens (One-D-Piece).",
)
@click.option(
    "--size",
    type=click.Choice(["tiny", "small", "base", "large"]),
    help="Of a One-D-Piece: as published (blocks of 256 pixels), or tiny (32 pixels).  [default: tiny]",
)
@click.option(
    "--block-tokens",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Tokens per block of a One-D-Piece.  [default: 16 for tiny, otherwise 256]",
)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="N", help="Length of the schedule.  [default: 60]")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Length in steps instead, so that runs repeat exactly.")
@click.option(
    "--state",
    metavar="DIR",
    default=".data/train",
    show_default=True,
    help="Checkpoint and logs; a run found there is continued.",
)
@click.option("--init", metavar="MODEL", help="Start from a model of the family instead of from nothing.")
@click.option("--restart", is_flag=True, help="Start a new schedule from the checkpoint's weights.")
@click.option(
    "--vgg",
    metavar="FILE|none",
    help="VGG19 for the perceptual loss: torchvision's file, or an .npz of its first convolutions; 'none' trains on plain "
    "errors alone.  [default: torchvision's in torch's cache, downloaded if missing]",
)
@click.option("--perceptual", type=float, metavar="W", help="Weight of the perceptual loss.")
@click.option("--patch", type=click.IntRange(16, 256), metavar="PIXELS", help="Side of the window that this loss sees.")
@click.option("--colour", type=click.FloatRange(0), metavar="W", help="Weight of colours in the loss of a pyramid.")
@click.option("--rate", type=float, metavar="LR", help="Highest learning rate; wide transformers want 1e-4.")
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Share of the schedule, at its end, in which the rate falls to zero.  [default: 0.2]",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Crops per step.")
@click.option("--slope", type=float, metavar="S", help="Factor on the weight of bits in the loss of a pyramid.")
@click.option("--average", type=float, metavar="DECAY", help="Decay of the moving average of the weights that is written.")
@click.option("--seed", type=int, metavar="N", help="Seed of the random crops and lengths.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A value of the recipe that has no option here: a number, or one for each level, separated by commas.",
)
@click.option(
    "--validate-minutes",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="N",
    help="Minutes of training from one measurement of the held-out photos to the next.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Processor threads (default: cores).")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Processes of one thread each instead, which learn together: faster than as many threads, and for a pyramid only.",
)
@click.option(
    "--tables",
    "table_photos",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    metavar="N",
    help="Photos that the model's tables are measured on.",
)
@options.device
@options.reporting
def train(photos: tuple[str, ...], **given: Any) -> None:
    """Train a model on photographs (folders, tar files, images), or continue a run that stopped.

    SIGTERM and Ctrl-C write a checkpoint and end the run. With -o, a run that reaches its end writes a model file, with its
    coding tables measured on the photos.

    \b
    tessera train photos/ --minutes 600 -o mine.safetensors
    tessera encode a.jpg --model mine.safetensors
    tessera train photos/ --family one-d-piece --state tiny/ --minutes 15 -o tiny.safetensors
    """
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, given)
    with reporting("train", given["output"], report_options) as report:
        if given["output"] == STANDARD:
            msg = "a model cannot be written to standard output: use -o FILE"
            raise UsageError(msg)
        if given["output"]:
            # A run that goes on replaces its model.
            check_output(given["output"], force=True, source=STANDARD, makes_folders=True)
        require_torch("train")
        from codec.models.registry import trainer_of
        from codec.training.run import Run, read_settings

        for one, other, reason in ALTERNATIVES:
            if given[one] and given[other]:
                msg = f"--{one} and --{other}: {reason}; leave one of the two out"
                raise UsageError(msg)
        trainer = trainer_of(family := given.pop("family"))
        chosen = {name: given.pop(name) for name in given.keys() - Run.__dataclass_fields__}
        own_options = set(chosen)
        chosen = {name: value for name, value in chosen.items() if value is not None}
        settings = read_settings(trainer.recipe, chosen.pop("settings"), own_options)
        shape = {name: chosen.pop(name) for name in trainer.shape if name in chosen}
        if foreign := sorted(chosen.keys() - trainer.recipe.__dataclass_fields__):
            names = " and ".join(f"--{name.replace('_', '-')}" for name in foreign)
            msg = f"{names}: not for --family {family}: leave it out, or name the other family"
            raise UsageError(msg)
        run = Run(photos=photos, trainer=trainer, shape=shape, recipe=chosen | settings, **given)
        model = run.execute((lambda _: None) if report_options.quiet else say)
        report.values["input"] = ", ".join(photos)
        if model:
            card = model.metadata["card"]
            described = {"stream_id": model.stream_id.hex(), "crops": card["crops"], "minutes": card["minutes"]}
            report.values |= {"model": model.name, "bytes": model.path.stat().st_size} | described
            spent = f"{card['crops']} crops in {card['minutes']:.0f} minutes"
            report.line = f"{model.path}: {spent}, stream id {described['stream_id']}"
