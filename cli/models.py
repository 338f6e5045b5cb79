"""`tessera models`: lists, checks, imports, exports and removes models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.outputs import human, printable
from cli.progress import Bar
from cli.report import Failed, ReportOptions, message_of, put, reporting
from codec.errors import FileError, TesseraError
from codec.options import DecodeOptions

if TYPE_CHECKING:
    from codec.models.base import Model

TRIAL_SIZE = (48, 32)  # pixels


@click.group(cls=options.Ordered)
def models() -> None:
    """List, check, import and remove models.

    \b
    tessera models list
    tessera models import one-d-piece-s-256
    """


@models.command("list")
@click.option("--available", is_flag=True, help="List the published checkpoints that `models import` knows by name.")
@options.reporting
def list_models(available: bool, **values: Any) -> None:
    """List the bundled and the installed models: name, stream id, size, or the reason why a file cannot be used.

    \b
    tessera models list
    tessera models list --available
    """
    from codec.models.registry import model_files

    report_options = options.gather(ReportOptions, values)
    if available:
        _list_available(report_options)
        return
    for path in model_files():
        try:
            record = _describe(str(path)) | {"error": None}
            line = f"{record['name']}  stream id {record['stream_id']}  {human(record['bytes'])}"
        except TesseraError as error:
            reason = message_of(error, str(path))
            record = {"name": path.stem, "stream_id": None, "bytes": None, "path": str(path), "error": reason}
            line = f"{path.stem}  damaged: {reason}"
        if report_options.as_json:
            report_options.put_record(record)
        else:
            put(printable(line))


def _list_available(report_options: ReportOptions) -> None:
    """Prints the catalogue as JSON, or as a table. Times are estimates."""
    from dataclasses import asdict

    from codec.models.catalogue import CATALOGUE, GFLOPS
    from codec.models.registry import model_files

    installed = {path.stem for path in model_files()}
    if report_options.as_json:
        for entry in CATALOGUE.values():
            record = asdict(entry) | {
                "download": entry.download and round(entry.download * 1e9),
                "parameters": round(entry.parameters * 1e6),
                "encode_seconds": round(entry.encode_seconds, 1),
                "decode_seconds": round(entry.decode_seconds, 1),
                "gflops": GFLOPS,
                "installed": entry.name in installed,
            }
            report_options.put_record(record)
        return
    rows = [("name", "GB", "M weights", "tokens", "bits", "prefixes", "encode s", "decode s", "licence", "repository")]
    for entry in CATALOGUE.values():
        numbers = (
            f"{entry.download:g}" if entry.download else "?",
            f"{entry.parameters:g}",
            str(entry.tokens),
            str(entry.bits),
        )
        seconds_of = (f"{entry.encode_seconds:.0f}", f"{entry.decode_seconds:.0f}")
        name = entry.name + (" *" if entry.name in installed else "")
        rows.append((name, *numbers, entry.prefixes, *seconds_of, entry.licence, entry.repository))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) if index in (0, 5, 8, 9) else cell.rjust(width)
                 for index, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        put("  ".join(cells).rstrip())
    put(
        f"* installed. Tokens and bits are those of 256x256 pixels. Seconds are an estimate for a megapixel on a processor of "
        f"{GFLOPS} GFLOP/s, which is two to four cores."
    )


@models.command()
@click.argument("name", metavar="[NAME]", default="standard", type=options.Model())
@options.reporting
def path(name: str, **values: Any) -> None:
    """Print the path of a model file.

    \b
    tessera models path
    tessera encode photo.jpg --model "$(tessera models path)"
    """
    report_options = options.gather(ReportOptions, values)
    with reporting(name, None, ReportOptions(verbose=report_options.verbose)):
        description = _describe(name)
        if report_options.as_json:
            report_options.put_record(description)
        else:
            put(printable(description["path"]))


def _describe(name: str) -> dict[str, Any]:
    from codec.models.registry import open_model

    model = open_model(name)
    size = model.path.stat().st_size
    return {"name": model.name, "stream_id": model.stream_id.hex(), "bytes": size, "path": str(model.path)}


@models.command()
@click.argument("names", metavar="NAME|PATH...", nargs=-1, type=options.Model())
@options.reporting
def check(names: tuple[str, ...], **values: Any) -> None:
    """Verify model files, by default all bundled and installed ones. All weights must match the digest in the file, the
    weights that define the tokens must match its stream id, and a small image must encode and decode.

    \b
    tessera models check
    tessera models check mine.safetensors
    """
    from codec.models.registry import model_files, open_model

    report_options = options.gather(ReportOptions, values)
    code = 0
    for name in names or [str(path) for path in model_files()]:
        try:
            with reporting(name, None, report_options) as report:
                description = _describe(name)
                path, stream_id = description["path"], description["stream_id"]
                report.values = {"model": description["name"], "stream_id": stream_id, "bytes": description["bytes"]}
                _try(open_model(name))
                report.line = f"{path}: stream id {stream_id}, verified"
        except Failed:
            code = 1
    raise SystemExit(code)


def _try(model: Model) -> None:
    """Raises TesseraError unless the model's arrays are sound, and a small image encodes and decodes."""
    from PIL import Image

    from codec.codec import Codec
    from codec.system.device import TORCH

    model.check()
    model.check_finite()
    if model.runtimes == (TORCH,) and find_spec(TORCH) is None:
        return  # its arrays can be used elsewhere
    gradient = Image.linear_gradient("L").resize(TRIAL_SIZE)
    image = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.ROTATE_180), Image.new("L", TRIAL_SIZE, 128)))
    with Codec(str(model.path)) as codec:
        fast: DecodeOptions = {"steps": 1} if "steps" in model.decode_options else {}
        codec.decode(codec.encode(image).data, **fast)


@models.command("import")
@click.argument("source", metavar="NAME|REPOSITORY|PATH")
@click.option("--name", metavar="NAME", help="Name to install it under.  [default: its own name, such as one-d-piece-s-256]")
@click.option(
    "--family", type=click.Choice(["one-d-piece", "titok"]), help="Training method, if the checkpoint does not state it."
)
@click.option(
    "--calibrate",
    "photos",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    metavar="PHOTOS",
    help="Measure coding tables on photographs, for smaller files: a folder, tar file or image; may be repeated.",
)
@click.option("--accept-licence", is_flag=True, help="Accept a licence that allows research only, such as FlexTok's.")
@options.sampling
@options.device
@options.force
@options.reporting
def import_(
    source: str,
    name: str | None,
    family: str | None,
    photos: tuple[Path, ...],
    accept_licence: bool,
    device: str,
    force: bool,
    **values: Any,
) -> None:
    """Install a published tokenizer: a name of `models list --available`, a repository on Hugging Face, a folder, or a file of
    weights.

    A download is verified, and continued after an interruption. Only tensors are read, and each is checked. --calibrate
    measures coding tables; without it, all tokens cost the same. The tables are part of the model: a file can only be decoded
    with the tables used to encode it.

    \b
    tessera models import detailflow-32 --calibrate photos/
    tessera encode photo.jpg --model detailflow-32
    """
    from codec.models.installing import import_model

    report_options = options.gather(ReportOptions, values)
    with reporting(source, None, report_options) as report:
        with Bar(0, "importing", hidden=report_options.quiet) as bar:
            model, calibration = import_model(
                source, name, family, force, photos, device, accept_licence, options.select(DecodeOptions, values), bar.reach
            )
        size = model.path.stat().st_size
        report.values = {"output": str(model.path), "model": model.name, "stream_id": model.stream_id.hex(), "bytes": size}
        report.line = f"{model.path}: {model.name}, stream id {model.stream_id.hex()}, {human(size)}"
        if calibration:
            report.values |= {"bits_per_token": round(calibration.bits, 3)}
            report.line += f"; {calibration.bits:.2f} bits per token on these photos, {calibration.bits_before:.2f} before"
        if licence := model.metadata["card"].get("licence"):
            report.values |= {"licence": licence}
            report.line += f"; {licence}"
        if left_out := model.metadata["card"].get("left_out"):
            report.values |= {"left_out": left_out}
            report.line += f"; left out tensors used only in training: {', '.join(left_out)}"


@models.command()
@click.argument("name", type=options.Model())
@options.reporting
def remove(name: str, **values: Any) -> None:
    """Remove an imported model. Files that were encoded with it can then no longer be decoded.

    \b
    tessera models list
    tessera models remove one-d-piece-s-256
    """
    from codec.models.installing import remove_model

    with reporting(name, None, options.gather(ReportOptions, values)) as report:
        report.line = f"{remove_model(name)}: removed"


@models.command()
@click.argument("name", metavar="[MODEL]", default="standard", type=options.Model())
@click.option("-o", "--output", metavar="DIR", required=True, type=options.Name(), help="Folder, new or empty.")
@click.option("--decoder-only", is_flag=True, help="Leave out the graphs that only encoding needs.")
@options.reporting
def export(name: str, output: str, decoder_only: bool, **values: Any) -> None:
    """Write a model as ONNX graphs for ONNX Runtime and web pages.

    Weights are stored in fp16, and inputs may have any height and width. Each graph is checked against torch. Needs onnx,
    onnxruntime and onnxscript, and takes a minute.

    \b
    tessera models export -o graphs/
    tessera models export mine.safetensors -o graphs/ --decoder-only
    """
    from codec.models.registry import open_model
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, values)
    with reporting(name, output, report_options) as report:
        require_torch("exporting a model")
        from codec.pyramid.model import as_pyramid
        from codec.pyramid.runtime.onnx_export import export as write_graphs

        model = as_pyramid(open_model(name))
        with Bar(3 * (len(model.config.levels) + 1), "exporting", hidden=report_options.quiet) as bar:
            try:
                files = write_graphs(model, Path(output), encodes=not decoder_only, step=bar.advance)
            except OSError as error:
                msg = f"cannot write {printable(output)}: {error.strerror}"
                raise FileError(msg) from error
        report.values = {"model": model.name, "bytes": sum(path.stat().st_size for path in files)}
        report.line = f"{output}: {len(files)} files, {human(report.values['bytes'])}"


@models.command()
@click.argument("name", metavar="[MODEL]", default="standard", type=options.Model())
@options.reporting
def graphs(name: str, **values: Any) -> None:
    """Write the network of a model as ONNX graphs, without its weights, next to the model file. ONNX Runtime needs them. Needs
    torch, onnx and onnxscript, and takes a minute.

    \b
    tessera train photos/ -o mine.safetensors
    tessera models graphs mine.safetensors
    """
    from codec.models.registry import open_model
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, values)
    with reporting(name, None, report_options) as report:
        require_torch("making graphs")
        from codec.pyramid.model import as_pyramid
        from codec.pyramid.runtime.onnx_export import write_graph_templates

        model = as_pyramid(open_model(name))
        with Bar(3 * (len(model.config.levels) + 1), "tracing", hidden=report_options.quiet) as bar:
            path = write_graph_templates(model, bar.advance)
        report.values = {"output": str(path), "model": model.name, "bytes": path.stat().st_size}
        report.line = f"{path}: {human(report.values['bytes'])}"


@models.command()
@click.argument("name", metavar="lpips", type=click.Choice(["lpips"]))
@options.reporting
def fetch(name: str, **values: Any) -> None:
    """Download the LPIPS weights: 244 MB from download.pytorch.org and 6 kB from raw.githubusercontent.com. 10 MB are kept in
    the user's data folder, for --target-lpips and bench.

    \b
    tessera models fetch lpips
    tessera encode photo.jpg --target-lpips 0.3
    """
    from codec.system.device import require_torch

    report_options = options.gather(ReportOptions, values)
    with reporting(name, None, report_options) as report:
        require_torch("LPIPS")
        from codec.metrics.download import ALEXNET, LINEAR, download_lpips

        with Bar(ALEXNET.size + LINEAR.size, "fetching", hidden=report_options.quiet) as bar:
            path = download_lpips(bar.advance)
        report.values = {"output": str(path), "bytes": path.stat().st_size}
        report.line = f"{path}: LPIPS weights"
