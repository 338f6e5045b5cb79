"""`tessera bench contribution`: which pixels tokens change."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click

from cli import options
from cli.bench import Numbers, failing
from cli.inputs import input_of
from cli.outputs import STANDARD, check_output, human, write_output
from cli.progress import Bar
from cli.report import put_record, say

LONGEST = 4096  # pixels per side of an image whose contributions are shown: each map decodes it several times


@click.command()
@click.argument("source", metavar="FILE")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="The image to write.  [default: FILE's name with -contribution.png, in the current folder]",
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
    "--draws", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="How many other values a token is given."
)
@options.force
@options.coding
@options.reporting
def contribution(source: str, output: str | None, places: tuple[float, ...] | None, length: float, draws: int, force: bool,
                 model: str | None, device: str, runtime: str, max_pixels: int, as_json: str | None, quiet: bool,
                 verbose: bool) -> None:  # fmt: skip
    """Show which pixels change when a token changes.

    A token is replaced by others that the prior holds possible, and the image is decoded again, as in One-D-Piece's maps.

    \b
    tessera bench contribution photo.png
    tessera bench contribution photo.png --places 0,1,20 -o map.png
    """
    target = output or f"{'standard-input' if source == STANDARD else Path(source).stem}-contribution.png"
    with failing(verbose):
        check_output(target, force, source)
        from benchmarks.contribution import contribution as maps
        from benchmarks.contribution import sheet
        from codec.codec import Codec
        from codec.image.source import read_source
        from codec.inputs import open_input

        most = min(max_pixels, LONGEST**2)
        pixels = read_source(open_input(input_of(source), most), {"background": "white"}, most).pixels
        whole = None if places is None else [int(place) for place in places]
        with Bar(0, "changing tokens", hidden=quiet) as bar:
            made = maps(Codec(model, device, runtime=runtime), pixels, whole, length, draws, progress=bar.advance)
        stream = io.BytesIO()
        sheet(pixels, made).save(stream, "PNG", optimize=True)
        write_output(target, stream.getvalue(), force)
        if as_json:
            for one in made:
                row = {"place": one.place, "level": one.level, "row": one.row, "column": one.column, "share": one.share}
                put_record(json.dumps(row | {"mean": float(one.change.mean()), "largest": float(one.change.max())}))
        elif not quiet:
            say(f"{source} -> {target}  {len(made)} tokens  {human(len(stream.getvalue()))}")
