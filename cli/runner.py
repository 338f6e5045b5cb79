"""Runs a plan: shows progress, reports on each file, sums up, and ends at once when interrupted."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from cli.outputs import MISSING, STANDARD, human
from cli.plan import Conversion, Job, Plan
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
from codec.errors import FileError
from codec.system.files import Writer, remove_stale_temporaries

if TYPE_CHECKING:
    from codec.codec import Codec
    from codec.parallel.pipeline import Outcome


class Skipped(Exception):  # noqa: N818 (nothing went wrong)
    """The output exists and is whole."""


@dataclass(frozen=True)
class Summary:
    """What is reported about a file that is done."""

    line: str
    values: dict[str, Any]
    bytes_in: int
    bytes_out: int
    pixels: int
    notes: tuple[str, ...] = ()
    warning: str | None = None  # what was asked for and not reached
    strict: bool = False  # whether a warning counts as a failure


@dataclass(frozen=True)
class Means:
    """What a run has to work with."""

    codec: Callable[[], Codec]
    writer: Writer
    progress: Callable[[float], None]  # told of shares of images, from any thread
    threads: int  # of each kind
    share: float = 1.0  # of the machine's memory, where others work too


@dataclass(frozen=True)
class Work:
    """What a command does with the jobs of a plan."""

    verb: str  # for the last line: encoded, decoded
    conversion: Conversion
    jobs: int  # threads of each kind
    codec: Callable[[], Codec]
    run: Callable[[tuple[Job, ...], Means], Generator[Outcome[Job, Any], None, None]]
    summarise: Callable[[Job, Any], Summary]
    keys: tuple[str, ...]  # of its JSON records, besides those of all commands
    fatal: tuple[type[Exception], ...] = ()  # errors that all other files would end with too


@dataclass
class Tally:
    """Totals of a batch."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    pixels: int = 0
    start: float = field(default_factory=time.perf_counter)

    def add(self, summary: Summary) -> None:
        self.done += 1
        self.bytes_in += summary.bytes_in
        self.bytes_out += summary.bytes_out
        self.pixels += summary.pixels

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def speed(self) -> str:
        """The note on the bar."""
        return f"{self.done / self.seconds:.1f}/s  {self._megapixels}  {self._bytes}"

    def line(self, verb: str) -> str:
        """The last line of a batch."""
        counts = f"{self.done} {verb}, {self.skipped} skipped, {self.failed} failed"
        return f"{counts}  {self._bytes}  {self._megapixels}  {self.seconds:.2f} s"

    @property
    def _megapixels(self) -> str:
        return f"{self.pixels / 1e6 / self.seconds:.2f} MP/s"

    @property
    def _bytes(self) -> str:
        return f"{human(self.bytes_in)} -> {human(self.bytes_out)}"


def load(job: Job, conversion: Conversion) -> bytes:
    """A job's input. Raises Skipped if its output exists and is whole, FileError if it cannot be read."""
    if job.exists and conversion.whole(job.output):
        raise Skipped
    return conversion.read(job.source)


class Batch:
    """One run of a plan."""

    def __init__(self, plan: Plan, work: Work, report_options: ReportOptions) -> None:
        self._plan = plan
        self._work = work
        self._report_options = report_options
        self._tally = Tally()
        self._writer = Writer()
        garbled = report_options.as_json is not None and sys.stdout is not None and sys.stdout.isatty()
        self._bar = Bar(len(plan.jobs), hidden=report_options.quiet or garbled)
        self._code = 0

    def run(self, dry: bool = False) -> int:
        """Does all jobs, or only prints what would be done. Returns the exit code."""
        try:
            with self._bar:
                for job in self._plan.jobs:
                    if job.error:
                        self._failed(job, job.error)
                ready = tuple(job for job in self._plan.jobs if not job.error)
                (self._pretend if dry else self._do)(ready)
        except Interrupted as stopped:
            self._end_at_once(stopped)
        if not (self._plan.single or self._report_options.quiet or dry):
            say(self._tally.line(self._work.verb))
        return self._code

    def _do(self, jobs: tuple[Job, ...]) -> None:
        threads = self._work.jobs if self._plan.single else 1  # of NumPy, not yet imported: the pipeline uses the cores itself
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
        remove_stale_temporaries(self._plan.folders)
        means = Means(self._work.codec, self._writer, self._bar.advance, self._work.jobs)
        with closing(self._work.run(jobs, means)) as outcomes:
            for outcome in outcomes:
                self._bar.advance(-outcome.reported)  # the whole of it is counted below
                if isinstance(outcome.error, Skipped):
                    self._skipped(outcome.job)
                elif outcome.error:
                    self._failed(outcome.job, outcome.error, outcome.seconds)
                    if exit_code(outcome.error) == 2 or isinstance(outcome.error, self._work.fatal):
                        break
                else:
                    self._done(outcome.job, self._work.summarise(outcome.job, outcome.made), outcome.seconds)

    def _pretend(self, jobs: tuple[Job, ...]) -> None:
        for job in jobs:
            if job.source != STANDARD and not os.path.exists(job.source):
                self._failed(job, FileError(MISSING))
            elif job.exists and self._work.conversion.whole(job.output):
                self._skipped(job)
            else:
                self._report(job, "planned", f"{name_of(job.source)} -> {out_name(job.output)}  not done: --dry-run")

    def _done(self, job: Job, summary: Summary, seconds: float) -> None:
        self._tally.add(summary)
        line = f"{name_of(job.source)} -> {out_name(job.output)}  {summary.line}  {seconds:.2f} s"
        self._report(job, "done", line, summary.values, seconds)
        for note in summary.notes:
            self._say(f"Note: {name_of(job.source)}: {note}")
        if summary.warning and summary.strict:
            self._code = 1
        if summary.warning:
            self._say(
                f"{'Error' if summary.strict else 'Warning'}: {name_of(job.source)}: {summary.warning}", even_if_quiet=True
            )

    def _skipped(self, job: Job) -> None:
        self._tally.skipped += 1
        self._report(job, "skipped", f"{name_of(job.source)} -> {out_name(job.output)}  skipped: it exists and is whole")

    def _failed(self, job: Job, error: Exception, seconds: float | None = None) -> None:
        self._tally.failed += 1
        self._code = max(self._code, exit_code(error))
        self._report(job, "failed", None, {}, seconds, error)
        if self._report_options.verbose:
            show_traceback(error, partial(self._say, even_if_quiet=True))
        self._say(f"Error: {name_of(job.source)}: {message_of(error)}", even_if_quiet=True)

    def _report(
        self,
        job: Job,
        status: str,
        line: str | None,
        values: dict[str, Any] | None = None,
        seconds: float | None = None,
        error: Exception | None = None,
    ) -> None:
        if self._report_options.as_json:
            put_record(record(job.source, job.output or None, status, values or {}, seconds, error, self._work.keys))
        elif line:
            self._say(line)
        self._bar.advance(1, self._tally.speed())

    def _say(self, line: str, even_if_quiet: bool = False) -> None:
        if self._report_options.quiet and not even_if_quiet:
            return
        self._bar.say(line)

    def _end_at_once(self, stopped: Interrupted) -> None:
        """Leaves no half-written files, and does not wait for the threads."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._writer.abort()
        end_records()
        if not (self._plan.single or self._report_options.quiet):
            say(f"Interrupted: {self._tally.line(self._work.verb)}; continue with --skip-existing")
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(int(str(stopped.code)))
