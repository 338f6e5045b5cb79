"""What a command is to read and write: all pairs of input and output, made and checked before any work."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from bitstream.errors import FileError, TesseraError
from cli.files import STANDARD, check_output, is_folder
from cli.inputs import Files, Input, find_inputs, named_inputs, refuse_address
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
    keep_extension: bool = False


@dataclass(frozen=True)
class Kind:
    """What a command makes of what."""

    takes: Files
    makes: Callable[[], frozenset[str]]  # endings of the files that it writes
    ending: str  # of outputs that have no name
    read: Callable[[str], bytes]  # an input, no further than it can reach
    whole: Callable[[str], bool]  # whether an output that exists is all there


@dataclass(frozen=True)
class Job:
    """One picture's way."""

    source: str
    output: str
    exists: bool = False  # the output is there, and stays if it is whole
    replace: bool = False  # whether a file of the output's name may be replaced
    error: TesseraError | None = None  # why there is nothing to do, as far as it is known before any work


@dataclass(frozen=True)
class Plan:
    """All that is to be done."""

    jobs: tuple[Job, ...]
    single: bool  # one file was named, and nothing else: no progress, no summary
    output: str | None = None  # that was named for it

    @property
    def folders(self) -> set[str]:
        """Those that are written to."""
        written = (job.output for job in self.jobs if job.output != STANDARD and not job.error)
        return {str(Path(os.path.realpath(path)).parent) for path in written}


def make_plan(wanted: Wanted, kind: Kind, as_json: bool = False) -> Plan:
    """Finds all inputs and the output of each. A file that cannot be done is a job with an error; with `as_json`, standard
    output is taken.

    Raises click.UsageError where the command line contradicts itself."""
    wanted = _settled(wanted, kind)
    _refuse_contradictions(wanted)
    _refuse_wrong_ending(wanted, kind)
    named = named_inputs(wanted.sources, wanted.files_from)
    if STANDARD in named and len(named) > 1:
        msg = "'-' is standard input, which has no name to make others from: give it alone, or ./- for a file"
        raise click.UsageError(msg)
    if wanted.output is not None:
        if len(named) != 1:
            msg = f"-o names one output, and there are {len(named)} inputs: use --output-dir"
            raise click.UsageError(msg)
        return Plan((_checked(Job(named[0], wanted.output), wanted, kind, as_json),), True, wanted.output)
    single = len(named) == len(wanted.sources) == 1 and not os.path.isdir(named[0])
    jobs = [_placed(found, wanted, kind) for found in find_inputs(named, wanted.recursive, kind.takes)]
    return Plan(tuple(_checked(job, wanted, kind, as_json) for job in _apart(jobs, kind)), single)


def _settled(wanted: Wanted, kind: Kind) -> Wanted:
    """The same, with `IN OUT` taken for `IN -o OUT`, and an output that is a folder for --output-dir."""
    if wanted.output_dir is not None:
        return wanted
    output, sources = wanted.output, wanted.sources
    two = output is None and len(sources) == 2 and wanted.files_from is None and not os.path.isdir(sources[0])
    if two and os.path.splitext(sources[1])[1].lower() in kind.makes():
        sources, output = sources[:1], sources[1]
    if output is not None and is_folder(output):
        return replace(wanted, sources=sources, output=None, output_dir=output)
    return replace(wanted, sources=sources, output=output)


def _refuse_wrong_ending(wanted: Wanted, kind: Kind) -> None:
    """Raises UsageError for an output that is named like an input: a .tsr file called x.webp helps nobody."""
    ending = os.path.splitext(wanted.output or "")[1].lower()
    if not ending or wanted.force or wanted.output in wanted.sources:
        return
    if ending in kind.makes() or ending not in kind.takes.endings():
        return
    if kind.ending == ".tsr":
        writes, other = "encode writes .tsr files", "tessera decode"
    else:
        writes, other = "decode writes pictures", "tessera encode"
    msg = f"{wanted.output}: {writes}: name another ending, use `{other}`, or -f if you mean it"
    raise click.UsageError(msg)


def _refuse_contradictions(wanted: Wanted) -> None:
    refuse_two({"output": wanted.output, "output_dir": wanted.output_dir})
    refuse_two({"force": wanted.force, "skip_existing": wanted.skip_existing})
    if wanted.output_dir == STANDARD or (wanted.output_dir and STANDARD in wanted.sources):
        msg = "a folder is for files with names, and standard input and output have none: use -o FILE or -o -"
        raise click.UsageError(msg)
    if wanted.output_dir and os.path.exists(wanted.output_dir) and not os.path.isdir(wanted.output_dir):
        msg = f"--output-dir {wanted.output_dir} is a file: name a folder"
        raise click.UsageError(msg)


def _placed(found: Input, wanted: Wanted, kind: Kind) -> Job:
    if found.path == STANDARD:
        return Job(STANDARD, STANDARD)
    if found.error:
        return Job(found.path, "", error=found.error)
    path = os.path.join(wanted.output_dir, found.name) if wanted.output_dir else found.path
    return Job(found.path, path + kind.ending if wanted.keep_extension else renamed(path, kind.ending))


def renamed(path: str, ending: str) -> str:
    """A file's name with another ending."""
    return os.path.splitext(path)[0] + ending


def _apart(jobs: list[Job], kind: Kind) -> list[Job]:
    """The same, each once. Those of several inputs that would be written to one file, or over another input, get an error."""
    apart: dict[tuple[str, str], Job] = {}
    for job in jobs:
        apart.setdefault((os.path.realpath(job.source), _place(job)), job)
    inputs = {source: job.source for (source, _), job in apart.items() if not job.error}
    sharing: dict[str, list[str]] = {}
    for job in apart.values():
        sharing.setdefault(_place(job), []).append(job.source)
    kept = []
    for (source, place), job in apart.items():
        problem = None
        others = [name for name in sharing[place] if name != job.source]
        if place in inputs and place != source:
            problem = f"would be written to {job.output}, which is an input too: use --output-dir"
        elif place and others:
            problem = f"{others[0]} would be written to {job.output} too: {_remedy(job.source, others[0], kind)}"
        kept.append(replace(job, error=FileError(problem)) if problem else job)
    return kept


def _place(job: Job) -> str:
    """Where a job's output really lies; nothing where there is none."""
    return "" if job.error or job.output == STANDARD else os.path.realpath(job.output)


def _remedy(one: str, other: str, kind: Kind) -> str:
    endings = [os.path.splitext(name)[1] for name in (one, other)]
    if kind.ending == ".tsr" and endings[0] != endings[1]:
        return "use --keep-extension, or rename one"
    return "rename one, or give each a command of its own"


def _checked(job: Job, wanted: Wanted, kind: Kind, as_json: bool) -> Job:
    """The job, with what is known of its output."""
    if job.error:
        return job
    try:
        refuse_address(job.source)
        if job.output == STANDARD and as_json:
            msg = "--json and -o - both need standard output: name an output file"
            raise FileError(msg)
        keep = wanted.force or wanted.skip_existing
        check_output(job.output, keep, job.source, makes_folders=wanted.output_dir is not None)
    except FileError as error:
        return replace(job, error=_of_wrong_kind(job, kind) or error)
    exists = wanted.skip_existing and job.output != STANDARD and os.path.exists(job.output)
    return replace(job, exists=exists, replace=wanted.force or exists)


def _of_wrong_kind(job: Job, kind: Kind) -> TesseraError | None:
    """What is wrong with an input that would become its own output, such as a .tsr file that is to be encoded: its kind says
    more than its name."""
    if job.source != STANDARD and os.path.realpath(job.source) == os.path.realpath(job.output):
        try:
            kind.read(job.source)
        except TesseraError as error:
            return error
    return None
