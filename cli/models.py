"""`tessera models`: which models are there, where they lie, and whether they are sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bitstream.errors import ModelError, TesseraError
from cli import options
from cli.files import human, printable
from cli.report import Failed, Saying, fail, put, put_record, reporting

FOLDER = Path(__file__).parent.parent / "codec" / "weights"


def bundled() -> list[Path]:
    """Files of the bundled models."""
    return sorted(FOLDER.glob("*.safetensors"))


@click.group(cls=options.Ordered)
def models() -> None:
    """Say which models there are, and whether a model file is sound.

    \b
    tessera models list
    tessera models check mine.safetensors
    """


@models.command("list")
@options.reporting
def list_models(**given: Any) -> None:
    """List the bundled models: name, stream id, size.

    \b
    tessera models list
    tessera models list --json
    """
    saying = options.gather(Saying, given)
    for path in bundled():
        try:
            told = _described(str(path))
        except TesseraError as error:
            fail(str(path), error, saying.verbose)
        put_record(json.dumps(told)) if saying.as_json else put(
            f"{told['name']}  stream id {told['stream_id']}  {human(told['bytes'])}"
        )


@models.command()
@click.argument("name", metavar="[NAME]", default="standard", type=options.Model())
@options.reporting
def path(name: str, **given: Any) -> None:
    """Print where a model's file lies.

    \b
    tessera models path
    tessera encode photo.jpg --model "$(tessera models path)"
    """
    saying = options.gather(Saying, given)
    try:
        told = _described(name)
    except TesseraError as error:
        fail(name, error, saying.verbose)
    put_record(json.dumps(told)) if saying.as_json else put(printable(told["path"]))


@models.command()
@click.argument("names", metavar="NAME|PATH...", nargs=-1, type=options.Model())
@options.reporting
def check(names: tuple[str, ...], **given: Any) -> None:
    """Verify model files, or all bundled ones: all weights must have the digest that the file states, and those that
    give tokens their meaning the stream id.

    \b
    tessera models check
    tessera models check mine.safetensors
    """
    from codec.models import open_model

    saying = options.gather(Saying, given)
    code = 0
    for name in names or [path.stem for path in bundled()]:
        try:
            with reporting(name, None, saying) as report:
                told = _described(name)
                report.values = {"model": told["name"], "stream_id": told["stream_id"], "bytes": told["bytes"]}
                with _named_once(told["path"]):
                    open_model(name).check()
                report.line = f"{told['path']}: stream id {told['stream_id']}, sound"
        except Failed:
            code = 1
    raise SystemExit(code)


@models.command()
@click.argument("name", metavar="lpips", type=click.Choice(["lpips"]))
@options.reporting
def fetch(name: str, **given: Any) -> None:
    """Fetch the weights that measuring LPIPS needs: 244 MB from download.pytorch.org and 6 kB from raw.githubusercontent.com,
    of which 10 MB are kept in the user's data folder. --target-lpips and bench find them there.

    \b
    tessera models fetch lpips
    tessera encode photo.jpg --target-lpips 0.3
    """
    from cli.bench import progress
    from codec import fetch as source

    saying = options.gather(Saying, given)
    with reporting(name, None, saying) as report:
        with progress(source.ALEXNET.size + source.LINEAR.size, saying.quiet, "fetching") as step:
            path = source.fetch_lpips(source.ALEXNET, source.LINEAR, step)
        report.values = {"output": str(path), "bytes": path.stat().st_size}
        report.line = f"{path}: weights of LPIPS"


def _described(name: str) -> dict[str, Any]:
    from codec.models import open_model

    with _named_once(name):
        model = open_model(name)
        size = model.path.stat().st_size
    return {"name": model.name, "stream_id": model.stream_id.hex(), "bytes": size, "path": str(model.path)}


@contextmanager
def _named_once(path: str) -> Iterator[None]:
    """Takes a model file's path off the front of its errors: these commands name the file themselves."""
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).removeprefix(f"{path}: ")) from error
