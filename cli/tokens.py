"""`tessera tokens`: the tokens of a .tsr file as NumPy arrays, and back."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import click

from cli import options
from cli.inputs import ENDING, input_of, is_complete_tsr, read_npz
from cli.outputs import STANDARD, check_output, human, is_folder, write_output
from cli.plan import renamed
from cli.report import ReportOptions, reporting


@click.command()
@click.argument("source", metavar="FILE", type=options.Name())
@options.output
@click.option("--back", is_flag=True, help="Make a .tsr file from an .npz instead.")
@options.model
@options.max_pixels
@options.force
@options.skip_existing
@options.reporting
def tokens(source: str, output: str | None, back: bool, model: str | None, max_pixels: int, **values: Any) -> None:
    """Write the tokens of a .tsr file as arrays, or make a .tsr file from such arrays. No image is decoded.

    The .npz contains size (width, height) and arrays that depend on the model. The standard model has digits_I (digits, rows,
    columns) and known_I (rows, columns) for each level I. TiTok, One-D-Piece and DetailFlow have indices and known (tokens,
    rows, columns). FlexTok has digits (digits, tokens, rows, columns) and known (tokens, rows, columns), and the grid models
    have the same without the axis of tokens.

    \b
    tessera tokens photo.tsr -o photo.npz
    tessera tokens photo.npz --back -o photo.tsr
    """
    report_options = options.gather(ReportOptions, values)
    force, skip_existing = values["force"], values["skip_existing"]
    options.refuse_two({"force": force, "skip_existing": skip_existing})
    ending = ENDING if back else ".npz"
    if output and is_folder(output) and source != STANDARD:
        output = os.path.join(output, renamed(os.path.basename(source), ending))
    output = output or (STANDARD if source == STANDARD else renamed(source, ending))
    with reporting(source, output, report_options, ("length",)) as report:
        check_output(output, force or skip_existing, source, as_json=report_options.as_json)
        exists = skip_existing and os.path.exists(output)
        if exists and (is_complete_tsr(output, max_pixels) if back else _is_complete_npz(output)):
            report.skip()
            return
        from codec.token_arrays import file_to_npz, npz_to_file

        if back:
            data, width, height, length = npz_to_file(read_npz(source, max_pixels), model, max_pixels)
        else:
            data, width, height, length = file_to_npz(input_of(source), model, max_pixels)
        write_output(output, data, force or exists)
        report.values = {"width": width, "height": height, "bytes": len(data), "length": length}
        report.line = f"{report.arrow()}  {width}x{height}  {length} tokens  {human(len(data))}"


def _is_complete_npz(path: str) -> bool:
    try:
        with zipfile.ZipFile(Path(path)) as archive:
            plain = all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist())
            return plain and archive.testzip() is None  # it would unpack others without a limit
    except (OSError, zipfile.BadZipFile):
        return False
