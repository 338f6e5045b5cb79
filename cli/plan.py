"""The plan of a command: all pairs of input and output, found and checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import click

from cli.inputs import Files, Input, find_inputs, named_inputs, refuse_address
from cli.options import refuse_two
from cli.outputs import STANDARD, check_output, is_folder
from codec.errors import FileError, TesseraError


@dataclass(frozen=True)
class FileOptions:
    """Options about files."""

    sources: tuple[str, ...]
    recursive: bool
    files_from: str | None
    output: str | None
    output_dir: str | None
    force: bool
    skip_existing: bool
    preserve: bool
    dry_run: bool
    keep_extension: bool = False


@dataclass(frozen=True)
class FileTypes:
    """The input and output types of a command."""

    command: str  # its name
    inputs: Files
    outputs: Files
    ending: str  # extension of outputs, unless they are named
    check_input: Callable[[str], object]  # raises TesseraError if a file is not an input
    inverse: str  # the command that does the opposite
    keeps_extension: bool = False  # whether the command has --keep-extension


@dataclass(frozen=True)
class Job:
    """One input and its output."""

    source: str
    output: str
    exists: bool = False  # the output exists and is kept if it is complete
    replace: bool = False  # whether an existing output may be replaced
    skip: bool = False  # whether a complete output that appears during the run is kept, too
    preserve: bool = False  # whether the output gets the input's modification time and permissions
    error: TesseraError | None = None  # error that was found before any work


@dataclass(frozen=True)
class Plan:
    """All jobs of a command."""

    jobs: tuple[Job, ...]
    single: bool  # whether there is a single input file; the line with totals is then left out
    output: str | None = None  # output name of a single input

    @cached_property
    def folders(self) -> set[str]:
        """The folders of the outputs."""
        written = (job.output for job in self.jobs if job.output != STANDARD and not job.error)
        return {str(Path(os.path.realpath(path)).parent) for path in written}


def make_plan(options: FileOptions, types: FileTypes, as_json: str | None = None) -> Plan:
    """Finds all inputs and the output of each. A file that cannot be converted is a job with an error. With `as_json`, standard
    output is reserved for records.

    Raises click.UsageError if the command line contradicts itself."""
    options = _resolve_output(options, types)
    _refuse_contradictions(options)
    _refuse_wrong_ending(options, types)
    names = named_inputs(options.sources, options.files_from)
    if STANDARD in names and len(names) > 1:
        msg = "'-' is standard input, which must be the only input: give it alone, or ./- for a file"
        raise click.UsageError(msg)
    if options.preserve and STANDARD in (*names, options.output):
        msg = "--preserve is not for standard input or output: name files"
        raise click.UsageError(msg)
    if options.output is not None:
        if len(names) != 1:
            msg = f"-o names one output, and there are {len(names)} inputs: use --output-dir"
            raise click.UsageError(msg)
        return Plan((_check_job(Job(names[0], options.output), options, types, as_json),), True, options.output)
    single = len(names) == len(options.sources) == 1 and not os.path.isdir(names[0])
    jobs = [_make_job(found, options, types) for found in find_inputs(names, options.recursive, types.inputs)]
    return Plan(tuple(_check_job(job, options, types, as_json) for job in _without_conflicts(jobs, types)), single)


def _resolve_output(options: FileOptions, types: FileTypes) -> FileOptions:
    """The options, with `IN OUT` read as `IN -o OUT`, and an output that is a folder read as --output-dir."""
    if options.output_dir is not None:
        return options
    output, sources = options.output, options.sources
    two = output is None and len(sources) == 2 and options.files_from is None and not os.path.isdir(sources[0])
    if two and os.path.splitext(sources[1])[1].lower() in types.outputs.endings():
        sources, output = sources[:1], sources[1]
    if output is not None and is_folder(output):
        return replace(options, sources=sources, output=None, output_dir=output)
    return replace(options, sources=sources, output=output)


def _refuse_wrong_ending(options: FileOptions, types: FileTypes) -> None:
    """Raises UsageError if the output is named like an input, such as a .tsr file called x.webp."""
    ending = os.path.splitext(options.output or "")[1].lower()
    if not ending or options.force or options.output in options.sources:
        return
    if ending in types.outputs.endings() or ending not in types.inputs.endings():
        return
    advice = f"choose another ending, use `tessera {types.inverse}`, or force it with -f"
    msg = f"{options.output}: {types.command} writes {types.outputs.name}: {advice}"
    raise click.UsageError(msg)


def _refuse_contradictions(options: FileOptions) -> None:
    refuse_two({"output": options.output, "output_dir": options.output_dir})
    refuse_two({"force": options.force, "skip_existing": options.skip_existing})
    if options.output_dir == STANDARD or (options.output_dir and STANDARD in options.sources):
        msg = "--output-dir is not for standard input or output: use -o FILE or -o -"
        raise click.UsageError(msg)
    if options.output_dir and os.path.exists(options.output_dir) and not os.path.isdir(options.output_dir):
        msg = f"--output-dir {options.output_dir} is a file: name a folder"
        raise click.UsageError(msg)


def _make_job(found: Input, options: FileOptions, types: FileTypes) -> Job:
    if found.path == STANDARD:
        return Job(STANDARD, STANDARD)
    if found.error:
        return Job(found.path, "", error=found.error)
    path = os.path.join(options.output_dir, found.name) if options.output_dir else found.path
    return Job(found.path, path + types.ending if options.keep_extension else renamed(path, types.ending))


def renamed(path: str, ending: str) -> str:
    """A path with another ending."""
    return os.path.splitext(path)[0] + ending


def _without_conflicts(jobs: list[Job], types: FileTypes) -> list[Job]:
    """The jobs without duplicates. Jobs that would write to the same file, or over another input, get an error."""
    apart: dict[tuple[str, str], Job] = {}
    for job in jobs:
        apart.setdefault((os.path.realpath(job.source), _output_path(job)), job)
    inputs = {source: job.source for (source, _), job in apart.items() if not job.error}
    sharing: dict[str, list[str]] = {}
    for job in apart.values():
        sharing.setdefault(_output_path(job), []).append(job.source)
    kept = []
    for (source, place), job in apart.items():
        problem = None
        others = [name for name in sharing[place] if name != job.source]
        if place in inputs and place != source:
            problem = f"would be written to {job.output}, which is an input too: use --output-dir"
        elif place and others:
            problem = f"{others[0]} would be written to {job.output} too: {_advice(job.source, others[0], types)}"
        kept.append(replace(job, error=FileError(problem)) if problem else job)
    return kept


def _output_path(job: Job) -> str:
    """The real path of a job's output, or an empty string."""
    return "" if job.error or job.output == STANDARD else os.path.realpath(job.output)


def _advice(one: str, other: str, types: FileTypes) -> str:
    endings = [os.path.splitext(name)[1] for name in (one, other)]
    if types.keeps_extension and endings[0] != endings[1]:
        return "use --keep-extension, or rename one"
    return "rename one, or use a command for each"


def _check_job(job: Job, options: FileOptions, types: FileTypes, as_json: str | None) -> Job:
    """The job, with an error if its output cannot be written."""
    if job.error:
        return job
    try:
        refuse_address(job.source)
        keep = options.force or options.skip_existing
        check_output(job.output, keep, job.source, makes_folders=options.output_dir is not None, as_json=as_json)
    except FileError as error:
        return replace(job, error=_input_error(job, types) or error)
    exists = options.skip_existing and job.output != STANDARD and os.path.exists(job.output)
    return replace(job, exists=exists, replace=options.force or exists, skip=options.skip_existing, preserve=options.preserve)


def _input_error(job: Job, types: FileTypes) -> TesseraError | None:
    """The error of an input that is its own output, such as a .tsr file given to `encode`. A wrong type of file explains more
    than a wrong name."""
    if job.source != STANDARD and os.path.realpath(job.source) == os.path.realpath(job.output):
        try:
            types.check_input(job.source)
        except TesseraError as error:
            return error
    return None
