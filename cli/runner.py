"""Runs the plan of `encode` or `decode`: shows progress, reports on each file, sums up, and stops at once when interrupted."""

from __future__ import annotations

import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cli.inputs import input_of
from cli.outputs import MISSING, STANDARD, human, write_standard
from cli.plan import Job, Plan
from cli.progress import Bar
from cli.report import Interrupted, Report, ReportOptions, exit_code, say, show
from codec.errors import FileError, TesseraError
from codec.options import CodecOptions
from codec.system.files import ExistsError, Writer, remove_stale_temporaries

if TYPE_CHECKING:
    from codec.codec import Codec
    from codec.parallel.pipeline import Outcome, Resources
    from codec.system.context import ProgressListener


@dataclass(frozen=True)
class RunOptions:
    """Threads and machines."""

    jobs: int  # threads
    batch: int | None = None  # images per network call
    ray: str | None = None  # address of a cluster


@dataclass
class Conversion(Report):
    """The report on a file that was converted, or was not, and its share of the totals."""

    bytes_in: int = 0
    bytes_out: int = 0
    pixels: int = 0
    reported: float = 0.0  # share of the image that was reported as progress


@dataclass(frozen=True)
class Command(ABC):
    """The differences between `encode` and `decode`."""

    codec_options: CodecOptions
    passes: float  # cost of one image, in network passes

    verb: ClassVar[str]  # verb in the last line: encoded, decoded
    keys: ClassVar[tuple[str, ...]]  # JSON keys in addition to `cli.report.FIELDS`
    fatal: ClassVar[tuple[type[Exception], ...]] = ()  # errors that every other file would raise too

    @property
    def in_series(self) -> bool:
        """Whether the images of a folder are coded against each other."""
        return False

    @abstractmethod
    def is_complete(self, path: str) -> bool:
        """Whether an existing output is complete."""

    @abstractmethod
    def convert(self, codec: Codec, image: Any) -> Any:
        """Converts one image; the result has the bytes of the output in `data`."""

    @abstractmethod
    def convert_all(
        self, codec: Codec, pending: Sequence[Job], jobs: Sequence[Job], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[Any]]:
        """Converts the inputs of the jobs that are pending. The outputs of all other jobs exist."""

    @abstractmethod
    def summarise(self, report: Conversion, result: Any) -> None:
        """Completes the report on a converted image. Its `bytes_in` is set."""


def convert(
    command: Command,
    jobs: Sequence[Job],
    open_codec: Callable[[], Codec],
    writer: Writer,
    threads: int,
    batch: int | None = None,
    memory_share: float = 1.0,
    progress: ProgressListener | None = None,
) -> Generator[Conversion, None, None]:
    """Converts the inputs of jobs and writes their outputs; yields the report on each. Complete outputs are kept."""
    pending = [job for job in jobs if not job.exists]
    if existing := [job for job in jobs if job.exists]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            complete = pool.map(command.is_complete, [job.output for job in existing])
            for job, kept in zip(existing, complete, strict=True):
                if kept:
                    conversion = Conversion(job.source, job.output)
                    conversion.skip()
                    yield conversion
                else:
                    pending.append(job)
    if not pending:
        return
    if len(pending) == 1 and not command.in_series:
        yield convert_one(command, pending[0], open_codec, writer, threads, progress)
        return
    from codec.parallel.pipeline import Resources, pixels_at_once

    resources = Resources(threads, batch, pixels_at_once(memory_share))
    try:
        outcomes = command.convert_all(open_codec(), pending, jobs, resources, progress)
    except TesseraError as error:
        yield from (Conversion(job.source, job.output, error=error) for job in pending)
        return
    for outcome in outcomes:
        job = pending[outcome.index]
        conversion = Conversion(job.source, job.output, error=outcome.error, seconds=outcome.seconds)
        conversion.reported = outcome.reported
        if outcome.error is None:
            try:
                _write(command, job, outcome.result, writer, conversion)
            except Exception as error:  # such as an input that was deleted meanwhile
                conversion.error = error
        yield conversion


def convert_one(
    command: Command, job: Job, open_codec: Callable[[], Codec], writer: Writer, threads: int, progress: ProgressListener | None
) -> Conversion:
    """Converts a single image, in this thread."""
    from codec.system.context import ImageProgress, network_context

    conversion, image_progress = Conversion(job.source, job.output), ImageProgress(command.passes, progress)
    start = None
    try:
        codec, start = open_codec(), time.perf_counter()
        with network_context(threads, image_progress):
            source = input_of(job.source)
            result = command.convert(codec, source)
        conversion.bytes_in = getattr(source, "bytes_read", 0)
        _write(command, job, result, writer, conversion)
    except Exception as error:
        conversion.error = error
    conversion.seconds = start and time.perf_counter() - start
    conversion.reported = image_progress.reported
    return conversion


def _write(command: Command, job: Job, result: Any, writer: Writer, conversion: Conversion) -> None:
    """Writes an output and completes the report. If another run has written the output in the meantime, and it is to be
    skipped, it is kept."""
    original = None if job.source == STANDARD else Path(job.source).stat()
    if job.output == STANDARD:
        write_standard(result.data)
    else:
        write = partial(writer.write, job.output, result.data, original=original if job.preserve else None)
        try:
            write(job.replace)
        except ExistsError:
            if not job.skip or not os.path.exists(job.output):
                raise
            if command.is_complete(job.output):
                conversion.skip()
                return
            write(True)
    if original:
        conversion.bytes_in = original.st_size
    command.summarise(conversion, result)


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
        """The note next to the progress bar."""
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

    def __init__(self, plan: Plan, options: RunOptions, report_options: ReportOptions) -> None:
        self._plan = plan
        self._options = options
        self._report_options = report_options
        self._jobs = [job for job in plan.jobs if not job.error]
        self._totals = Totals()
        self._writer = Writer()
        garbled = report_options.as_json is not None and sys.stdout is not None and sys.stdout.isatty()
        self._bar = Bar(len(plan.jobs), hidden=report_options.quiet or garbled)
        self._exit_code = 0
        # NumPy is not imported yet. Its threads only slow down a pipeline, which uses all cores itself.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.jobs if len(self._jobs) == 1 else 1))

    def execute(self, command: Command, dry_run: bool = False) -> int:
        """Converts all files, or only prints the plan. Returns the exit code."""
        try:
            with self._bar:
                for job in self._plan.jobs:
                    if job.error:
                        self._report(command, Conversion(job.source, job.output, error=job.error))
                if dry_run:
                    self._print_plan(command)
                else:
                    self._convert(command)
        except Interrupted as interrupt:
            self._stop_at_once(command, interrupt)
        if not (self._plan.single or self._report_options.quiet or dry_run):
            say(self._totals.line(command.verb))
        return self._exit_code

    def _convert(self, command: Command) -> None:
        remove_stale_temporaries(self._plan.folders)
        if self._options.ray:
            from cli.ray_runner import convert_with_ray

            conversions = convert_with_ray(command, self._jobs, self._options.ray)
        else:
            from codec.codec import Codec

            codec, threads, progress = partial(Codec, **command.codec_options), self._options.jobs, self._bar.advance
            if len(self._jobs) == 1 and not self._jobs[0].exists:
                self._report(command, convert_one(command, self._jobs[0], codec, self._writer, threads, progress))
                return
            conversions = convert(command, self._jobs, codec, self._writer, threads, self._options.batch, progress=progress)
        with closing(conversions):
            for conversion in conversions:
                self._report(command, conversion)
                if (error := conversion.error) and (exit_code(error) == 2 or isinstance(error, command.fatal)):
                    break

    def _print_plan(self, command: Command) -> None:
        for job in self._jobs:
            planned = Conversion(job.source, job.output, "planned")
            planned.line = f"{planned.arrow()}  not done: --dry-run"
            if job.source != STANDARD and not os.path.exists(job.source):
                planned.error = FileError(MISSING)
            elif job.exists and command.is_complete(job.output):
                planned.skip()
            self._report(command, planned)

    def _report(self, command: Command, conversion: Conversion) -> None:
        """Prints the report on a file, and adds it to the totals and the bar."""
        totals = self._totals
        totals.failed += conversion.error is not None
        totals.skipped += conversion.status == "skipped"
        if conversion.error is None and conversion.status == "done":
            totals.converted += 1
            totals.bytes_in += conversion.bytes_in
            totals.bytes_out += conversion.bytes_out
            totals.pixels += conversion.pixels
        self._exit_code = max(self._exit_code, show(conversion, self._report_options, command.keys, self._bar.say))
        self._bar.advance(1 - conversion.reported, self._totals.speed)

    def _stop_at_once(self, command: Command, interrupt: Interrupted) -> None:
        """Leaves no half-written files, and does not wait for threads."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._writer.abort()
        self._report_options.end_records()
        if not (self._plan.single or self._report_options.quiet):
            say(f"Interrupted: {self._totals.line(command.verb)}; continue with --skip-existing")
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        os._exit(int(str(interrupt.code)))
