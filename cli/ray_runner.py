"""`--ray`: runs a command in many processes, on one machine or several. Each process converts a chunk of the files as a local
run does: it reads and writes the files itself, and returns only reports."""

from __future__ import annotations

import copy
import os
import socket
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cli.outputs import STANDARD
from cli.plan import Job
from cli.runner import Command, Conversion, convert
from codec.parallel.ray_cluster import Cluster, WorkerResources, run_on_cluster
from codec.system.files import Writer, remove_stale_temporaries


def convert_with_ray(command: Command, jobs: list[Job], address: str) -> Generator[Conversion, None, None]:
    """Like `cli.runner.convert`, on the workers of a cluster. Raises UsageError if a job reads standard input or writes
    standard output."""
    if any(STANDARD in (job.source, job.output) for job in jobs):
        msg = "--ray and '-' contradict each other: workers cannot use standard input or output, so name files"
        raise click.UsageError(msg)
    options = command.codec_options
    cluster = cluster_of(address, options.get("device", "auto"), options.get("runtime", "auto"))
    return _convert(
        command, sorted(jobs, key=_size, reverse=True), cluster
    )  # chunks have files of similar size, and the last chunks are small


def _convert(command: Command, jobs: list[Job], cluster: Cluster) -> Generator[Conversion, None, None]:
    retried = set()

    def pack(job: Job, losses: int) -> Job:
        if losses:
            retried.add(job.output)
        return replace(job, replace=True) if losses else job  # the lost worker may have written the output

    try:
        for index, result in run_on_cluster(jobs, Start(command), cluster, pack):
            job = jobs[index]
            yield Conversion(job.source, job.output, error=result) if isinstance(result, Exception) else result
    finally:
        remove_stale_temporaries({str(Path(os.path.realpath(path)).parent) for path in retried})


def cluster_of(address: str, device: str, runtime: str, threads: int | None = None) -> Cluster:
    """The cluster for --ray. A worker has `threads` threads unless -j is given. Raises UsageError for a device like cuda:1."""
    if ":" in device:
        msg = f"--ray and --device {device} contradict each other: Ray gives each worker its GPU; use --device cuda"
        raise click.UsageError(msg)
    context = click.get_current_context()
    given = context.get_parameter_source("jobs") is not ParameterSource.DEFAULT
    return Cluster(address, context.params["jobs"] if given else threads, gpus=device != "cpu" and runtime != "onnx")


def _size(job: Job) -> int:
    try:
        return Path(job.source).stat().st_size
    except OSError:  # the worker will report it
        return 0


@dataclass(frozen=True)
class Start:
    """Creates the task of a worker."""

    command: Command

    def __call__(self, resources: WorkerResources) -> Conversions:
        return Conversions(self.command, resources)


class Conversions:
    """The task of one worker (`codec.parallel.ray_cluster.Task`). It has one codec for all of its chunks."""

    def __init__(self, command: Command, resources: WorkerResources) -> None:
        from codec.codec import Codec

        self._command = command
        self._resources = resources
        self._writer = Writer()
        self._open_codec = cache(partial(Codec, **command.codec_options))

    def do(self, items: list[Job]) -> Iterator[tuple[int, Conversion]]:
        indexes: dict[tuple[str, str | None], int] = {(job.source, job.output): index for index, job in enumerate(items)}
        resources = self._resources
        for conversion in convert(
            self._command, items, self._open_codec, self._writer, resources.threads, memory_share=resources.memory_share
        ):
            error = _portable(conversion.error)
            yield indexes[conversion.source, conversion.output], replace(conversion, error=error, reported=0.0)

    def end(self) -> None:
        self._writer.abort()


def _portable(error: Exception | None) -> Any:
    """An error that can travel between processes, with its traceback as a note."""
    if error is None:
        return None
    note = f"in a worker on {socket.gethostname()}:\n{''.join(traceback.format_exception(error))}"
    try:
        copied = copy.deepcopy(error)  # deepcopy rebuilds it from its arguments, as unpickling will
    except Exception:  # an error that cannot be rebuilt
        copied = RuntimeError(f"{type(error).__name__}: {error}")
    copied.add_note(note)
    return copied
