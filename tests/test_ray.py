"""`--ray`: the same files, records and exit codes as without it, from workers that may be lost."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from PIL import Image

from benchmarks.cache import Cache
from benchmarks.codecs.base import SCALES
from tests.helpers.commands import SURROUNDINGS, TIMEOUT, files_below, finish, records, start, wait_for_outputs

pytestmark = pytest.mark.ray
COUNT = 24
WITH_TOKEN = {**SURROUNDINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
HEAD = """
import sys, ray
options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20, "logging_level": "CRITICAL"}
print(ray.init("local", **options).address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


class Head:
    """A cluster of one machine, with two cores."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", HEAD]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=WITH_TOKEN, **pipes)
        self.address = self.process.stdout.readline().strip()

    def workers(self) -> list[psutil.Process]:
        """Processes of workers that are at work: Ray names them by their method."""
        workers = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                workers += [process] if process.cmdline()[:1] == ["ray::Worker.work"] else []
            except psutil.Error:  # it ended meanwhile
                continue
        return workers


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    try:
        yield head
    finally:
        head.process.communicate(timeout=TIMEOUT)  # it ends with its input


def with_ray(head: Head, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return finish(*arguments, "--ray", head.address, env=WITH_TOKEN, **options)


def start_with_ray(head: Head, *arguments: object) -> subprocess.Popen[str]:
    return start(*arguments, "--ray", head.address, env=WITH_TOKEN)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def alike(outcome: subprocess.CompletedProcess[str]) -> list[dict]:
    """Records in the order of their inputs, without what differs between runs."""
    ordered = sorted(records(outcome), key=lambda record: record["input"])
    return [{key: value for key, value in record.items() if key not in ("seconds", "output")} for record in ordered]


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
    """Their .tsr files, from a run without Ray."""
    out = tmp_path_factory.mktemp("local")
    assert finish("encode", "-r", images, "--output-dir", out).returncode == 0
    return out


def test_a_lost_worker_loses_nothing(head, images, local, tmp_path):
    with start_with_ray(head, "encode", "-r", images, "--output-dir", tmp_path, "-j", "1", "--json") as running:
        wait_for_outputs(tmp_path, 3, running)
        workers = head.workers()
        assert len(workers) == 2
        workers[0].kill()
        assert len(list(tmp_path.rglob("*.tsr"))) < COUNT - 2
        out, errors = running.communicate(timeout=TIMEOUT)
    assert running.returncode == 0, errors
    outcome = subprocess.CompletedProcess([], 0, out)
    assert [record["status"] for record in records(outcome)] == ["done"] * COUNT
    assert len({record["input"] for record in records(outcome)}) == COUNT
    assert contents(tmp_path) == contents(local)


def test_an_interrupt_leaves_complete_files_and_no_others(head, images, local, tmp_path):
    with start_with_ray(head, "encode", "-r", images, "--output-dir", tmp_path, "-j", "1") as running:
        wait_for_outputs(tmp_path, 2, running)
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, out) == (130, ""), errors
    assert "Traceback" not in errors
    written = contents(tmp_path)
    assert 2 <= len(written) < COUNT
    assert written.items() < contents(local).items()
    reported = {line.split(" -> ")[0] for line in errors.splitlines()[:-1]}

    outcome = with_ray(head, "encode", "-r", images, "--output-dir", tmp_path, "--skip-existing", "--json")
    assert outcome.returncode == 0
    skipped = {record["input"] for record in records(outcome) if record["status"] == "skipped"}
    assert reported <= skipped
    assert len(skipped) == len(written)
    assert contents(tmp_path) == contents(local)


def test_an_interrupt_before_the_first_image(head, images, tmp_path):
    with start_with_ray(head, "encode", images, "--output-dir", tmp_path, "-e", "9", "-j", "2") as running:
        end = time.monotonic() + TIMEOUT
        while not head.workers():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(2)  # until it waits for a result, within Ray
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, out, errors.count("\n")) == (130, "", 1), errors
    assert files_below(tmp_path) == set()


def test_options_and_a_bad_image_are_as_in_a_local_run(head, images, tmp_path):
    (tmp_path / "in").mkdir()
    for number in (1, 5, 9):
        shutil.copy(images / f"{number:02}.png", tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    with Image.open(tmp_path / "in" / "01.png") as image:
        alpha = image.copy()
        alpha.putalpha(image.convert("L"))
    alpha.save(tmp_path / "in" / "alpha.png")
    options = ("--target-size", "900", "--background", "#204060", "--keep-extension", "--json")
    alone = finish("encode", "in", "--output-dir", "a", *options, cwd=tmp_path)
    spread = with_ray(head, "encode", "in", "--output-dir", "b", *options, cwd=tmp_path)
    assert alone.returncode == spread.returncode == 1
    assert alone.stderr.splitlines()[:-1] == spread.stderr.splitlines()[:-1]
    assert alike(alone) == alike(spread)
    assert [record["status"] for record in alike(spread)] == ["done", "done", "done", "done", "failed"]
    written = contents(tmp_path / "b")
    assert written == contents(tmp_path / "a")
    assert set(written) == {"01.png.tsr", "05.png.tsr", "09.png.tsr", "alpha.png.tsr"}
    assert all(len(data) <= 900 for data in written.values())


def test_decoding_gives_the_same_images(head, local, tmp_path):
    options = ("--format", "webp", "--output-quality", "80", "--tokens", "300", "--json")
    (tmp_path / "in").mkdir()
    for number in (3, 4, 6):
        shutil.copy(local / f"{number:02}.tsr", tmp_path / "in")
    (tmp_path / "in" / "cut.tsr").write_bytes((local / "07.tsr").read_bytes()[:200])
    alone = finish("decode", tmp_path / "in", "--output-dir", tmp_path / "a", *options)
    spread = with_ray(head, "decode", tmp_path / "in", "--output-dir", tmp_path / "b", *options, "-v")
    assert alone.returncode == spread.returncode == 1
    assert alike(alone) == alike(spread)
    assert "Traceback" in spread.stderr
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "b")) == 3


def test_a_reference_is_used_as_in_a_local_run(head, images, tmp_path):
    (tmp_path / "in").mkdir()
    for number in (2, 3, 4):
        shutil.copy(images / f"{number:02}.png", tmp_path / "in")
    assert finish("encode", "in/02.png", "-q", "70", "-o", "first.tsr", cwd=tmp_path).returncode == 0
    for folder, convert in ("a", finish), ("b", partial(with_ray, head)):
        outcome = convert("encode", "in", "--reference", "first.tsr", "--output-dir", folder, "--json", cwd=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
        assert [record["reference"] for record in records(outcome)] == ["first.tsr"] * 3
        outcome = convert("decode", folder, "--reference", "first.tsr", "--output-dir", f"{folder}-images", cwd=tmp_path)
        assert outcome.returncode == 0, outcome.stderr
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a-images") == contents(tmp_path / "b-images")
    assert len(contents(tmp_path / "b-images")) == 3


def test_a_benchmark_has_the_same_numbers_and_the_same_cache(head, images, tmp_path):
    chosen = [images / f"{number:02}.png" for number in (2, 3)]
    bench = ("bench", *chosen, "--codecs", "tessera,webp-scaled", "--bpp", "0.2", "--metrics", "psnr", "--no-speed", "--quiet")
    outcomes = [
        finish(*bench, "--csv", tmp_path / "a.csv", "--cache", tmp_path / "a", "-j", "1"),
        with_ray(head, *bench, "--csv", tmp_path / "b.csv", "--cache", tmp_path / "b"),
    ]
    assert [(outcome.returncode, outcome.stderr) for outcome in outcomes] == [(0, "")] * 2
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    alone, spread = (Cache(tmp_path / name).all() for name in "ab")
    assert alone == spread
    assert len(spread) == 2 * (1 + len(SCALES))  # images, and scales of both codecs


def test_without_an_address_ray_starts_here(images, local, tmp_path):
    outcome = finish("encode", images / "05.png", "-o", tmp_path / "a.tsr", "--ray", "-j", "1", env=WITH_TOKEN)
    assert (outcome.returncode, outcome.stdout) == (0, "")
    assert re.fullmatch(r"\S+05\.png -> \S+a\.tsr  .+\n", outcome.stderr)
    assert (tmp_path / "a.tsr").read_bytes() == (local / "05.tsr").read_bytes()


RUN = """
import os, sys
from codec.errors import TesseraError
from codec.parallel.ray_cluster import Cluster, run_on_cluster

class Task:
    def __init__(self, resources):
        pass
    def do(self, items):
        for index, item in enumerate(items):
            if item == 3:
                os._exit(1)
            yield index, 10 * item
    def end(self):
        pass

results = list(run_on_cluster(list(range(8)), Task, Cluster(sys.argv[1], threads=1)))
assert sorted(index for index, _ in results) == list(range(8))
results = dict(results)
assert isinstance(results.pop(3), TesseraError)
assert results == {item: 10 * item for item in results}
"""


def test_an_item_that_ends_its_workers_is_given_up(head):
    command = [sys.executable, "-c", RUN, head.address]
    outcome = subprocess.run(command, capture_output=True, text=True, env=WITH_TOKEN, timeout=TIMEOUT, check=False)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


def test_workers_for_which_there_is_no_room(head, images, tmp_path):
    outcome = with_ray(head, "encode", images / "01.png", "-o", tmp_path / "a.tsr", "-j", "3")
    assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (2, "", 1)
    assert not (tmp_path / "a.tsr").exists()


LISTENING = """
import psutil
from codec.parallel.ray_cluster import LOCAL, _connected
with _connected(LOCAL):
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                print(connection.laddr.ip)
"""


def test_a_local_cluster_listens_on_loopback_alone():
    outcome = subprocess.run(
        [sys.executable, "-c", LISTENING], env=SURROUNDINGS, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert {address.removeprefix("::ffff:") for address in outcome.stdout.split()} <= {"127.0.0.1", "::1"}
    assert len(outcome.stdout.split()) > 1
