"""`tessera bench contribution`: which pixels change when a token changes."""

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

MAX_SIDE = 4096  # pixels: each map decodes the image several times


@click.command()
@click.argument("source", metavar="FILE")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="The image to write.  [default: FILE's name with -contribution.png, in the current folder]",
)
@click.option(
    "--indexes", type=Numbers(), metavar="LIST", help="Token indexes in the sequence, from 0.  [default: some of each level]"
)
@click.option(
    "--tokens",
    type=click.FloatRange(1, 1365),
    default=469,
    show_default=True,
    metavar="N",
    help="Length of the sequence, in tokens per block of 256x256 pixels.",
)
@click.option(
    "--draws", type=click.IntRange(1), default=4, show_default=True, metavar="N", help="Number of replacements for each token."
)
@options.force
@options.coding
@options.reporting
def contribution(source: str, output: str | None, indexes: tuple[float, ...] | None, tokens: float, draws: int, force: bool,
                 model: str | None, device: str, runtime: str, max_pixels: int, as_json: str | None, quiet: bool,
                 verbose: bool) -> None:  # fmt: skip
    """Show which pixels change when a token changes.

    A token is replaced by others that the entropy model considers possible, and the image is decoded again, as in
    One-D-Piece's maps.

    \b
    tessera bench contribution photo.png
    tessera bench contribution photo.png --indexes 0,1,20 -o map.png
    """
    target = output or f"{'standard-input' if source == STANDARD else Path(source).stem}-contribution.png"
    with failing(verbose):
        check_output(target, force, source)
        from benchmarks.contribution import contribution, sheet
        from codec.codec import Codec
        from codec.image.opening import open_input
        from codec.image.source import read_source

        limit = min(max_pixels, MAX_SIDE**2)
        pixels = read_source(open_input(input_of(source), limit), {"background": "white"}, limit).pixels
        selected = None if indexes is None else [int(index) for index in indexes]
        codec = Codec(model, device, runtime=runtime)
        with Bar(0, "changing tokens", hidden=quiet) as bar:
            maps = contribution(codec, pixels, selected, tokens, draws, progress=bar.advance)
        stream = io.BytesIO()
        sheet(pixels, maps).save(stream, "PNG", optimize=True)
        write_output(target, stream.getvalue(), force)
        if as_json:
            for one in maps:
                row = {"place": one.index, "level": one.level, "row": one.row, "column": one.column, "share": one.share}
                put_record(json.dumps(row | {"mean": float(one.change.mean()), "largest": float(one.change.max())}))
        elif not quiet:
            say(f"{source} -> {target}  {len(maps)} tokens  {human(len(stream.getvalue()))}")
