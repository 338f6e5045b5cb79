"""`tessera info` and `tessera tokens`: what files hold, without decoding images."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.encode import ENDING, is_whole
from cli.inputs import read_npz, read_tsr
from cli.outputs import STANDARD, check_output, human, is_folder, printable, write_output
from cli.plan import renamed
from cli.report import Failed, Report, ReportOptions, name_of, out_name, put, reporting
from codec.errors import FileError, ModelError, TruncatedError

if TYPE_CHECKING:
    from bitstream.container import File


KEYS = (
    "format", "stream_id", "whole", "length", "header_bytes", "section_bytes", "payload_bytes", "sections",
)  # fmt: skip


@click.command()
@click.argument("sources", metavar="FILE...", nargs=-1, required=True, type=options.Name())
@options.allow_partial
@options.max_pixels
@options.reporting
def info(sources: tuple[str, ...], allow_partial: bool, max_pixels: int, **given: Any) -> None:
    """Show what .tsr files hold, without decoding them.

    No more of a file is read than its header allows it to have.

    \b
    tessera info photo.tsr
    tessera info *.tsr --json
    """
    report_options = options.gather(ReportOptions, given)
    code = 0
    for source in sources:
        try:
            with reporting(source, None, report_options, KEYS) as report:
                show = not (report_options.as_json or report_options.quiet)
                _inspect(report, read_tsr(source, max_pixels), allow_partial, show=show)
        except Failed:
            code = 1
    raise SystemExit(code)


def _inspect(report: Report, data: bytes, allow_partial: bool, show: bool) -> None:
    from bitstream.container import VERSION, read_file

    file = read_file(data)
    bpp = 8 * len(data) / (file.width * file.height)
    report.values = {
        "width": file.width, "height": file.height, "bytes": len(data), "bpp": round(bpp, 5), **_of_model(file),
        "format": VERSION, "stream_id": file.stream_id.hex(), "whole": file.whole, "length": file.length,
        "header_bytes": file.header_bytes, "section_bytes": file.section_bytes, "payload_bytes": len(file.payload),
        "sections": [{"type": kind, "name": _section(kind), "bytes": len(content)} for kind, content in file.sections],
    }  # fmt: skip
    if show:
        listed = "".join(f", {part['name']} {human(part['bytes'])}" for part in report.values["sections"])
        put(
            f"{printable(name_of(report.source))}: {file.width}x{file.height}, {file.length} tokens, {human(len(data))} "
            f"({bpp:.4f} bpp: header {file.header_bytes} B, tokens {human(len(file.payload))}{listed}), format {VERSION}, "
            f"stream id {file.stream_id.hex()}, {'whole' if file.whole else 'cut or damaged'}"
        )
    if not (file.whole or allow_partial):
        msg = "the checksum is wrong: the file is cut or damaged"
        raise TruncatedError(msg, ("allow_partial",))


def _section(kind: int) -> str:
    from bitstream.container import SECTION_NAMES

    return SECTION_NAMES.get(kind, f"unknown {kind}")


def _of_model(file: File) -> dict[str, Any]:
    """What only the model that wrote a file knows about it; empty if that model is not installed."""
    from codec.models.registry import model_for
    from codec.rate_control import quality_of_block_tokens

    try:
        model = model_for(file.stream_id)
    except ModelError:
        return {}
    tokens = model.code.layout(file.width, file.height).block_tokens_of(file.length)
    return {"tokens": round(tokens, 2), "quality": round(quality_of_block_tokens(model.code, tokens), 1), "model": model.name}


@click.command()
@click.argument("source", metavar="FILE", type=options.Name())
@options.output
@click.option("--back", is_flag=True, help="Make a .tsr file of an .npz instead.")
@options.model("the one that wrote the file, or standard with --back")
@options.max_pixels
@options.force
@options.skip_existing
@options.reporting
def tokens(source: str, output: str | None, back: bool, model: str | None, max_pixels: int, **given: Any) -> None:
    """Write the tokens of a .tsr file as arrays, or make a .tsr file of such arrays. No image is decoded.

    The .npz holds digits_I (digits, rows, columns) and known_I (rows, columns) for each level I, and size (width, height).

    \b
    tessera tokens photo.tsr -o photo.npz
    tessera tokens photo.npz --back -o photo.tsr
    """
    report_options = options.gather(ReportOptions, given)
    force, skip_existing = given["force"], given["skip_existing"]
    options.refuse_two({"force": force, "skip_existing": skip_existing})
    ending = ENDING if back else ".npz"
    if output and is_folder(output) and source != STANDARD:
        output = os.path.join(output, renamed(os.path.basename(source), ending))
    output = output or (STANDARD if source == STANDARD else renamed(source, ending))
    with reporting(source, output, report_options, ("length",)) as report:
        if output == STANDARD and report_options.as_json:
            msg = "--json and -o - both need standard output: name an output file"
            raise FileError(msg)
        check_output(output, force or skip_existing, source)
        exists = skip_existing and os.path.exists(output)
        if exists and (is_whole(output, max_pixels) if back else _is_archive(output)):
            report.status = "skipped"
            report.line = f"{name_of(source)} -> {out_name(output)}  skipped: it exists and is whole"
            return
        from codec.token_arrays import file_to_npz, npz_to_file

        read = read_npz if back else read_tsr
        made, width, height, length = (npz_to_file if back else file_to_npz)(read(source, max_pixels), model, max_pixels)
        write_output(output, made, force or exists)
        report.values = {"width": width, "height": height, "bytes": len(made), "length": length}
        report.line = f"{name_of(source)} -> {out_name(output)}  {width}x{height}  {length} tokens  {human(len(made))}"


def _is_archive(path: str) -> bool:
    """Whether an .npz is complete."""
    try:
        with zipfile.ZipFile(Path(path)) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
