"""Options and arguments of the commands. `library` turns the options in `codec.options` into flags."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from codec.options import AUTO, LOCAL, MAX_PIXELS, SAMPLING, CodecOptions, DecodeOptions, EncodeOptions, Option, definitions

Command = Callable[..., Any]
Group = TypeVar("Group")
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
    """A number of bytes: 4096, 4k, 1.5M, 4KiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", str(value).strip().lower())
        if not match or match[2] not in UNITS:
            self.fail(f"{value!r} is not a size: write bytes, or a number with k, M, KiB or MiB", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Pixels(click.ParamType):
    """A number of pixels: 500M, 20000000."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([km]?)", str(value).strip().lower())
        if not match:
            self.fail(f"{value!r} is not a number of pixels: write it in full, or with M", param, ctx)
        return int(float(match[1]) * UNITS[match[2]])


class Colour(click.ParamType):
    """A CSS colour."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getcolor(value, "RGBA")
        except ValueError:
            self.fail(f"{value!r} is not a colour: use a name such as white, or #rrggbb", param, ctx)
        return value


class Name(click.Path):
    """A file or folder, which need not exist: errors are reported when it is used."""

    def __init__(self) -> None:
        super().__init__(readable=False, allow_dash=True)


class Model(click.ParamType):
    """The name of a model, or the path of a model file."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from codec.models.registry import model_files

        names = [CompletionItem(path.stem) for path in model_files() if path.stem.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type="file")]


class Device(click.ParamType):
    """A device to compute on. Whether it exists is checked when it is used."""

    name = "device"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in ("auto", "cpu", "cuda") if name.startswith(incomplete)]


class Address(click.ParamType):
    """The address of Ray: HOST:PORT, or 'auto' for the Ray that runs on this machine."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if str(value).startswith("ray://"):
            self.fail(f"{value!r} is for Ray's client: run tessera on a machine of the cluster, with HOST:PORT", param, ctx)
        if value not in (LOCAL, AUTO) and not re.fullmatch(r"[^/\s]+:[0-9]{1,5}", str(value)):
            advice = "write HOST:PORT or auto; --ray alone comes after the files, or before another option"
            self.fail(f"{value!r} is not the address of a Ray cluster: {advice}", param, ctx)
        return value


class Ordered(click.Group):
    """Lists commands in order of registration."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def gather(group: type[Group], values: dict[str, Any]) -> Group:
    """Returns a dataclass filled from the values that click gives a command, and removes its fields from the values."""
    return group(**{field.name: values.pop(field.name) for field in fields(group) if field.name in values})  # type: ignore[arg-type]


def select(definition: type, values: dict[str, Any]) -> Any:
    """The options in `values` that belong to `definition`, a class of `codec.options`, if they were given."""
    return {name: values[name] for name in definitions(definition) if values.get(name) is not None}


def refuse_two(values: dict[str, Any]) -> None:
    """Raises UsageError if more than one of these options has a value."""
    names = [f"--{name.replace('_', '-')}" for name, value in values.items() if value not in (None, False)]
    if len(names) > 1:
        msg = f"{' and '.join(names)} contradict each other: give one of them"
        raise click.UsageError(msg)


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def library(name: str, options: type, **changes: Any) -> Callable[[Command], Command]:
    """The flag for an option of the library; `changes` replace attributes of the click option."""
    kind, option = definitions(options)[name]
    attributes: dict[str, Any] = {"help": f"{option.help}."} | _argument(kind, option)
    if option.default:
        attributes["help"] += f"  [default: {option.default}]"
    return click.option(*option.flags, f"--{name.replace('_', '-')}", name, **attributes | changes)


def _argument(kind: Any, option: Option) -> dict[str, Any]:
    """The click attributes for the argument of an option."""
    kinds = {"size": Size(), "pixels": Pixels(), "colour": Colour(), "path": Name(), "model": Model(), "device": Device()}
    types = get_args(kind) or (kind,)  # `float | None` is (float, None)
    if bool in types:
        return {"is_flag": True}
    if option.choices:
        return {"type": click.Choice(option.choices)}
    if option.kind:
        return {"type": kinds[option.kind], "metavar": option.metavar}
    if option.minimum is None:
        return {"type": float if float in types else int, "metavar": option.metavar}
    ranges: Any = click.FloatRange if float in types else click.IntRange
    return {"type": ranges(option.minimum, option.maximum, min_open=option.positive), "metavar": option.metavar}


sources = click.argument("sources", metavar="IN...", nargs=-1, type=Name())
output = click.option("-o", "--output", type=Name(), metavar="PATH", help="Output file or folder, or '-' for standard output.")
force = click.option("-f", "--force", is_flag=True, help="Replace existing outputs and follow symbolic links.")
skip_existing = click.option("--skip-existing", is_flag=True, help="Skip inputs whose output exists and is complete.")
device = library("device", CodecOptions, default="auto")
runtime = library("runtime", CodecOptions, default="auto")
max_pixels = library("max_pixels", CodecOptions, default=MAX_PIXELS)
allow_partial = library("allow_partial", DecodeOptions)
sampling = together(*(library(name, DecodeOptions) for name in SAMPLING))
reporting = together(
    click.option(
        "--json",
        "as_json",
        flag_value="lines",
        default=None,
        help="Write a JSON object for each file to standard output, one per line (JSON Lines).",
    ),
    click.option("--json-array", "as_json", flag_value="array", help="Write these objects as one JSON array."),
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    click.option("-v", "--verbose", is_flag=True, help="Print more, and tracebacks of errors."),
)
background = library("background", EncodeOptions)
computing = together(device, runtime, max_pixels)
model = library("model", CodecOptions)
coding = together(model, computing)
encoder = together(*(library(name, EncodeOptions) for name in definitions(EncodeOptions)))
jobs = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    metavar="N",
    help="Threads to use.  [default: number of cores]",
)
batch = click.option(
    "--batch", type=click.IntRange(1), metavar="N", help="Images per network call.  [default: chosen by device and memory]"
)
ray = click.option(
    "--ray",
    is_flag=False,
    flag_value=LOCAL,
    type=Address(),
    metavar="[ADDRESS]",
    help="Distribute the work with Ray: to the cluster at HOST:PORT, to the cluster that this machine is in (auto), or to "
    "processes on this machine. A worker takes -j cores, and a GPU if Ray has any.  [default of -j: up to 4; 1 for bench]",
)
inputs = together(
    click.option("-r", "--recursive", is_flag=True, help="Descend into subfolders."),
    click.option(
        "--files-from",
        type=Name(),
        metavar="FILE",
        help="Read more input names from a file, one per line or as `find -print0` writes them; '-' is standard input.",
    ),
)
outputs = together(
    output,
    click.option(
        "--output-dir",
        type=Name(),
        metavar="DIR",
        help="Write into this folder. Files keep their names, and folders their structure.",
    ),
    force,
    skip_existing,
    click.option("--preserve", is_flag=True, help="Give outputs the modification times and permissions of their inputs."),
    click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, without doing it."),
)
