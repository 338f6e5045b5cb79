"""`tessera models`: which models there are, whether they are sound, and how to install others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.outputs import human, printable
from cli.progress import Bar
from cli.report import Failed, ReportOptions, fail, put, put_record, reporting
from codec.errors import FileError, ModelError, TesseraError

if TYPE_CHECKING:
    from codec.models.base import Calibrated, Model


def known() -> list[Path]:
    """Files of the bundled and the installed models."""
    from codec.models.registry import model_files

    return model_files()


@click.group(cls=options.Ordered)
def models() -> None:
    """List, check, import and remove models.

    \b
    tessera models list
    tessera models import turing-motors/One-D-Piece-S-256
    """


@models.command("list")
@options.reporting
def list_models(**given: Any) -> None:
    """List the bundled and the installed models: name, stream id, size.

    \b
    tessera models list
    tessera models list --json
    """
    report_options = options.gather(ReportOptions, given)
    for path in known():
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
    """Print the path of a model file.

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
    """Verify model files, or all known models: all weights must match the digest in the file, and those that define the
    tokens must match its stream id.

    \b
    tessera models check
    tessera models check mine.safetensors
    """
    from codec.models.registry import open_model

    report_options = options.gather(ReportOptions, given)
    code = 0
    for name in names or [str(path) for path in known()]:
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


@models.command("import")
@click.argument("source", metavar="PATH|REPOSITORY")
@click.option("--name", metavar="NAME", help="Name to install it under.  [default: its own name, such as one-d-piece-s-256]")
@click.option(
    "--family", type=click.Choice(["one-d-piece", "titok"]), help="How it was trained, if the checkpoint does not say so."
)
@click.option(
    "--calibrate",
    "photos",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    metavar="PHOTOS",
    help="Measure coding tables on photographs, for smaller files: a folder, tar file or image; may be repeated.",
)
@options.device
@options.force
@options.reporting
def import_(
    source: str, name: str | None, family: str | None, photos: tuple[Path, ...], device: str, force: bool, **given: Any
) -> None:
    """Install a published One-D-Piece or TiTok checkpoint: a folder, a file of weights, or a repository on Hugging Face.

    Only tensors are read, and each is checked. Without --calibrate, every token costs 12 bits. The tables are part of the
    model: a file can only be decoded with the tables that it was encoded with. These models code images block by block, so
    seams may show in images larger than 256x256.

    \b
    tessera models import turing-motors/One-D-Piece-S-256 --calibrate photos/
    tessera encode photo.jpg --model one-d-piece-s-256
    """
    from codec.models.registry import import_model

    report_options = options.gather(ReportOptions, given)
    with reporting(source, None, report_options) as report, _named_once(source):
        model, measured = import_model(source, name, family, force, lambda model: _calibrated(model, photos, device))
        size = model.path.stat().st_size
        report.values = {"output": str(model.path), "model": model.name, "stream_id": model.stream_id.hex(), "bytes": size}
        report.line = f"{model.path}: {model.name}, stream id {model.stream_id.hex()}, {human(size)}"
        if measured:
            report.values |= {"bits_per_token": round(measured.bits, 3)}
            report.line += f"; {measured.bits:.2f} bits per token on photos like these, {measured.bits_before:.2f} before"


def _calibrated(model: Model, photos: tuple[Path, ...], device: str) -> Calibrated | None:
    if not photos:
        return None
    from codec.system.device import pick_device
    from codec.training.photos import find_photos, read_square

    squares = (read_square(blob) for _, blob in find_photos(photos))
    return model.calibrated((square for square in squares if square is not None), pick_device(device))


@models.command()
@click.argument("name", type=options.Model())
@options.reporting
def remove(name: str, **given: Any) -> None:
    """Remove a model that was imported. Files that were encoded with it can then no longer be decoded.

    \b
    tessera models list
    tessera models remove one-d-piece-s-256
    """
    from codec.models.registry import remove_model

    with reporting(name, None, options.gather(ReportOptions, given)) as report:
        report.line = f"{remove_model(name)}: removed"


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
    from codec.models.registry import open_model
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, given)
    with reporting(name, output, report_options) as report:
        require_torch("exporting a model")
        from codec.pyramid.runtime.onnx_export import export as write
        from codec.pyramid.runtime.onnx_export import exported

        model = exported(open_model(name))
        with Bar(3 * (len(model.config.levels) + 1), "exporting", hidden=report_options.quiet) as bar:
            try:
                files = write(model, Path(output), encodes=not decoder_only, step=bar.advance)
            except OSError as error:
                msg = f"cannot write {printable(output)}: {error.strerror}"
                raise FileError(msg) from error
        report.values = {"model": model.name, "bytes": sum(path.stat().st_size for path in files)}
        report.line = f"{output}: {len(files)} files, {human(report.values['bytes'])}"


@models.command()
@click.argument("name", metavar="[MODEL]", default="standard", type=options.Model())
@options.reporting
def graphs(name: str, **given: Any) -> None:
    """Write the graphs that ONNX Runtime codes with beside a model file: the network without its weights. Needs torch, onnx and
    onnxscript, and takes a minute.

    \b
    tessera train photos/ -o mine.safetensors
    tessera models graphs mine.safetensors
    """
    from codec.models.registry import open_model
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, given)
    with reporting(name, None, report_options) as report:
        require_torch("making graphs")
        from codec.pyramid.runtime.onnx_export import exported
        from codec.pyramid.runtime.template_writer import write_graph_templates

        model = exported(open_model(name))
        with Bar(3 * (len(model.config.levels) + 1), "tracing", hidden=report_options.quiet) as bar:
            path = write_graph_templates(model, bar.advance)
        report.values = {"output": str(path), "model": model.name, "bytes": path.stat().st_size}
        report.line = f"{path}: {human(report.values['bytes'])}"


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
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, given)
    with reporting(name, None, report_options) as report:
        require_torch("LPIPS")
        from codec.metrics import download as source

        with Bar(source.ALEXNET.size + source.LINEAR.size, "fetching", hidden=report_options.quiet) as bar:
            path = source.fetch_lpips(source.ALEXNET, source.LINEAR, bar.advance)
        report.values = {"output": str(path), "bytes": path.stat().st_size}
        report.line = f"{path}: weights of LPIPS"


def _described(name: str) -> dict[str, Any]:
    from codec.models.registry import open_model

    with _named_once(name):
        model = open_model(name)
        size = model.path.stat().st_size
    return {"name": model.name, "stream_id": model.stream_id.hex(), "bytes": size, "path": str(model.path)}


@contextmanager
def _named_once(path: str) -> Iterator[None]:
    """Removes a model file's path from the front of its errors: these commands name the file themselves."""
    try:
        yield
    except ModelError as error:
        raise ModelError(str(error).removeprefix(f"{path}: "), error.advice) from error
