"""`--ray`: the work of a command in many processes, on one machine or several. Each does a chunk of it as a local run does all:
it reads and writes files itself, and what comes back is only what is reported."""

from __future__ import annotations

import copy
import os
import socket
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli.outputs import STANDARD
from cli.plan import Job, Plan
from cli.runner import Means, Summary, Work
from codec.parallel.ray_cluster import Cluster, Room, spread
from codec.system.files import Writer, remove_stale_temporaries

if TYPE_CHECKING:
    from codec.parallel.pipeline import Outcome


def across(work: Work, plan: Plan, address: str, device: str, runtime: str) -> Work:
    """The same work, spread over the workers of a cluster. Raises UsageError for what only this process can do."""
    if any(STANDARD in (job.source, job.output) for job in plan.jobs):
        msg = "--ray and '-' contradict each other: workers cannot use standard input or output, so name files"
        raise click.UsageError(msg)
    cluster = cluster_of(address, device, runtime)
    started = Start(work)

    def run(jobs: tuple[Job, ...], _: Means) -> Generator[Outcome[Job, Summary], None, None]:
        from codec.parallel.pipeline import Outcome

        largest_first = sorted(jobs, key=_size, reverse=True)  # those of a chunk are alike, and the last chunks are short
        lost = set()

        def pack(job: Job, losses: int) -> Job:
            if losses:
                lost.add(job.output)
            return replace(job, replace=True) if losses else job  # the lost worker may have written it

        try:
            for place, result in spread(largest_first, started, cluster, pack):
                job = largest_first[place]
                yield Outcome(job, None, result, 0.0) if isinstance(result, Exception) else replace(result, job=job)
        finally:
            remove_stale_temporaries({str(Path(os.path.realpath(path)).parent) for path in lost})

    return replace(work, run=run, summarise=lambda _, summary: summary)


def cluster_of(address: str, device: str, runtime: str, usual: int | None = None) -> Cluster:
    """What --ray and -j ask for; `usual` is what a worker has without -j. Raises UsageError for a device of one machine."""
    if ":" in device:
        msg = f"--ray and --device {device} contradict each other: Ray gives each worker its GPU; use --device cuda"
        raise click.UsageError(msg)
    context = click.get_current_context()
    given = context.get_parameter_source("jobs") is not ParameterSource.DEFAULT
    return Cluster(address, context.params["jobs"] if given else usual, gpus=device != "cpu" and runtime != "onnx")


def _size(job: Job) -> int:
    try:
        return Path(job.source).stat().st_size
    except OSError:  # found and reported by the worker
        return 0


@dataclass(frozen=True)
class Start:
    """Begins the work in a worker."""

    work: Work

    def __call__(self, room: Room) -> Part:
        return Part(self.work, room)


class Part:
    """What one worker does: a `codec.parallel.ray_cluster.Task`. It has one codec for all of its chunks."""

    def __init__(self, work: Work, room: Room) -> None:
        self._work = work
        self._writer = Writer()
        self._means = Means(cache(work.codec), self._writer, lambda _: None, room.threads, room.share)

    def do(self, items: list[Job]) -> Iterator[tuple[int, Outcome[Any, Summary]]]:
        places = {job: place for place, job in enumerate(items)}
        for outcome in self._work.run(tuple(items), self._means):
            made = None if outcome.error else self._work.summarise(outcome.job, outcome.made)
            yield places[outcome.job], replace(outcome, made=made, error=_portable(outcome.error), reported=0.0)

    def end(self) -> None:
        self._writer.abort()


def _portable(error: Exception | None) -> Exception | None:
    """An error that can travel, with its traceback as a note."""
    if error is None:
        return None
    told = f"in a worker on {socket.gethostname()}:\n{''.join(traceback.format_exception(error))}"
    try:
        carried = copy.deepcopy(error)  # made again from its arguments, as at its destination
    except Exception:  # of whatever kind: an error that cannot be made again
        carried = RuntimeError(f"{type(error).__name__}: {error}")
    carried.add_note(told)
    return carried
