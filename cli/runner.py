"""Runs the plan of `encode` or `decode`: shows progress, reports on each file, sums up, and stops at once when interrupted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from cli.inputs import input_of
from cli.outputs import MISSING, STANDARD, human, write_output
from cli.plan import FileTypes, Job, Plan
from cli.progress import Bar
from cli.report import (
    Interrupted,
    ReportOptions,
    end_records,
    exit_code,
    message_of,
    name_of,
    out_name,
    put_record,
    record,
    say,
    show_traceback,
)
from codec.errors import FileError, TesseraError
from codec.options import CodecOptions
from codec.system.files import ExistsError, Writer, remove_stale_temporaries

if TYPE_CHECKING:
    from codec.codec import Codec
    from codec.parallel.pipeline import Outcome, Resources
    from codec.system.context import ProgressListener


@dataclass(frozen=True)
class Summary:
    """The report on a file that was converted."""

    line: str
    values: dict[str, Any]
    bytes_in: int
    bytes_out: int
    pixels: int
    notes: tuple[str, ...] = ()
    warning: str | None = None  # message about a target that was not reached
    strict: bool = False  # whether a warning counts as a failure


class Command(FileTypes, Protocol):
    """The differences between `encode` and `decode`."""

    verb: ClassVar[str]  # verb in the last line: encoded, decoded
    keys: ClassVar[tuple[str, ...]]  # JSON keys in addition to `cli.report.FIELDS`
    fatal: ClassVar[tuple[type[Exception], ...]]  # errors that every other file would raise too

    @property
    def codec_options(self) -> CodecOptions: ...

    @property
    def passes(self) -> float:
        """Cost of one image, in network passes."""

    def prepare(self) -> None:
        """Checks the options that need NumPy. Raises UsageError."""

    def convert(self, codec: Codec, image: Any) -> Any:
        """Converts one image; the result has the bytes of the output in `data`."""

    def convert_all(
        self, codec: Codec, images: Sequence[Any], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[Any]]:
        """Converts many images."""

    def summarise(self, result: Any, bytes_in: int) -> Summary: ...


@dataclass(frozen=True)
class Converted:
    """The outcome of a job. At most one of `summary` and `error` is set."""

    job: Job
    summary: Summary | None = None  # None if there is an error, or if a complete output was kept
    error: Exception | None = None
    seconds: float = 0.0  # working time
    reported: float = 0.0  # share of the image that was reported as progress


def convert(
    command: Command,
    jobs: Sequence[Job],
    open_codec: Callable[[], Codec],
    writer: Writer,
    threads: int,
    batch: int | None = None,
    memory_share: float = 1.0,
    progress: ProgressListener | None = None,
) -> Generator[Converted, None, None]:
    """Converts the inputs of jobs and writes their outputs; yields the outcome of each. Complete outputs are kept."""
    pending = [job for job in jobs if not job.exists]
    if existing := [job for job in jobs if job.exists]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            complete = pool.map(command.is_complete, [job.output for job in existing])
            for job, kept in zip(existing, complete, strict=True):
                if kept:
                    yield Converted(job)
                else:
                    pending.append(job)
    if not pending:
        return
    try:
        codec = open_codec()
    except TesseraError as error:
        yield from (Converted(job, error=error) for job in pending)
        return
    if len(pending) == 1:
        yield _convert_one(command, pending[0], codec, writer, threads, progress)
        return
    from codec.parallel.pipeline import Resources, pixels_at_once

    resources = Resources(threads, batch, pixels_at_once(memory_share))
    inputs = [input_of(job.source) for job in pending]
    for outcome in command.convert_all(codec, inputs, resources, progress):
        job, summary, problem = pending[outcome.index], None, outcome.error
        if problem is None:
            try:
                summary = _write(command, job, outcome.result, writer)
            except Exception as error:  # such as an input that was deleted meanwhile
                problem = error
        yield Converted(job, summary, problem, outcome.seconds, outcome.reported)


def _convert_one(
    command: Command, job: Job, codec: Codec, writer: Writer, threads: int, progress: ProgressListener | None
) -> Converted:
    """Converts a single image, in this thread."""
    from codec.system.context import ImageProgress, network_context

    start, image_progress = time.perf_counter(), ImageProgress(command.passes, progress)
    summary: Summary | None = None
    problem: Exception | None = None
    try:
        with network_context(threads, image_progress):
            source = input_of(job.source)
            result = command.convert(codec, source)
        summary = _write(command, job, result, writer, getattr(source, "bytes_read", None))
    except Exception as error:
        problem = error
    return Converted(job, summary, problem, time.perf_counter() - start, image_progress.reported)


def _write(command: Command, job: Job, result: Any, writer: Writer, bytes_in: int | None = None) -> Summary | None:
    """Writes an output. Returns None if another run has written it in the meantime and it is to be skipped."""
    original = None if job.source == STANDARD else Path(job.source).stat()
    write = partial(write_output, job.output, result.data, writer=writer, original=original if job.preserve else None)
    try:
        write(job.replace)
    except ExistsError:
        if not job.skip or not os.path.exists(job.output):
            raise
        if command.is_complete(job.output):
            return None
        write(True)
    return command.summarise(result, original.st_size if original else bytes_in or 0)


@dataclass
class Totals:
    """Totals of a run."""

    converted: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    pixels: int = 0
    start: float = field(default_factory=time.perf_counter)

    def speed(self) -> str:
        """The note beside the progress bar."""
        seconds = time.perf_counter() - self.start
        sizes = f"{human(self.bytes_in)} -> {human(self.bytes_out)}"
        return f"{self.converted / seconds:.1f}/s  {self.pixels / 1e6 / seconds:.2f} MP/s  {sizes}"

    def line(self, verb: str) -> str:
        """The last line of a run."""
        seconds = time.perf_counter() - self.start
        counts = f"{self.converted} {verb}, {self.skipped} skipped, {self.failed} failed"
        sizes = f"{human(self.bytes_in)} -> {human(self.bytes_out)}"
        return f"{counts}  {sizes}  {self.pixels / 1e6 / seconds:.2f} MP/s  {seconds:.2f} s"


class Run:
    """One run of a plan."""

    def __init__(self, command: Command, plan: Plan, report: ReportOptions, values: dict[str, Any]) -> None:
        """`values` has the options `jobs`, `batch` and `ray`."""
        self._command = command
        self._plan = plan
        self._report = report
        self._values = values
        self._totals = Totals()
        self._writer = Writer()
        garbled = report.as_json is not None and sys.stdout is not None and sys.stdout.isatty()
        self._bar = Bar(len(plan.jobs), hidden=report.quiet or garbled)
        self._exit_code = 0

    def execute(self, dry_run: bool = False) -> int:
        """Converts all files, or only prints the plan. Returns the exit code."""
        jobs = [job for job in self._plan.jobs if not job.error]
        # NumPy is not imported yet. Its threads only slow down a pipeline, which uses all cores itself.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(self._values["jobs"] if len(jobs) == 1 else 1))
        self._command.prepare()
        try:
            with self._bar:
                for job in self._plan.jobs:
                    if job.error:
                        self._failed(job, job.error)
                if dry_run:
                    self._print_plan(jobs)
                else:
                    self._convert(jobs)
        except Interrupted as interrupt:
            self._stop_at_once(interrupt)
        if not (self._plan.single or self._report.quiet or dry_run):
            say(self._totals.line(self._command.verb))
        return self._exit_code

    def _convert(self, jobs: list[Job]) -> None:
        remove_stale_temporaries(self._plan.folders)
        if self._values["ray"]:
            from cli.ray_runner import convert_with_ray

            conversions = convert_with_ray(self._command, jobs, self._values["ray"])
        else:
            threads, batch, progress = self._values["jobs"], self._values["batch"], self._bar.advance
            codec = partial(open_codec, self._command)
            conversions = convert(self._command, jobs, codec, self._writer, threads, batch, progress=progress)
        with closing(conversions):
            for converted in conversions:
                self._bar.advance(-converted.reported)  # the complete image is counted below
                if converted.error:
                    self._failed(converted.job, converted.error, converted.seconds)
                    if exit_code(converted.error) == 2 or isinstance(converted.error, self._command.fatal):
                        break
                elif converted.summary:
                    self._done(converted.job, converted.summary, converted.seconds)
                else:
                    self._skipped(converted.job)

    def _print_plan(self, jobs: list[Job]) -> None:
        for job in jobs:
            if job.source != STANDARD and not os.path.exists(job.source):
                self._failed(job, FileError(MISSING))
            elif job.exists and self._command.is_complete(job.output):
                self._skipped(job)
            else:
                self._put(job, "planned", f"{name_of(job.source)} -> {out_name(job.output)}  not done: --dry-run")

    def _done(self, job: Job, summary: Summary, seconds: float) -> None:
        totals = self._totals
        totals.converted += 1
        totals.bytes_in += summary.bytes_in
        totals.bytes_out += summary.bytes_out
        totals.pixels += summary.pixels
        line = f"{name_of(job.source)} -> {out_name(job.output)}  {summary.line}  {seconds:.2f} s"
        self._put(job, "done", line, summary.values, seconds)
        for note in summary.notes:
            self._say(f"Note: {name_of(job.source)}: {note}")
        if summary.warning:
            self._exit_code = max(self._exit_code, int(summary.strict))
            kind = "Error" if summary.strict else "Warning"
            self._say(f"{kind}: {name_of(job.source)}: {summary.warning}", even_if_quiet=True)

    def _skipped(self, job: Job) -> None:
        self._totals.skipped += 1
        self._put(job, "skipped", f"{name_of(job.source)} -> {out_name(job.output)}  skipped: it exists and is complete")

    def _failed(self, job: Job, error: Exception, seconds: float | None = None) -> None:
        self._totals.failed += 1
        self._exit_code = max(self._exit_code, exit_code(error))
        self._put(job, "failed", None, {}, seconds, error)
        if self._report.verbose:
            show_traceback(error, partial(self._say, even_if_quiet=True))
        self._say(f"Error: {name_of(job.source)}: {message_of(error, job.source)}", even_if_quiet=True)

    def _put(
        self,
        job: Job,
        status: str,
        line: str | None,
        values: dict[str, Any] | None = None,
        seconds: float | None = None,
        error: Exception | None = None,
    ) -> None:
        """A record or a line on one file, and a step of the bar."""
        if self._report.as_json:
            put_record(record(job.source, job.output or None, status, values or {}, seconds, error, self._command.keys))
        elif line:
            self._say(line)
        self._bar.advance(1, self._totals.speed())

    def _say(self, line: str, even_if_quiet: bool = False) -> None:
        if even_if_quiet or not self._report.quiet:
            self._bar.say(line)

    def _stop_at_once(self, interrupt: Interrupted) -> None:
        """Leaves no half-written files, and does not wait for threads."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._writer.abort()
        end_records()
        if not (self._plan.single or self._report.quiet):
            say(f"Interrupted: {self._totals.line(self._command.verb)}; continue with --skip-existing")
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(int(str(interrupt.code)))


def open_codec(command: Command) -> Codec:
    """The codec of a command."""
    from codec.codec import Codec

    return Codec(**command.codec_options)
