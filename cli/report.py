"""Reports of a command: one line per file on standard error, or one JSON object per file on standard output."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import click

from cli.outputs import CLOSED, printable, silence, write_standard
from codec.errors import FileError, TesseraError

FIELDS = (
    "input", "output", "status", "width", "height", "bytes", "bpp", "tokens", "quality", "model", "seconds", "error",
)  # fmt: skip


ADVICE = {  # the next step, by the names in an error's `advice`
    "accept_licence": "read it, and accept it with --accept-licence",
    "allow_damaged": "use --allow-damaged to accept it",
    "allow_partial": "use --allow-partial to accept an incomplete file",
    "available": "see `tessera models list --available`",
    "background": "flatten it with --background white",
    "decode": "did you mean `tessera decode`?",
    "device": "use --device cpu",
    "encode": "did you mean `tessera encode`?",
    "family": "name it with --family, or give another --state",
    "force": "use -f to replace it",
    "keep_exif": "leave out --keep-exif",
    "max_pixels": "raise --max-pixels to allow it",
    "model": "name a model file with --model",
    "processes": "leave out --processes",
    "reference": "use --reference to name it",
    "runtime": "leave out --runtime",
    "shape": "leave out --size and --block-tokens, or give another --state",
    "strip": "leave it out with --strip",
    "threads": "lower -j",
    "vgg": "name a file with --vgg",
}


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, raised in the main thread by the signal's handler. Its code is the exit code."""


class Failed(SystemExit):
    """A file failed, and its error has been printed."""


@dataclass(frozen=True)
class ReportOptions:
    """Verbosity and format of reports."""

    as_json: str | None = None  # 'lines' or 'array'
    quiet: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.as_json and sys.stdout is None:
            raise FileError(CLOSED)


class Records:
    """JSON objects on standard output, as the elements of one array."""

    def __init__(self) -> None:
        self._before = "[\n"

    def add(self, text: str) -> None:
        _write(self._before + text)
        self._before = ",\n"

    def end(self) -> None:
        if self._before:
            _write("[]\n" if self._before == "[\n" else "\n]\n")
        self._before = ""


RECORDS = f"{__name__}.records"  # key in click's context


def begin_array(context: click.Context) -> None:
    """Puts all records into one array, which ends with the command."""
    context.meta[RECORDS] = Records()
    context.call_on_close(end_records)


def end_records() -> None:
    """Ends the array, if there is one."""
    if records := _records():
        records.end()


def _records() -> Records | None:
    context = click.get_current_context(silent=True)
    return context.meta.get(RECORDS) if context else None


@dataclass
class Report:
    """The report on one file; commands fill in `values` and `line`."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    line: str = ""
    status: str = "done"


@contextmanager
def reporting(source: str, output: str | None, report_options: ReportOptions, keys: tuple[str, ...] = ()) -> Iterator[Report]:
    """Reports on the file that the block works on. An error that the user can act on becomes one line and exit code 1, or 2 if
    the request itself is wrong. `keys` are additional keys of its JSON record."""
    report = Report(source)
    start = time.perf_counter()
    error: Exception | None = None
    try:
        yield report
    except (TesseraError, MemoryError) as caught:
        error = caught
    if report_options.as_json:
        status = "failed" if error else report.status
        put_record(record(source, output, status, report.values, time.perf_counter() - start, error, keys))
    elif report.line and not error and not report_options.quiet:
        say(f"{report.line}  {time.perf_counter() - start:.2f} s")
    if error:
        fail(source, error, report_options.verbose)


def record(
    source: str,
    output: str | None,
    status: str,
    values: dict[str, Any],
    seconds: float | None,
    error: Exception | None,
    keys: tuple[str, ...] = (),
) -> str:
    """One file's JSON object: FIELDS, then `keys`, then any others. Unknown values are null."""
    given = {"input": source, "output": output, "status": status} | values
    given |= {"seconds": None if seconds is None else round(seconds, 3), "error": message_of(error, source)}
    return json.dumps({key: given.get(key) for key in dict.fromkeys((*FIELDS, *keys, *given))})


def say(text: str) -> None:
    """Prints one line on standard error, unless that is closed."""
    try:
        click.echo(printable(text), err=True)
    except OSError:
        silence(sys.stderr)


def put_record(text: str) -> None:
    """Writes a JSON object to standard output, on its own line or into the array. Raises FileError."""
    if records := _records():
        records.add(text)
    else:
        put(text)


def put(text: str) -> None:
    """Writes a line to standard output. Raises FileError if it cannot be written."""
    _write(f"{text}\n")


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    write_standard(text.encode(encoding, "backslashreplace"))


def show_traceback(error: BaseException, say: Callable[[str], None]) -> None:
    for line in "".join(traceback.format_exception(error)).splitlines():
        say(line)


def fail(source: str, error: BaseException, verbose: bool) -> NoReturn:
    """Prints an error on standard error. Raises Failed."""
    if verbose:
        show_traceback(error, say)
    say(f"Error: {name_of(source)}: {message_of(error, source)}")
    raise Failed(exit_code(error))


def exit_code(error: BaseException) -> int:
    """1 if a file failed, 2 if the request itself is wrong."""
    return 2 if isinstance(error, TesseraError) and error.usage else 1


def lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))


def name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def out_name(path: str) -> str:
    return "standard output" if path == "-" else path


def message_of(error: BaseException | None, source: str = "") -> str | None:
    """An error on one line: its cause, and the next step. A leading name of `source` is removed."""
    if error is None:
        return None
    if lacks_memory(error):
        return "not enough memory: try a smaller image, or a smaller --batch"
    if isinstance(error, TesseraError):
        advice = " and ".join(ADVICE[key] for key in error.advice if key in ADVICE)
        return ": ".join(filter(None, [str(error).removeprefix(f"{source}: "), advice]))
    return f"{type(error).__name__}: {error} (a bug in tessera: please report it, with the output of -v)"
