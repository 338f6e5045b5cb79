"""`--ray`: the same files, records and exit codes as without, from workers that may be lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from benchmarks.cache import Cache
from benchmarks.codecs.base import SCALES
from tests.helpers import ROOT

pytestmark = pytest.mark.ray
TESSERA = [sys.executable, "-m", "cli"]
PATIENCE = 120  # seconds until a test that hangs fails
COUNT = 24
QUICK = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
HEAD = """
import sys, ray
made = ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, logging_level="CRITICAL")
print(made.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


class Head:
    """A cluster of one machine, with two cores."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", HEAD]
        environment = {**QUICK, "RAY_USAGE_STATS_ENABLED": "0"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.address = self.process.stdout.readline().strip()

    def workers(self) -> list[psutil.Process]:
        """Those that are at work: Ray names a process by what it is doing."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                found += [process] if process.cmdline()[:1] == ["ray::Worker.work"] else []
            except psutil.Error:  # it ended meanwhile
                continue
        return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    try:
        yield head
    finally:
        head.process.communicate(timeout=PATIENCE)  # the end of its input ends it


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [*TESSERA, *map(str, arguments)]
    settings = {"env": QUICK, "cwd": ROOT, "capture_output": True, "text": True, "timeout": PATIENCE, "check": False}
    return subprocess.run(command, **(settings | options))  # type: ignore[call-overload]


def start(*arguments: object) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*TESSERA, *map(str, arguments)], env=QUICK, cwd=ROOT, **pipes)  # type: ignore[call-overload]


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def records(text: str) -> list[dict]:
    """JSON lines in the order of their inputs, without what differs from run to run."""
    lines = sorted(map(json.loads, text.splitlines()), key=lambda line: line["input"])
    return [{key: value for key, value in line.items() if key not in ("seconds", "output")} for line in lines]


@pytest.fixture(scope="module")
def images(photo, tmp_path_factory) -> Path:
    """Small images of several sizes, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for number in range(COUNT):
        photo.crop((number, 0, 5 * number + 200, 160)).save(folder / f"{number:02}.png")
    (folder / "00.png").rename(folder / "sub" / "00.png")
    return folder


@pytest.fixture(scope="module")
def local(images, tmp_path_factory) -> Path:
    """What a run without Ray makes of them."""
    out = tmp_path_factory.mktemp("local")
    assert run("encode", "-r", images, "--output-dir", out).returncode == 0
    return out


def wait_for_outputs(folder: Path, count: int, running: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while len(list(folder.glob("*.tsr"))) < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lost_worker_loses_nothing(head, images, local, tmp_path):
    with start("encode", "-r", images, "--output-dir", tmp_path, "-j", "1", "--ray", head.address) as running:
        wait_for_outputs(tmp_path, 3, running)
        workers = head.workers()
        assert len(workers) == 2
        workers[0].kill()
        assert len(list(tmp_path.rglob("*.tsr"))) < COUNT - 2
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (0, ""), err
    lines = err.splitlines()
    assert len(lines) == COUNT + 1
    assert re.match(rf"{COUNT} encoded, 0 skipped, 0 failed  ", lines[-1])
    assert len({line.split(" -> ")[0] for line in lines[:-1]}) == COUNT
    assert files(tmp_path) == files(local)


def test_an_interrupt_leaves_whole_files_and_no_others(head, images, local, tmp_path):
    with start("encode", "-r", images, "--output-dir", tmp_path, "-j", "1", "--ray", head.address) as running:
        wait_for_outputs(tmp_path, 2, running)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (130, ""), err
    assert re.match(r"Interrupted: \d+ encoded, 0 skipped, 0 failed  .*; continue with --skip-existing$", err.splitlines()[-1])
    assert "Traceback" not in err
    made = files(tmp_path)
    assert 2 <= len(made) < COUNT
    assert made.items() < files(local).items()
    told = {line.split(" -> ")[0] for line in err.splitlines()[:-1]}

    said = run("encode", "-r", images, "--output-dir", tmp_path, "--skip-existing", "--json", "--ray", head.address)
    assert said.returncode == 0
    skipped = [line["input"] for line in records(said.stdout) if line["status"] == "skipped"]
    assert told <= set(skipped)
    assert len(skipped) == len(made)
    assert files(tmp_path) == files(local)


def test_an_interrupt_before_the_first_image(head, images, tmp_path):
    with start("encode", images, "--output-dir", tmp_path, "-e", "9", "-j", "2", "--ray", head.address) as running:
        end = time.monotonic() + PATIENCE
        while not head.workers():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(2)  # it waits for a result, inside of Ray
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (130, ""), err
    assert err.startswith("Interrupted: 0 encoded, ")
    assert len(err.splitlines()) == 1
    assert files(tmp_path) == {}


def test_options_and_a_bad_image_are_as_in_a_local_run(head, images, tmp_path):
    (tmp_path / "in").mkdir()
    for number in (1, 5, 9):
        shutil.copy(images / f"{number:02}.png", tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    with Image.open(tmp_path / "in" / "01.png") as image:
        alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    alpha.save(tmp_path / "in" / "alpha.png")
    said = []
    for name, options in (("a", ()), ("b", ("--ray", head.address))):
        flags = ("--target-size", "900", "--background", "#204060", "--keep-extension", "--json")
        relative = ("encode", "in", "--output-dir", name, *flags, *options)
        said.append(run(*relative, cwd=tmp_path))
    assert [one.returncode for one in said] == [1, 1]
    assert said[0].stderr.splitlines()[:-1] == said[1].stderr.splitlines()[:-1]
    assert records(said[0].stdout) == records(said[1].stdout)
    assert [line["status"] for line in records(said[1].stdout)] == ["done", "done", "done", "done", "failed"]
    made = files(tmp_path / "b")
    assert made == files(tmp_path / "a")
    assert set(made) == {"01.png.tsr", "05.png.tsr", "09.png.tsr", "alpha.png.tsr"}
    assert all(len(data) <= 900 for data in made.values())


def test_decoding_draws_the_same_images(head, local, tmp_path):
    flags = ("--format", "webp", "--output-quality", "80", "--tokens", "300", "--json")
    (tmp_path / "in").mkdir()
    for number in (3, 4, 6):
        shutil.copy(local / f"{number:02}.tsr", tmp_path / "in")
    cut = (local / "07.tsr").read_bytes()[:200]
    (tmp_path / "in" / "cut.tsr").write_bytes(cut)
    alone = run("decode", tmp_path / "in", "--output-dir", tmp_path / "a", *flags)
    spread = run("decode", tmp_path / "in", "--output-dir", tmp_path / "b", *flags, "-v", "--ray", head.address)
    assert (alone.returncode, spread.returncode) == (1, 1)
    assert records(alone.stdout) == records(spread.stdout)
    assert "is cut short" in spread.stderr
    assert re.search(r"in a worker on \S+:\nTraceback ", spread.stderr)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "b")) == 3


def test_a_benchmark_has_the_same_numbers_and_the_same_cache(head, images, tmp_path):
    chosen = [images / f"{number:02}.png" for number in (2, 3)]
    flags = ("--codecs", "tessera,webp-scaled", "--bpp", "0.2", "--metrics", "psnr", "--no-speed", "--quiet")
    for name, options in (("a", ("-j", "1")), ("b", ("--ray", head.address))):
        said = run("bench", *chosen, *flags, "--csv", tmp_path / f"{name}.csv", "--cache", tmp_path / name, *options)
        assert (said.returncode, said.stderr) == (0, "")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    alone, spread = (Cache(tmp_path / name).all() for name in "ab")
    assert alone == spread
    assert len(spread) == 2 * (1 + len(SCALES))  # images, and scales of both codecs


def test_without_an_address_ray_starts_here(images, local, tmp_path):
    said = run("encode", images / "05.png", "-o", tmp_path / "a.tsr", "--ray", "-j", "1")
    assert (said.returncode, said.stdout) == (0, "")
    assert re.fullmatch(r"\S+05\.png -> \S+a\.tsr  .*  \d+ tokens per block  [\d.]+ s\n", said.stderr)
    assert (tmp_path / "a.tsr").read_bytes() == (local / "05.tsr").read_bytes()


SPREAD = """
import os, sys
from codec.parallel.ray_cluster import Cluster, run_on_cluster

class Task:
    def __init__(self, room):
        self.done = 0
    def do(self, items):
        for place, item in enumerate(items):
            if item == 3:
                os._exit(1)
            yield place, (item, os.getpid())
    def end(self):
        pass

told = {}
for place, result in run_on_cluster(list(range(8)), Task, Cluster(sys.argv[1], threads=int(sys.argv[2]))):
    assert place not in told
    told[place] = result
assert set(told) == set(range(8))
assert [told[place][0] for place in range(8) if place != 3] == [0, 1, 2, 4, 5, 6, 7]
print(told[3])
"""


def test_an_item_that_ends_its_workers_is_given_up(head):
    command = [sys.executable, "-c", SPREAD, head.address]
    said = subprocess.run([*command, "1"], capture_output=True, text=True, env=QUICK, timeout=PATIENCE, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("3 workers were lost with it: ")


def test_workers_for_which_there_is_no_room(head, images, tmp_path):
    said = run("encode", images / "01.png", "-o", tmp_path / "a.tsr", "--ray", head.address, "-j", "3")
    assert (said.returncode, said.stdout) == (2, "")
    told = "workers of 3 threads have room on no machine: the largest has 2 cores for Ray: lower -j"
    assert said.stderr == f"Error: {told}\n"
