"""What a command is to read and write: all pairs of input and output, made and checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bitstream.errors import TesseraError
from cli.files import STANDARD, FileError, check_output, read_lines
from cli.options import refuse_two


@dataclass(frozen=True)
class Wanted:
    """What the command line names."""

    sources: tuple[str, ...]
    recursive: bool
    files_from: str | None
    output: str | None
    output_dir: str | None
    force: bool
    skip_existing: bool
    dry_run: bool


@dataclass(frozen=True)
class Kind:
    """What a command makes of what."""

    taken: Callable[[], frozenset[str]]  # endings of the files that it takes from folders
    ending: str  # of outputs that have no name
    whole: Callable[[str], bool]  # whether an output that exists is all there


@dataclass(frozen=True)
class Job:
    """One picture's way."""

    source: str
    output: str
    exists: bool = False  # the output is there, and stays if it is whole
    error: TesseraError | None = None  # why there is nothing to do, as far as it is known before any work


@dataclass(frozen=True)
class Plan:
    """All that is to be done."""

    jobs: tuple[Job, ...]
    single: bool  # one file was named, and nothing else: no progress, no summary

    @property
    def folders(self) -> set[str]:
        """Those that are written to."""
        written = (job.output for job in self.jobs if job.output != STANDARD and not job.error)
        return {str(Path(os.path.realpath(path)).parent) for path in written}


def make_plan(wanted: Wanted, kind: Kind, as_json: bool = False) -> Plan:
    """Finds all inputs and the output of each. A file that cannot be done is a job with an error; with `as_json`, standard
    output is taken.

    Raises click.UsageError where the command line contradicts itself, as by two inputs for one output."""
    _refuse_contradictions(wanted)
    listed = _listed(wanted.files_from)
    named = [*wanted.sources, *listed]
    if STANDARD in named and len(named) > 1:
        msg = "'-' is standard input, which has no name to make others from: give it alone, or ./- for a file"
        raise click.UsageError(msg)
    if wanted.output is not None:
        if len(named) != 1:
            msg = f"-o names one output, and there are {len(named)} inputs: use --output-dir"
            raise click.UsageError(msg)
        return Plan((_checked(Job(named[0], wanted.output), wanted, as_json),), single=True)
    single = not listed and len(named) == 1 and not os.path.isdir(named[0])
    jobs = [_placed(found, wanted, kind) for name in named for found in _find(name, wanted.recursive, kind)]
    return Plan(tuple(_checked(job, wanted, as_json) for job in _apart(jobs)), single)


def _listed(path: str | None) -> list[str]:
    try:
        return read_lines(path) if path is not None else []
    except FileError as error:
        msg = f"--files-from {path}: {error}"
        raise click.UsageError(msg) from error


def _refuse_contradictions(wanted: Wanted) -> None:
    if not wanted.sources and wanted.files_from is None:
        msg = "Missing argument 'IN...': name files or folders, '-' for standard input, or a list with --files-from"
        raise click.UsageError(msg)
    if wanted.files_from == STANDARD and STANDARD in wanted.sources:
        msg = "'-' and --files-from - both want standard input: name a file for one of them"
        raise click.UsageError(msg)
    refuse_two({"output": wanted.output, "output_dir": wanted.output_dir})
    refuse_two({"force": wanted.force, "skip_existing": wanted.skip_existing})
    if wanted.output_dir == STANDARD or (wanted.output_dir and STANDARD in wanted.sources):
        msg = "--output-dir is for files with names: use -o for standard input or output"
        raise click.UsageError(msg)
    if wanted.output_dir and os.path.exists(wanted.output_dir) and not os.path.isdir(wanted.output_dir):
        msg = f"--output-dir {wanted.output_dir} is a file: name a folder"
        raise click.UsageError(msg)


@dataclass(frozen=True)
class _Found:
    """An input, and its place below the folder that was named, or its own name."""

    path: str
    place: str
    error: TesseraError | None = None


def _find(name: str, recursive: bool, kind: Kind) -> Iterator[_Found]:
    if name == STANDARD or not os.path.isdir(name):
        yield _Found(name, os.path.basename(name))
        return
    found = False
    for entry in _walk(name, "", recursive, kind.taken(), set()):
        found = True
        yield entry
    if not found:
        deeper = "" if recursive else ", or look into its folders too with -r"
        endings = "pictures" if kind.ending == ".tsr" else ".tsr files"
        yield _Found(name, "", FileError(f"holds no {endings}: name another folder{deeper}"))


def _walk(folder: str, place: str, recursive: bool, taken: frozenset[str], seen: set[tuple[int, int]]) -> Iterator[_Found]:
    """Files of a folder in the order of their names. Links are followed, each folder is entered once; hidden ones, and those
    with other endings, are passed over."""
    try:
        state = Path(folder).stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield _Found(folder, place, FileError(f"the folder cannot be read ({error.strerror}): check its permissions"))
        return
    for entry in entries:
        below = os.path.join(place, entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive:
                yield from _walk(entry.path, below, recursive, taken, seen)
        elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in taken:
            yield _Found(entry.path, below)


def _placed(found: _Found, wanted: Wanted, kind: Kind) -> Job:
    if found.path == STANDARD:
        return Job(STANDARD, STANDARD)
    if found.error:
        return Job(found.path, "", error=found.error)
    path = os.path.join(wanted.output_dir, found.place) if wanted.output_dir else found.path
    return Job(found.path, renamed(path, kind.ending))


def renamed(path: str, ending: str) -> str:
    """A file's name with another ending."""
    return os.path.splitext(path)[0] + ending


def _apart(jobs: list[Job]) -> list[Job]:
    """The same, each once. Raises UsageError where two inputs, or an input and an output, would be one file."""
    ready = [job for job in jobs if not job.error]
    inputs = {os.path.realpath(job.source): job for job in ready}
    outputs: dict[str, Job] = {}
    kept = []
    for job in jobs:
        if job.error or job.source == STANDARD:
            kept.append(job)
            continue
        place = os.path.realpath(job.output)
        other = outputs.setdefault(place, job)
        if other is job:
            kept.append(job)
        elif os.path.realpath(other.source) != os.path.realpath(job.source):
            msg = f"{other.source} and {job.source} would both be written to {job.output}: rename one, or run them apart"
            raise click.UsageError(msg)
        if place in inputs and inputs[place].source != job.source:
            msg = f"{job.source} would be written to {job.output}, which is an input too: use --output-dir"
            raise click.UsageError(msg)
    return kept


def _checked(job: Job, wanted: Wanted, as_json: bool) -> Job:
    """The job, with what is known of its output."""
    if job.error:
        return job
    try:
        if job.output == STANDARD and as_json:
            msg = "--json and -o - both want standard output: name an output file"
            raise FileError(msg)
        keep = wanted.force or wanted.skip_existing
        check_output(job.output, keep, job.source, makes_folders=wanted.output_dir is not None)
    except FileError as error:
        return replace(job, error=error)
    return replace(job, exists=wanted.skip_existing and job.output != STANDARD and os.path.exists(job.output))
