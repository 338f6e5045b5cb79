"""`tessera models`: which models are there, where they lie, and whether they are sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bitstream.errors import FileError, ModelError, TesseraError
from cli import options
from cli.files import human, printable
from cli.report import Failed, ReportOptions, fail, put, put_record, reporting

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
    report_options = options.gather(ReportOptions, given)
    for path in bundled():
        try:
            described = _described(str(path))
        except TesseraError as error:
            fail(str(path), error, report_options.verbose)
        put_record(json.dumps(described)) if report_options.as_json else put(
            f"{described['name']}  stream id {described['stream_id']}  {human(described['bytes'])}"
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
    report_options = options.gather(ReportOptions, given)
    try:
        described = _described(name)
    except TesseraError as error:
        fail(name, error, report_options.verbose)
    put_record(json.dumps(described)) if report_options.as_json else put(printable(described["path"]))


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

    report_options = options.gather(ReportOptions, given)
    code = 0
    for name in names or [path.stem for path in bundled()]:
        try:
            with reporting(name, None, report_options) as report:
                described = _described(name)
                report.values = {"model": described["name"], "stream_id": described["stream_id"], "bytes": described["bytes"]}
                with _named_once(described["path"]):
                    open_model(name).check()
                report.line = f"{described['path']}: stream id {described['stream_id']}, sound"
        except Failed:
            code = 1
    raise SystemExit(code)


@models.command()
@click.argument("name", metavar="[MODEL]", default="standard", type=options.Model())
@click.option("-o", "--output", metavar="DIR", required=True, type=options.Name(), help="Folder, new or empty.")
@click.option("--decoder-only", is_flag=True, help="Leave out the graphs that only encoding needs.")
@options.reporting
def export(name: str, output: str, decoder_only: bool, **given: Any) -> None:
    """Write a model as ONNX graphs, for ONNX Runtime and web pages. Weights are fp16, height and width are free, and each
    graph is checked against torch. Needs onnx, onnxruntime and onnxscript, and takes a minute.

    \b
    tessera models export -o graphs/
    tessera models export mine.safetensors -o graphs/ --decoder-only
    """
    from cli.bench import progress
    from codec.models import open_model

    report_options = options.gather(ReportOptions, given)
    with reporting(name, output, report_options) as report:
        from codec.pyramid.export import export as write

        model = open_model(name)
        with progress(3 * len(model.config.levels) + 2, report_options.quiet, "exporting") as step:
            try:
                files = write(model, Path(output), encodes=not decoder_only, step=step)
            except OSError as error:
                msg = f"cannot write {printable(output)}: {error.strerror}"
                raise FileError(msg) from error
        report.values = {"model": model.name, "bytes": sum(path.stat().st_size for path in files)}
        report.line = f"{output}: {len(files)} files, {human(report.values['bytes'])}"


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

    report_options = options.gather(ReportOptions, given)
    with reporting(name, None, report_options) as report:
        with progress(source.ALEXNET.size + source.LINEAR.size, report_options.quiet, "fetching") as step:
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
