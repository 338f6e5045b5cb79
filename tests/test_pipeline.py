"""The pipeline's promises: every job ends once, one bad image stops no other, memory is bounded, stages overlap."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from bitstream.container import read_file
from codec.errors import FormatError, ImageError
from codec.parallel.pipeline import Limits, Stages, decode_all, encode_all, overlap

CODEC: Any = SimpleNamespace(device="cpu")
PATIENCE = 20  # seconds until a test that hangs fails


def stages(
    read: Callable = lambda job, _: job,
    compute: Callable = lambda items: [2 * item for item in items],
    write: Callable = lambda job, item, made: made,
    alike: Callable = lambda _: 0,
) -> Stages:
    return Stages(read, compute, write, alike, lambda: CODEC)


def outcomes(jobs, made: Stages, limits: Limits | None = None) -> dict:
    """What became of each job: a result, or the text of an error."""
    ended = list(overlap(jobs, made, limits or Limits(threads=2)))
    assert sorted(outcome.job for outcome in ended) == sorted(jobs)
    return {outcome.job: str(outcome.error) if outcome.error else outcome.made for outcome in ended}


def test_every_job_goes_through_all_stages():
    assert outcomes(range(100), stages()) == {job: 2 * job for job in range(100)}
    assert outcomes([], stages()) == {}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_one_bad_job_stops_no_other(stage, batch):
    def bad(job: int) -> None:
        if job == 5:
            msg = "five"
            raise ImageError(msg)

    def compute(items: list[int]) -> list[int]:
        for item in items:
            if stage == "compute":
                bad(item)
        return [2 * item for item in items]

    made = stages(
        lambda job, _: bad(job) if job == 5 and stage == "read" else job,
        compute,
        lambda job, _, made: bad(job) if job == 5 and stage == "write" else made,
    )
    assert outcomes(range(20), made, Limits(2, batch)) == {job: "five" if job == 5 else 2 * job for job in range(20)}


def test_network_calls_see_images_that_are_alike_and_no_more_than_asked_for():
    seen = []

    def compute(items: list[int]) -> list[int]:
        seen.append(items)
        time.sleep(0.005)  # so that some are ready together
        return items

    outcomes(range(40), stages(compute=compute, alike=lambda item: item % 2), Limits(threads=2, batch=3))
    assert sorted(item for items in seen for item in items) == list(range(40))
    assert all(len(items) <= 3 and len({item % 2 for item in items}) == 1 for items in seen)
    assert any(len(items) == 3 for items in seen)


def test_stages_overlap():
    read, written = {job: threading.Event() for job in range(3)}, threading.Event()

    def reads(job: int, _: Any) -> int:
        read[job].set()
        return job

    def compute(items: list[int]) -> list[int]:
        if items == [0]:
            assert read[1].wait(PATIENCE)  # the second is read while the first is computed
        if items == [2]:
            assert written.wait(PATIENCE)  # and the first is written before the last is computed
        return items

    def write(job: int, *_: Any) -> int:
        written.set()
        return job

    assert outcomes(range(3), stages(reads, compute, write), Limits(threads=1, batch=1)) == {0: 0, 1: 1, 2: 2}


def test_pixels_in_memory_are_bounded():
    lock, inside, most = threading.Lock(), 0, 0
    sizes = [10, 40, 30, 100, 20, 250, 5, 60, 90, 10] * 5

    def read(job: int, admit: Callable[[int], None]) -> int:
        nonlocal inside, most
        admit(sizes[job])
        with lock:
            inside += sizes[job]
            others = inside - sizes[job]
            assert inside <= 100 or not others  # one that is larger than the room comes in alone
            most = max(most, inside)
        return job

    def write(job: int, *_: Any) -> int:
        nonlocal inside
        time.sleep(0.001)
        with lock:
            inside -= sizes[job]
        return job

    jobs = range(len(sizes))
    assert outcomes(jobs, stages(read, write=write), Limits(threads=4, pixels=100)) == {job: job for job in jobs}
    assert most == 250
    assert inside == 0


def test_slow_writing_holds_up_reading():
    read, release = [], threading.Event()

    def write(job: int, *_: Any) -> int:
        assert release.wait(PATIENCE)
        return job

    ended = overlap(range(1000), stages(lambda job, _: read.append(job) or job, write=write), Limits(threads=2, batch=1))
    threading.Timer(0.3, release.set).start()
    next(ended)
    assert len(read) < 50
    ended.close()


def test_who_stops_early_waits_for_nothing():
    begun, release = [], threading.Event()

    def read(job: int, admit: Callable[[int], None]) -> int:
        begun.append(job)
        admit(1)
        assert job == 0 or release.wait(PATIENCE)
        return job

    ended = overlap(range(1000), stages(read), Limits(threads=2, pixels=1))
    assert next(ended).job == 0
    start = time.perf_counter()
    ended.close()
    assert time.perf_counter() - start < 1
    release.set()
    time.sleep(0.1)
    assert len(begun) < 20


def test_lack_of_memory_is_told_as_such():
    def compute(_: list[int]) -> list[int]:
        msg = "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        raise RuntimeError(msg)

    (outcome,) = overlap([1], stages(compute=compute), Limits(threads=1))
    assert isinstance(outcome.error, MemoryError)


def test_torch_has_as_many_threads_afterwards_as_before():
    before = torch.get_num_threads()
    outcomes(range(8), stages())
    assert torch.get_num_threads() == before


def test_images_there_and_back_are_what_the_codec_makes(codec, photo, tmp_path):
    names = {"a.png": (40, 30), "b.png": (300, 200), "c.png": (30, 40), "d.png": (64, 64)}
    for number, (name, (width, height)) in enumerate(names.items()):
        photo.crop((9 * number, 0, 9 * number + width, height)).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    jobs, stored, drawn = [*names, "bad.png"], {}, {}

    def store(name: str, made: Any) -> None:
        stored[name] = made.data

    def keep(name: str, image: Image.Image) -> int:
        drawn[name] = image
        return 7

    ended = {
        outcome.job: outcome
        for outcome in encode_all(jobs, lambda: codec, lambda name: (tmp_path / name).read_bytes(), store, limits=Limits(2, 2))
    }
    assert set(ended) == set(jobs)
    assert isinstance(ended["bad.png"].error, ImageError)
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert stored[name] == codec.encode(image)
        assert ended[name].made.encoded.data == stored[name]
        assert ended[name].made.bytes_in == (tmp_path / name).stat().st_size
        assert ended[name].made.model == "standard"
        assert ended[name].seconds > 0
    stored["bad"] = b"not ours"
    for outcome in decode_all(list(stored), lambda: codec, stored.get, keep, tokens=9, limits=Limits(2, 2)):
        if outcome.job == "bad":
            assert isinstance(outcome.error, FormatError)
        else:
            alone = codec.decompress(stored[outcome.job], tokens=9)
            assert drawn[outcome.job].tobytes() == alone.image.tobytes()
            assert (outcome.made.bytes_out, outcome.made.block_tokens) == (7, alone.block_tokens)
            assert outcome.made.file == read_file(stored[outcome.job])


def test_larger_images_than_allowed_are_refused_before_they_are_read(codec, photo, tmp_path):
    photo.crop((0, 0, 40, 30)).save(tmp_path / "a.png")

    def run(**bounds: int) -> Exception | None:
        load = (tmp_path / "a.png").read_bytes
        (outcome,) = encode_all(["a"], lambda: codec, lambda _: load(), lambda *_: None, limits=Limits(**bounds))
        return outcome.error

    assert run(max_pixels=1200) is None
    assert "40x30 is 1,200 pixels, more than 1,199" in str(run(max_pixels=1199))


def test_the_benchmark_says_rates_shares_and_memory(photo, tmp_path, monkeypatch, capsys):
    from benchmarks.tools.pipeline import main

    for number in range(3):
        photo.crop((number, 0, number + 60, 40)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("sys.argv", ["pipeline", str(tmp_path), "--turn", "2", "--device", "cpu"])
    main()
    said = capsys.readouterr().out
    assert "3 images, 0.0 MP\n" in said
    for pattern in (
        r"network alone: +[\d.]+ MP/s",
        r"whole pipeline: +[\d.]+ MP/s",
        r"share: \d+% by the clock",
        r"memory: \d+ MB",
    ):
        assert re.search(pattern, said)
