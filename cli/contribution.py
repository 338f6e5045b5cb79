"""`tessera bench contribution`: which pixels change when a token changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.bench import Numbers, failing
from cli.inputs import input_of
from cli.outputs import STANDARD, check_output, human, write_output
from cli.progress import Bar
from cli.report import ReportOptions, say

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
    type=click.FloatRange(1),
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
                 model: str | None, device: str, runtime: str, max_pixels: int, **values: Any) -> None:  # fmt: skip
    """Show which pixels change when a token changes.

    A token is replaced by others that the entropy model considers possible, and the image is decoded again, as in
    One-D-Piece's maps.

    \b
    tessera bench contribution photo.png
    tessera bench contribution photo.png --indexes 0,1,20 -o map.png
    """
    target = output or f"{'standard-input' if source == STANDARD else Path(source).stem}-contribution.png"
    report_options = options.gather(ReportOptions, values)
    with failing(report_options):
        check_output(target, force, source)
        from benchmarks.contribution import contribution, sheet
        from codec.codec import Codec
        from codec.image.opening import open_input
        from codec.image.source import read_source

        limit = min(max_pixels, MAX_SIDE**2)
        pixels = read_source(open_input(input_of(source), limit), {"background": "white"}, limit).pixels
        selected = None if indexes is None else [int(index) for index in indexes]
        codec = Codec(model, device, runtime=runtime)
        with Bar(0, "changing tokens", hidden=report_options.quiet) as bar:
            maps = contribution(codec, pixels, selected, tokens, draws, progress=bar.advance)
        stream = io.BytesIO()
        sheet(pixels, maps).save(stream, "PNG", optimize=True)
        write_output(target, stream.getvalue(), force)
        if report_options.as_json:
            for one in maps:
                row = {"place": one.index, "level": one.level, "row": one.row, "column": one.column, "share": one.share}
                change = {"mean": float(one.change.mean()), "largest": float(one.change.max())}
                report_options.put_record(row | change)
        elif not report_options.quiet:
            say(f"{source} -> {target}  {len(maps)} tokens  {human(len(stream.getvalue()))}")
