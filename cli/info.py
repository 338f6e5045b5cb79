"""`tessera info`: the headers of .tsr files, without decoding images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.inputs import read_tsr
from cli.outputs import human, printable
from cli.report import Failed, Report, ReportOptions, name_of, put, reporting
from codec.errors import ModelError, TruncatedError

if TYPE_CHECKING:
    from bitstream.container import File

KEYS = (
    "format", "stream_id", "whole", "length", "header_bytes", "section_bytes", "payload_bytes", "sections", "reference",
)  # fmt: skip


@click.command()
@click.argument("sources", metavar="FILE...", nargs=-1, required=True, type=options.Name())
@options.allow_partial
@options.max_pixels
@options.reporting
def info(sources: tuple[str, ...], allow_partial: bool, max_pixels: int, **values: Any) -> None:
    """Show what .tsr files contain, without decoding them.

    Reads no more of a file than its header allows.

    \b
    tessera info photo.tsr
    tessera info *.tsr --json
    """
    report_options = options.gather(ReportOptions, values)
    code = 0
    for source in sources:
        try:
            with reporting(source, None, report_options, KEYS) as report:
                show = not (report_options.as_json or report_options.quiet)
                _inspect(report, read_tsr(source, max_pixels), allow_partial, show=show)
        except Failed:
            code = 1
    raise SystemExit(code)


def _inspect(report: Report, file: File, allow_partial: bool, show: bool) -> None:
    from bitstream.container import SECTION_NAMES, VERSION

    bpp = 8 * file.file_bytes / (file.width * file.height)
    sections = [
        {"type": kind, "name": SECTION_NAMES.get(kind, f"unknown {kind}"), "bytes": len(content)}
        for kind, content in file.sections
    ]
    report.values = {
        "width": file.width, "height": file.height, "bytes": file.file_bytes, "bpp": round(bpp, 5), **_model_values(file),
        "format": VERSION, "stream_id": file.stream_id.hex(), "whole": file.complete, "length": file.length,
        "header_bytes": file.header_bytes, "section_bytes": file.section_bytes, "payload_bytes": len(file.payload),
        "sections": sections, "reference": _reference_values(file),
    }  # fmt: skip
    if show:
        parts = "".join(f", {section['name']} {human(section['bytes'])}" for section in sections)  # type: ignore[arg-type]
        reference = f"reference {file.reference.name or file.reference.hash.hex()}, " if file.reference else ""
        put(
            f"{printable(name_of(report.source))}: {file.width}x{file.height}, {file.length} tokens, {human(file.file_bytes)} "
            f"({bpp:.4f} bpp: header {file.header_bytes} B, tokens {human(len(file.payload))}{parts}), format {VERSION}, "
            f"stream id {file.stream_id.hex()}, {reference}{'complete' if file.complete else 'cut or damaged'}"
        )
    if not (file.complete or allow_partial):
        msg = "the checksum is wrong: the file is cut or damaged"
        raise TruncatedError(msg, ("allow_partial",))


def _model_values(file: File) -> dict[str, Any]:
    """The values that depend on the file's model; empty if the model is not installed."""
    from codec.models.registry import model_for
    from codec.rate_control import quality_of_block_tokens

    try:
        model = model_for(file.stream_id)
    except ModelError:
        return {}
    tokens = model.code.layout(file.width, file.height).block_tokens_of(file.length)
    quality = None if file.reference else round(quality_of_block_tokens(model.code, tokens), 1)
    return {"tokens": round(tokens, 2), "quality": quality, "model": model.name}


def _reference_values(file: File) -> dict[str, Any] | None:
    reference = file.reference
    if reference is None:
        return None
    squares = reference.uses(file.width, file.height)
    return {
        "name": reference.name or None, "hash": reference.hash.hex(), "pixels": reference.of_pixels,
        "motion": list(reference.motion), "offsets": list(reference.offsets), "squares": int(squares.sum()),
    }  # fmt: skip
