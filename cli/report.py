"""Reports of a command: one line per file on standard error, or one JSON object per file on standard output."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from cli.outputs import CLOSED, STANDARD, printable, silence, write_standard
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


@dataclass
class ReportOptions:
    """Verbosity and format of reports."""

    as_json: str | None = None  # 'lines' or 'array'
    quiet: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.as_json and sys.stdout is None:
            raise FileError(CLOSED)
        self._before = "[\n" if self.as_json == "array" else ""  # what precedes the next record
        if self._before:
            click.get_current_context().call_on_close(self.end_records)

    def put_record(self, values: dict[str, Any]) -> None:
        """Writes a JSON object to standard output, on its own line or into the array. Raises FileError."""
        if self._before:
            _write(self._before + json.dumps(values))
            self._before = ",\n"
        else:
            put(json.dumps(values))

    def end_records(self) -> None:
        """Ends the array, if there is one."""
        if self._before:
            _write("[]\n" if self._before == "[\n" else "\n]\n")
        self._before = ""


@dataclass
class Report:
    """The report on one file. Commands fill in `values` and `line`."""

    source: str
    output: str | None = None
    status: str = "done"  # or skipped, planned, failed
    line: str = ""  # text for the user; not printed if there is an error
    values: dict[str, Any] = field(default_factory=dict)  # for JSON
    notes: tuple[str, ...] = ()
    warning: str | None = None  # message about a target that was not reached
    strict: bool = False  # whether a warning counts as a failure
    error: Exception | None = None
    seconds: float | None = None  # working time

    def arrow(self) -> str:
        """The names of the input and the output, with which a line begins."""
        return f"{name_of(self.source)} -> {'standard output' if self.output == STANDARD else self.output}"

    def skip(self) -> None:
        self.status = "skipped"
        self.line = f"{self.arrow()}  skipped: it exists and is complete"


def say(text: str) -> None:
    """Prints one line on standard error, unless that is closed."""
    try:
        click.echo(printable(text), err=True)
    except OSError:
        silence(sys.stderr)


def show(report: Report, options: ReportOptions, keys: tuple[str, ...] = (), say: Callable[[str], None] = say) -> int:
    """Prints a report and returns the exit code of its file. `keys` are additional keys of its JSON record; `say` prints a line
    on standard error."""
    name, error = name_of(report.source), report.error
    if options.as_json:
        options.put_record(record(report, keys))
    elif report.line and not (error or options.quiet):
        say(f"{report.line}  {report.seconds:.2f} s" if report.status == "done" else report.line)
    for note in () if options.quiet else report.notes:
        say(f"Note: {name}: {note}")
    if report.warning:
        say(f"{'Error' if report.strict else 'Warning'}: {name}: {report.warning}")
    if error is None:
        return int(report.strict and report.warning is not None)
    if options.verbose:
        for text in "".join(traceback.format_exception(error)).splitlines():
            say(text)
    say(f"Error: {name}: {message_of(error, report.source)}")
    return exit_code(error)


@contextmanager
def reporting(source: str, output: str | None, options: ReportOptions, keys: tuple[str, ...] = ()) -> Iterator[Report]:
    """Reports on the file that the block works on. An error that the user can act on becomes one line and exit code 1, or 2 if
    the request itself is wrong. `keys` are additional keys of its JSON record."""
    report, start = Report(source, output), time.perf_counter()
    try:
        yield report
    except (TesseraError, MemoryError) as error:
        report.error = error
    report.seconds = time.perf_counter() - start
    if code := show(report, options, keys):
        raise Failed(code)


def record(report: Report, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object of a file: FIELDS, then `keys`, then any others. Unknown values are null."""
    seconds = None if report.seconds is None else round(report.seconds, 3)
    status = "failed" if report.error else report.status
    given = {"input": report.source, "output": report.output or None, "status": status} | report.values
    given |= {"seconds": seconds, "error": message_of(report.error, report.source)}
    return {key: given.get(key) for key in dict.fromkeys((*FIELDS, *keys, *given))}


def put(text: str) -> None:
    """Writes a line to standard output. Raises FileError if it cannot be written."""
    _write(f"{text}\n")


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    write_standard(text.encode(encoding, "backslashreplace"))


def exit_code(error: BaseException) -> int:
    """1 if a file failed, 2 if the request itself is wrong."""
    return 2 if isinstance(error, TesseraError) and error.usage else 1


def lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))


def name_of(path: str) -> str:
    return "standard input" if path == STANDARD else path


def message_of(error: BaseException | None, source: str = "") -> str | None:
    """An error on one line: its cause, and the next step. It begins with the name of its file, unless that is `source`."""
    if error is None:
        return None
    if lacks_memory(error):
        return "not enough memory: try a smaller image, or a smaller --batch"
    if isinstance(error, TesseraError):
        advice = " and ".join(ADVICE[key] for key in error.advice if key in ADVICE)
        return ": ".join(filter(None, [_other_file(error.file, source), error.message, advice]))
    return f"{type(error).__name__}: {error} (a bug in tessera: please report it, with the output of -v)"


def _other_file(file: str | None, source: str) -> str | None:
    """The name of an error's file in a message about `source`: None if it is the same, or the model called `source`."""
    if file is None or Path(file) == Path(source):
        return None
    if Path(file).is_relative_to(source):  # a file in a folder
        return str(Path(file).relative_to(source)) if source else file
    return None if Path(file).stem == source and not os.path.exists(source) else file
