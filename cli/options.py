"""Options and arguments that several commands share, each defined once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]
UNITS = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "ki": 1024,
    "kib": 1024,
    "mi": 1024**2,
    "mib": 1024**2,
}


class Size(click.ParamType):
    """Bytes: 4096, 4k, 1.5M, 4KiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", str(value).strip().lower())
        if not match or match[2] not in UNITS:
            self.fail(f"{value!r} is no size: write bytes, or a number with k, M, KiB or MiB", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Pixels(click.ParamType):
    """A number of pixels: 500M, 20000000."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([km]?)", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is no number of pixels: write it out, or with M", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


output = click.option("-o", "--output", metavar="PATH", help="Where to write; '-' is standard output.")
force = click.option("-f", "--force", is_flag=True, help="Replace an output that exists.")
model = click.option(
    "--model",
    metavar="NAME|PATH",
    help="A bundled model's name, or a model file. Default: standard; for a file, the one that wrote it.",
)
device = click.option("--device", metavar="auto|cpu|cuda[:N]", default="auto", show_default=True, help="Where to compute.")
max_pixels = click.option(
    "--max-pixels", type=Pixels(), metavar="N", default="500M", show_default=True, help="Refuse larger pictures."
)
allow_partial = click.option("--allow-partial", is_flag=True, help="Accept a file that was cut short.")
reporting = _together(
    click.option("--json", "as_json", is_flag=True, help="One JSON object a file on standard output."),
    click.option("--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("-v", "--verbose", is_flag=True, help="Say more; show tracebacks of errors."),
)
coding = _together(model, device, max_pixels)
jobs = click.option(
    "-j", "--jobs", type=click.IntRange(1), default=lambda: os.cpu_count() or 1, metavar="N", help="Threads.  [default: cores]"
)
inputs = _together(
    click.option("-r", "--recursive", is_flag=True, help="Look into the folders of folders too."),
    click.option("--files-from", metavar="FILE", help="Read more inputs from a file, one a line; '-' is standard input."),
)
