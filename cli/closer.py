"""`tessera bench contribution` and `tessera bench recognition`: two closer looks at what tokens hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.bench import Numbers, bench, failing, find_all, progress, show
from cli.files import STANDARD, check_output, human, write_output
from cli.inputs import read_picture
from cli.report import put_record, say

LENGTHS = (21.0, 85.0, 213.0, 341.0, 469.0, 853.0, 1365.0)
LONGEST = 4096  # pixels per side of a picture whose contributions are drawn: each map decodes it several times


@bench.command()
@click.argument("source", metavar="FILE")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="The picture to write.  [default: FILE's name with -contribution.png, in the current folder]",
)
@click.option(
    "--places", type=Numbers(), metavar="LIST", help="Places in the sequence, 0 is sent first.  [default: some of each level]"
)
@click.option(
    "--tokens",
    "length",
    type=click.FloatRange(1, 1365),
    default=469,
    show_default=True,
    metavar="N",
    help="Length of the sequence, tokens per block of 256x256 pixels.",
)
@click.option(
    "--draws", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Other values that a token is given."
)
@options.force
@options.coding
@options.reporting
def contribution(source: str, output: str | None, places: tuple[float, ...] | None, length: float, draws: int, force: bool,
                 model: str | None, device: str, max_pixels: int, as_json: str | None, quiet: bool,
                 verbose: bool) -> None:  # fmt: skip
    """Draw which pixels change when a token changes.

    A token is replaced by others that the prior holds possible, and the picture decoded again: One-D-Piece's map.

    \b
    tessera bench contribution photo.png
    tessera bench contribution photo.png --places 0,1,20 -o map.png
    """
    target = output or f"{'standard-input' if source == STANDARD else Path(source).stem}-contribution.png"
    with failing(verbose):
        check_output(target, force, source)
        from benchmarks.contribution import contribution as maps
        from benchmarks.contribution import sheet
        from codec.api import Codec
        from codec.pictures.images import read_image, to_pixels

        most = min(max_pixels, LONGEST**2)
        pixels = to_pixels(read_image(read_picture(source, most), most), background="white")
        whole = None if places is None else [int(place) for place in places]
        with progress(0, quiet, "changing tokens") as step:
            made = maps(Codec(model, device), pixels, whole, length, draws, progress=step)
        stream = io.BytesIO()
        sheet(pixels, made).save(stream, "PNG", optimize=True)
        write_output(target, stream.getvalue(), force)
        if as_json:
            for one in made:
                row = {"place": one.place, "level": one.level, "row": one.row, "column": one.column, "share": one.share}
                put_record(json.dumps(row | {"mean": float(one.change.mean()), "largest": float(one.change.max())}))
        elif not quiet:
            say(f"{source} -> {target}  {len(made)} tokens  {human(len(stream.getvalue()))}")


@bench.command()
@click.argument("inputs", metavar="DIR|FILE...", nargs=-1, required=True)
@options.inputs
@click.option("--classifier", metavar="NAME", help="A classifier of torchvision.  [default: mobilenet_v3_small]")
@click.option("--classifier-weights", metavar="FILE", help="Its weights; default: the torch cache.")
@click.option(
    "--tokens",
    "lengths",
    type=Numbers(),
    metavar="LIST",
    help=f"Lengths, tokens per block.  [default: {','.join(f'{length:g}' for length in LENGTHS)}]",
)
@options.coding
@options.reporting
def recognition(
    inputs: tuple[str, ...],
    recursive: bool,
    files_from: str | None,
    classifier: str | None,
    classifier_weights: str | None,
    lengths: tuple[float, ...] | None,
    **given: Any,
) -> None:
    """Tell how often a classifier sees in decoded pictures what it sees in the originals.

    \b
    tessera bench recognition photos/
    tessera bench recognition photos/ --classifier resnet50 --tokens 85,341
    """
    with failing(given["verbose"]):
        from benchmarks.recognition import DEFAULT, load_classifier
        from benchmarks.recognition import recognition as measure
        from codec.api import Codec

        sources = find_all(inputs, recursive, files_from, given["max_pixels"])
        judge = load_classifier(classifier or DEFAULT, Path(classifier_weights) if classifier_weights else None)
        codec = Codec(given["model"], given["device"], max_pixels=given["max_pixels"])
        with progress(len(sources), given["quiet"], "recognising") as step:
            rows = measure(codec, (source.pixels() for source in sources), judge, lengths or LENGTHS, step)
        if given["as_json"]:
            for row in rows:
                put_record(json.dumps({"classifier": judge.name, "pictures": len(sources)} | vars(row)))
            return
        from benchmarks.export import new_table

        table = new_table("tokens per block", "bpp", "top-1", "top-5")
        for row in rows:
            table.add_row(f"{row.tokens:g}", f"{row.bpp:.4f}", f"{100 * row.top1:.1f} %", f"{100 * row.top5:.1f} %")
        show([f"{judge.name} on {len(sources)} pictures: agreement with its verdict on the original", table])
