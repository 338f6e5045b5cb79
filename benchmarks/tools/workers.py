"""Cost and gain of `--ray` on one machine: a folder encoded without Ray, by one worker and by two, and the scheduler alone. For
benchmarks/speed-log.md, "Many machines".

    python -m benchmarks.tools.workers photos/ --limit 200

The commands run in turns. Rates and processor time are measured between 20 and 90 % of the images, which excludes
start-up; that is the time until the first image. Processor time includes all processes of a command, even Ray's own, and is
hardly affected by other work on the machine. The scheduler alone hands out items that take no time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from codec.parallel.ray_cluster import Cluster, WorkerResources, run_on_cluster

FIRST, LAST = 0.2, 0.9  # start and end of a measurement, as shares of the images
RUNS = {  # row of the table -> options
    "without Ray, 2 threads": ("-j", "2"),
    "Ray, 1 worker of 2 threads": ("-j", "2", "--ray"),
    "Ray, 2 workers of 1 thread": ("-j", "1", "--ray"),
}
ITEMS = 5000


@dataclass
class Run:
    """The sums over one command or several."""

    first: float = 0.0  # seconds until the first image
    images: int = 0
    seconds: float = 0.0
    cpu: float = 0.0  # processor seconds
    memory: float = 0.0  # bytes of the largest process

    def row(self, name: str) -> str:
        rate, cpu = self.images / self.seconds, 1000 * self.cpu / self.images
        return f"| {name} | {rate:.2f} | {cpu:.0f} ms | {self.first:.1f} s | {self.memory / 1e6:.0f} MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images")
    parser.add_argument("--limit", type=int, metavar="N", help="encode the first N images")
    parser.add_argument("--turns", type=int, default=2, metavar="N", help="run each command N times")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.iterdir() if path.is_file())[: arguments.limit]
    runs = {name: Run() for name in RUNS}
    for _ in range(arguments.turns):
        for name, options in RUNS.items():
            measure(files, options, runs[name])
    rows = "\n".join(run.row(name) for name, run in runs.items())
    sys.stdout.write(
        f"{len(files)} images, {arguments.turns} turns, {os.cpu_count()} cores\n\n"
        f"| | images per second | processor time of each | first image after | largest process |\n"
        f"|---|---|---|---|---|\n{rows}\n\n"
        f"The scheduler alone, with one worker: {measure_scheduler(1)}.\n"
    )


def measure(files: Sequence[Path], options: Sequence[str], run: Run) -> None:
    """Encodes the files with one command and adds its numbers to a run."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "cli", "encode", *map(str, files), "--output-dir", out, "--json", "--quiet", *options]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        begin = time.perf_counter()
        start = end = begin, 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout
            for count, _ in enumerate(process.stdout, 1):
                if count == 1:
                    run.first = time.perf_counter() - begin
                if count == int(FIRST * len(files)):
                    start = time.perf_counter(), _cpu_seconds(process.pid, run)
                if count == int(LAST * len(files)):
                    end = time.perf_counter(), _cpu_seconds(process.pid, run)
        if process.returncode:
            raise SystemExit(process.returncode)
    run.images += int(LAST * len(files)) - int(FIRST * len(files))
    run.seconds += end[0] - start[0]
    run.cpu += end[1] - start[1]


def _cpu_seconds(pid: int, run: Run) -> float:
    """Processor seconds of a process and of all its descendants; also updates the run's memory."""
    total = 0.0
    parent = psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        try:
            times = process.cpu_times()
            total += times.user + times.system
            run.memory = max(run.memory, process.memory_info().rss)
        except psutil.Error:  # the process has ended
            continue
    return total


def measure_scheduler(workers: int) -> str:
    """The cost of handing out an item and receiving its result."""
    threads = (os.cpu_count() or 1) // workers
    seconds = own = total = 0.0
    for count, _ in enumerate(run_on_cluster(range(ITEMS), EmptyTask, Cluster(threads=threads)), 1):
        if count == ITEMS // 10:
            seconds, own, total = time.perf_counter(), time.process_time(), _cpu_seconds(os.getpid(), Run())
        if count == ITEMS:
            seconds, own = time.perf_counter() - seconds, time.process_time() - own
            total = _cpu_seconds(os.getpid(), Run()) - total
    each = 1000 / (ITEMS - ITEMS // 10)
    return f"{each * seconds:.2f} ms per item; processor {each * total:.2f} ms, including {each * own:.2f} ms in the command"


class EmptyTask:
    """A task whose items take no time."""

    def __init__(self, resources: WorkerResources) -> None:
        pass

    def do(self, items: list[int]) -> Iterator[tuple[int, int]]:
        yield from enumerate(items)

    def end(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    main()
