"""What a command says: one line a file on standard error, or one JSON object a file on standard output."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import click

from bitstream.errors import TesseraError

FIELDS = (
    "input", "output", "status", "width", "height", "bytes", "bpp", "tokens", "quality", "model", "seconds", "error",
)  # fmt: skip


@dataclass
class Report:
    """One file's outcome; commands fill in `values` and `line`."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    line: str = ""


@contextmanager
def reporting(source: str, output: str | None, as_json: bool, quiet: bool, verbose: bool) -> Iterator[Report]:
    """Runs one file's work; says how it went. An error that the user can act on ends with one line and exit code 1, or 2
    where the command line itself asked for what is not there."""
    report = Report(source)
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        yield report
    except (TesseraError, MemoryError) as caught:
        error = caught
    if as_json:
        given = {"input": source, "output": output, "status": "failed" if error else "done"}
        given |= report.values | {"seconds": round(time.perf_counter() - start, 3), "error": _message(error)}
        extra = {key: value for key, value in given.items() if key not in FIELDS}
        click.echo(json.dumps({key: given.get(key) for key in FIELDS} | extra))
    elif report.line and not error and not quiet:
        click.echo(f"{report.line}  {time.perf_counter() - start:.2f} s", err=True)
    if error:
        fail(source, error, verbose)


def fail(source: str, error: BaseException, verbose: bool) -> None:
    """One line on standard error, and the end."""
    if verbose:
        traceback.print_exception(error)
    click.echo(f"Error: {name_of(source)}: {_message(error)}", err=True)
    sys.exit(2 if isinstance(error, TesseraError) and error.usage else 1)


def name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def _message(error: BaseException | None) -> str | None:
    if isinstance(error, MemoryError):
        return "not enough memory: try a smaller picture"
    return str(error) if error else None
