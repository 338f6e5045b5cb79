"""What `--ray` costs and gains on this machine: a folder encoded without it, by one worker and by two, and the engine alone.

python -m benchmarks.tools.workers photos/ --limit 200

The commands run in turns. Each is timed from its 20th to its 90th hundredth of images, so that its start does not count; that
is told apart, as the time to its first image. Processor seconds are those of all its processes, Ray's own too: other work on
the machine hardly lengthens them. The engine alone hands out items that take no time.
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

from codec.parallel.ray_cluster import Cluster, Room, spread

FROM, TO = 0.2, 0.9
RUNS = {  # by what the table calls them
    "without Ray, 2 threads": ("-j", "2"),
    "Ray, 1 worker of 2 threads": ("-j", "2", "--ray"),
    "Ray, 2 workers of 1 thread": ("-j", "1", "--ray"),
}
ITEMS = 5000


@dataclass
class Run:
    """One command, or several in a row."""

    first: float = 0.0  # seconds to the first image
    images: int = 0
    seconds: float = 0.0
    work: float = 0.0  # processor seconds
    memory: float = 0.0  # bytes of the largest process

    def row(self, name: str) -> str:
        rate, work = self.images / self.seconds, 1000 * self.work / self.images
        return f"| {name} | {rate:.2f} | {work:.0f} ms | {self.first:.1f} s | {self.memory / 1e6:.0f} MB |"


def measure(files: Sequence[Path], options: Sequence[str], run: Run) -> None:
    """Adds a command over the files."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "cli", "encode", *map(str, files), "--output-dir", out, "--json", "--quiet", *options]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        start = time.perf_counter()
        begun = ended = start, 0.0
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as running:
            assert running.stdout
            for count, _ in enumerate(running.stdout, 1):
                if count == 1:
                    run.first = time.perf_counter() - start
                if count == int(FROM * len(files)):
                    begun = time.perf_counter(), _work(running.pid, run)
                if count == int(TO * len(files)):
                    ended = time.perf_counter(), _work(running.pid, run)
        if running.returncode:
            raise SystemExit(running.returncode)
    run.images += int(TO * len(files)) - int(FROM * len(files))
    run.seconds += ended[0] - begun[0]
    run.work += ended[1] - begun[1]


def _work(pid: int, run: Run) -> float:
    """Processor seconds of a process and of all that it started."""
    total = 0.0
    main = psutil.Process(pid)
    for process in (main, *main.children(recursive=True)):
        try:
            times = process.cpu_times()
            total += times.user + times.system
            run.memory = max(run.memory, process.memory_info().rss)
        except psutil.Error:  # it ended meanwhile
            continue
    return total


class Nothing:
    """A task that takes no time."""

    def __init__(self, room: Room) -> None:
        self._threads = room.threads

    def do(self, items: list[int]) -> Iterator[tuple[int, int]]:
        yield from enumerate(items)

    def end(self) -> None:
        """There is nothing to end."""


def engine(workers: int) -> str:
    """What handing out an item and taking its result costs whoever does it."""
    threads = (os.cpu_count() or 1) // workers
    seconds = own = all_of_it = 0.0
    for count, _ in enumerate(spread(range(ITEMS), Nothing, Cluster(threads=threads)), 1):
        if count == ITEMS // 10:
            seconds, own, all_of_it = time.perf_counter(), time.process_time(), _work(os.getpid(), Run())
        if count == ITEMS:
            seconds, own = time.perf_counter() - seconds, time.process_time() - own
            all_of_it = _work(os.getpid(), Run()) - all_of_it
    each = 1000 / (ITEMS - ITEMS // 10)
    return f"{each * seconds:.2f} ms an item; processor {each * all_of_it:.2f} ms, of which {each * own:.2f} hand it out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--turns", type=int, default=2, help="how often each command runs")
    given = parser.parse_args()
    files = sorted(path for path in given.folder.iterdir() if path.is_file())[: given.limit]
    runs = {name: Run() for name in RUNS}
    for _ in range(given.turns):
        for name, options in RUNS.items():
            measure(files, options, runs[name])
    rows = "\n".join(run.row(name) for name, run in runs.items())
    sys.stdout.write(
        f"{len(files)} images, {given.turns} turns, {os.cpu_count()} cores\n\n"
        f"| | images per second | processor time of each | first image after | largest process |\n"
        f"|---|---|---|---|---|\n{rows}\n\n"
        f"The engine alone, with one worker: {engine(1)}.\n"
    )


if __name__ == "__main__":
    main()
