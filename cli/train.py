"""`tessera train`: train a model on photographs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.outputs import STANDARD, check_output
from cli.report import ReportOptions, reporting, say
from codec.errors import UsageError
from codec.titok.config import NEW_SIZES
from codec.training.recipe import TrainingConfig

if TYPE_CHECKING:
    from codec.training.run import Run

EXCLUSIVE = (
    ("minutes", "steps", "both set the length of the schedule"),
    ("processes", "threads", "each process has one thread"),
)


def _recipe(name: str) -> Any:
    """The flag for a value of the recipe."""
    return options.library(name, TrainingConfig)


@click.command()
@click.argument("photos", metavar="PHOTOS...", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("-o", "--output", type=options.Name(), metavar="PATH", help="Model file to write at the end of the run.")
@click.option(
    "--family",
    type=click.Choice(["pyramid", "one-d-piece"]),
    default="pyramid",
    show_default=True,
    help="Network to train: the pyramid of the standard model, or a transformer with 1-D tokens (One-D-Piece).",
)
@click.option(
    "--size",
    type=click.Choice(NEW_SIZES),
    help="Size of a One-D-Piece: tiny has blocks of 32 pixels; the others are as published, with blocks of 256 pixels."
    "  [default: tiny]",
)
@click.option(
    "--block-tokens",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Tokens per block of a One-D-Piece.  [default: 16 for tiny, otherwise 256]",
)
@_recipe("minutes")
@_recipe("steps")
@click.option(
    "--state",
    metavar="DIR",
    default=".data/train",
    show_default=True,
    help="Folder of the checkpoint and the logs. A run continues from a checkpoint found there.",
)
@click.option("--init", metavar="MODEL", help="Model of the same family to start from.  [default: from scratch]")
@click.option("--restart", is_flag=True, help="Start a new schedule from the checkpoint's weights.")
@click.option(
    "--vgg",
    metavar="FILE|none",
    help="VGG19 for the perceptual loss: torchvision's file, or an .npz of its first convolutions; 'none' trains without "
    "perceptual loss.  [default: torchvision's file in torch's cache, downloaded if missing]",
)
@click.option(
    "--part",
    type=click.Choice(["all", "decoder", "texture"]),
    help="Part of a pyramid to train: all but texture, or one of the others, which keeps the tokens of the model in --init.  "
    "[default: all]",
)
@_recipe("perceptual")
@_recipe("patch")
@click.option("--colour", type=click.FloatRange(0), metavar="W", help="Weight of a pyramid's colour loss.")
@_recipe("rate")
@_recipe("decay")
@_recipe("batch")
@click.option("--lambda-scale", type=float, metavar="S", help="Factor for the weight of the rate in a pyramid's loss.")
@_recipe("average")
@_recipe("seed")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a training value that has no option: a number, or one number per level, separated by commas.",
)
@click.option(
    "--validate-minutes",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="N",
    help="Minutes of training between validations on held-out photos.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads.  [default: all cores]")
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Train a pyramid in N processes of one thread each, which is faster than N threads.",
)
@click.option(
    "--tables",
    "table_photos",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    metavar="N",
    help="Number of photos for measuring the coding tables.",
)
@options.device
@options.reporting
def train(photos: tuple[str, ...], family: str, settings: tuple[str, ...], **arguments: Any) -> None:
    """Train a model on photographs (folders, tar files, images), or continue a run.

    SIGTERM and Ctrl-C write a checkpoint and end the run. With -o, a run that reaches the end of its schedule writes a model
    file, whose coding tables are measured on the photographs.

    \b
    tessera train photos/ --minutes 600 -o mine.safetensors
    tessera encode a.jpg --model mine.safetensors
    tessera train photos/ --family one-d-piece --state tiny/ --minutes 15 -o tiny.safetensors
    """
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, arguments)
    output = arguments["output"]
    with reporting("train", output, report_options) as report:
        if output == STANDARD:
            msg = "a model cannot be written to standard output: use -o FILE"
            raise UsageError(msg)
        if output:
            # A run that is continued replaces its model.
            check_output(output, force=True, source=STANDARD, makes_folders=True)
        for one, other, reason in EXCLUSIVE:
            if arguments[one] and arguments[other]:
                msg = f"--{one} and --{other}: {reason}; leave one of the two out"
                raise UsageError(msg)
        require_torch("train")
        run = _run(photos, family, settings, arguments)
        model = run.execute((lambda _: None) if report_options.quiet else say)
        report.values["input"] = ", ".join(photos)
        if model:
            provenance = model.metadata["card"]
            report.values |= {"model": model.name, "bytes": model.path.stat().st_size, "stream_id": model.stream_id.hex()}
            report.values |= {"crops": provenance["crops"], "minutes": provenance["minutes"]}
            counts = f"{provenance['crops']} crops in {provenance['minutes']:.0f} minutes"
            report.line = f"{model.path}: {counts}, stream id {model.stream_id.hex()}"


def _run(photos: tuple[str, ...], family: str, settings: tuple[str, ...], arguments: dict[str, Any]) -> Run:
    """The run that the options describe. Options that are not fields of `Run` belong to the network or to the recipe."""
    from codec.training.run import Run, parse_settings, trainer_of

    trainer = trainer_of(family)
    run_options = {name: arguments.pop(name) for name in Run.__dataclass_fields__ if name in arguments}
    recipe = {name: value for name, value in arguments.items() if value is not None}
    network_options = {name: recipe.pop(name) for name in trainer.network_options if name in recipe}
    if unknown := sorted(recipe.keys() - trainer.recipe.__dataclass_fields__):
        names = " and ".join(f"--{name.replace('_', '-')}" for name in unknown)
        verb, pronoun = ("does", "it") if len(unknown) == 1 else ("do", "them")
        msg = f"{names} {verb} not apply to --family {family}: omit {pronoun} or choose another family"
        raise UsageError(msg)
    recipe |= parse_settings(trainer.recipe, settings, excluded=arguments)
    command = "tessera " + " ".join(sys.argv[1:])
    return Run(trainer=trainer, photos=photos, network_options=network_options, recipe=recipe, command=command, **run_options)
