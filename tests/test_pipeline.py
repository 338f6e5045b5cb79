"""The pipeline for many images: each ends once and gives what it gives alone, in bounded memory, with work overlapping."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from codec.codec import Codec
from codec.errors import FormatError, ImageError, TesseraError, UsageError
from codec.image.source import read_source
from codec.image.writing import image_format
from codec.parallel.pipeline import Item, Outcome, Resources, _Pipeline
from codec.pyramid import tokenizer
from codec.system.context import ImageProgress, report_progress
from codec.system.process import follow_context_threads

CODEC: Any = SimpleNamespace(device="cpu")
TIMEOUT = 20  # seconds until a test that hangs fails
SIZES = [(200, 150), (256, 256), (17, 250), (300, 256), (1, 1)]  # all but one on a canvas of one block


def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def compute_alone(value: int, item: Item) -> int:
    return item.compute(value, None)


def pipeline(
    process: Callable[[Any, Item], Any] = compute_alone,
    compute: Callable[[list[Any]], list[Any]] = double,
    resources: Resources | None = None,
    progress: Callable[[float], None] | None = None,
) -> _Pipeline[Any]:
    """A pipeline of numbers. A network pass takes half of the work on an image."""
    return _Pipeline(process, compute, CODEC, resources or Resources(threads=2), 2.0, progress)


def results(outcomes: Iterable[Outcome]) -> list[Any]:
    """The results, or the texts of the errors, in the order of the images, each of which must be there once."""
    ended = sorted(outcomes, key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in ended] == list(range(len(ended)))
    return [str(outcome.error) if outcome.error else outcome.result for outcome in ended]


# Made-up images


def test_every_image_ends_once():
    assert results(pipeline().run(range(100))) == [2 * value for value in range(100)]
    assert results(pipeline().run(iter(range(100)))) == [2 * value for value in range(100)]
    assert results(pipeline().run([])) == []


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("step", ["read", "compute", "write"])
def test_one_bad_image_stops_no_other(step, batch):
    def check(values: list[int], at: str) -> None:
        if 5 in values and at == step:
            msg = "five"
            raise ImageError(msg)

    def process(value: int, item: Item) -> int:
        check([value], "read")
        result = item.compute(value, None)
        check([value], "write")
        return result

    def compute(values: list[int]) -> list[int]:
        check(values, "compute")
        return double(values)

    ended = results(pipeline(process, compute, Resources(2, batch)).run(range(20)))
    assert ended == ["five" if value == 5 else 2 * value for value in range(20)]


def test_images_of_a_kind_share_network_calls():
    calls = []

    def compute(values: list[int]) -> list[int]:
        calls.append(values)
        time.sleep(0.005)  # so that several images wait
        return values

    results(pipeline(lambda value, item: item.compute(value, value % 2), compute, Resources(2, batch=3)).run(range(40)))
    assert sorted(value for values in calls for value in values) == list(range(40))
    assert all(len(values) <= 3 and len({value % 2 for value in values}) == 1 for values in calls)
    assert any(len(values) == 3 for values in calls)


def test_after_an_error_in_a_shared_call_each_image_is_tried_alone():
    read, calls = threading.Barrier(4), []

    def process(value: int, item: Item) -> int:
        read.wait(TIMEOUT)
        return item.compute(value, None)

    def compute(values: list[int]) -> list[int]:
        calls.append(sorted(values))
        if len(calls) == 1:
            time.sleep(0.2)  # the other three wait meanwhile
        if 3 in values or len(values) > 1:
            raise ValueError(values)
        return values

    ended = results(pipeline(process, compute, Resources(1, batch=4)).run(range(4)))
    assert ended == [0, 1, 2, "[3]"]
    assert max(map(len, calls)) > 1
    assert all([value] in calls for value in range(4))


def test_reading_network_and_writing_overlap():
    read, written = {value: threading.Event() for value in range(3)}, threading.Event()

    def process(value: int, item: Item) -> int:
        read[value].set()
        result = item.compute(value, None)
        written.set()
        return result

    def compute(values: list[int]) -> list[int]:
        if values == [0]:
            assert read[1].wait(TIMEOUT)  # the second is read while the first is computed
        if values == [2]:
            assert written.wait(TIMEOUT)  # and the first is written before the last is computed
        return double(values)

    assert results(pipeline(process, compute, Resources(threads=1, batch=1)).run(range(3))) == [0, 2, 4]


def test_pixels_in_memory_are_bounded():
    lock, inside, largest = threading.Lock(), 0, 0
    sizes = [10, 40, 30, 100, 20, 250, 5, 60, 90, 10] * 5

    def process(pixels: int, item: Item) -> int:
        nonlocal inside, largest
        item.enter(pixels)
        with lock:
            inside += pixels
            assert inside <= 100 or inside == pixels  # an image that is larger than the budget comes in alone
            largest = max(largest, inside)
        return item.compute(pixels, None)

    ended = []
    for outcome in pipeline(process, resources=Resources(threads=4, pixels=100)).run(sizes):
        with lock:
            inside -= sizes[outcome.index]  # its memory is free once the next outcome is asked for
        ended.append(outcome)
    assert results(ended) == double(sizes)
    assert largest == 250


def test_a_slow_caller_holds_up_reading():
    read: list[int] = []
    values = iter(range(1000))
    outcomes = pipeline(lambda value, item: read.append(value) or value, resources=Resources(2, batch=1)).run(values)
    next(outcomes)
    time.sleep(0.3)
    assert len(read) < 50
    assert next(values) < 50
    outcomes.close()


def test_a_caller_that_stops_early_waits_for_nothing():
    begun, release = [], threading.Event()

    def process(value: int, item: Item) -> int:
        begun.append(value)
        item.enter(1)  # the first three; the others wait for memory
        if value == 1:
            release.wait(TIMEOUT)
        return item.compute(value, None) if value else value

    def compute(values: list[int]) -> list[int]:
        release.wait(TIMEOUT)
        return values

    outcomes = pipeline(process, compute, Resources(threads=2, pixels=3)).run(range(1000))
    assert next(outcomes).index == 0
    start = time.perf_counter()
    outcomes.close()
    assert time.perf_counter() - start < 1
    release.set()
    time.sleep(0.1)
    assert len(begun) < 20


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 B"),
    ],
)
def test_errors_of_memory_have_one_type(error):
    def compute(_: list[int]) -> list[int]:
        raise error

    (outcome,) = pipeline(compute=compute).run([1])
    assert isinstance(outcome.error, MemoryError)


def test_seconds_are_those_of_work_alone():
    """Images wait for each other here, at the network or for memory, so their work takes as long as the run."""

    def compute(values: list[int]) -> list[int]:
        time.sleep(0.1)
        return values

    def alone(value: int, item: Item) -> int:
        item.enter(1)
        time.sleep(0.1)
        return value

    for made in (pipeline(compute=compute, resources=Resources(1, 1)), pipeline(alone, resources=Resources(4, pixels=1))):
        start = time.perf_counter()
        seconds = [outcome.seconds for outcome in made.run(range(5))]
        assert min(seconds) >= 0.1
        assert sum(seconds) < 1.5 * (time.perf_counter() - start)


def test_progress_adds_up_to_what_outcomes_report():
    shares: list[float] = []

    def compute(values: list[int]) -> list[int]:
        for _ in range(values[0]):
            report_progress(0.5)
        return values

    outcomes = list(pipeline(compute=compute, resources=Resources(1, 1), progress=shares.append).run(range(10)))
    for outcome in outcomes:
        assert outcome.reported == pytest.approx(min(ImageProgress.MAX_REPORTED, outcome.index / 4))
    assert sum(shares) == pytest.approx(sum(outcome.reported for outcome in outcomes))


@pytest.mark.parametrize(
    ("jobs", "images", "pixels", "threads"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 2),
        (2, 8, 1, 1),  # two network calls at once
        (2, 8, 60, 2),  # each more than half of the memory
        (9, 1, 1, 3),  # as many as torch has
    ],
)
def test_jobs_limit_the_threads_of_the_network(jobs, images, pixels, threads):
    def process(value: int, item: Item) -> int:
        item.enter(pixels)
        return item.compute(value, None)

    def compute(values: list[int]) -> list[int]:
        follow_context_threads()
        return [torch.get_num_threads()] * len(values)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ended = results(pipeline(process, compute, Resources(jobs, pixels=100)).run(range(images)))
        with ThreadPoolExecutor(1) as pool:  # a new thread has the number that was set last in any thread
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert ended == [threads] * images


# Real images


@pytest.fixture(scope="module")
def images(photo) -> list[Image.Image]:
    return [photo.crop((40 * i, 30, 40 * i + width, 30 + height)) for i, (width, height) in enumerate(SIZES)]


def test_many_images_are_encoded_and_decoded_as_each_alone(codec, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    inputs = [tmp_path / "a.png", images[1], tmp_path / "bad.png", np.asarray(images[2]), tmp_path / "none.png", images[3]]
    encoded = sorted(codec.encode_all(inputs, resources=Resources(2), tokens=50), key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in encoded] == list(range(len(inputs)))
    assert [type(outcome.error) is not type(None) for outcome in encoded] == [False, False, True, False, True, False]
    assert all(isinstance(outcome.error, TesseraError) for outcome in encoded if outcome.error)
    for outcome, image in zip([encoded[0], encoded[1], encoded[3], encoded[5]], images, strict=False):
        assert outcome.result == codec.encode(image, tokens=50)
        assert outcome.seconds > 0

    files = [outcome.result.data if outcome.result else b"not a file of ours" for outcome in encoded]
    for outcome in codec.decode_all(files, save_as=image_format(".png"), resources=Resources(2), tokens=9):
        if outcome.index in (2, 4):
            assert isinstance(outcome.error, FormatError)
            continue
        alone = codec.decode(files[outcome.index], tokens=9)
        with Image.open(io.BytesIO(outcome.result.data)) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), np.asarray(alone.image))
        read = outcome.result
        assert (read.file, read.block_tokens, read.partial, read.model) == (alone.file, alone.block_tokens, False, alone.model)


def test_targets_that_decode_are_met_in_a_pipeline(codec, images):
    small = [image.crop((0, 0, 64, 48)) for image in images[:2]]
    for outcome in codec.encode_all(small, resources=Resources(2), target_psnr=24):
        assert outcome.result == codec.encode(small[outcome.index], target_psnr=24)


def test_a_background_is_laid_under_every_image(codec, images):
    clear = images[0].copy()
    clear.putalpha(0)
    (outcome,) = codec.decode_all([codec.encode(clear).data], save_as=image_format(".jpg"), background="#0000ff")
    with Image.open(io.BytesIO(outcome.result.data)) as image:
        assert np.abs(np.asarray(image).astype(int) - (0, 0, 255)).max() <= 3


def test_larger_images_than_allowed_are_refused_before_their_pixels_are_read(photo, tmp_path):
    photo.crop((0, 0, 40, 30)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("r+b") as file:
        file.truncate(60)  # pixels cannot be read
    for max_pixels, advice in ((1200, ("allow_damaged",)), (1199, ("max_pixels",))):
        (outcome,) = Codec(device="cpu", max_pixels=max_pixels).encode_all([tmp_path / "a.png"])
        assert isinstance(outcome.error, ImageError)
        assert outcome.error.advice == advice


@pytest.mark.parametrize("value", [np.zeros(3, np.uint8), np.zeros((), np.uint8), np.zeros((4, 4)), 3])
def test_errors_have_the_type_that_encode_raises(codec, value):
    (outcome,) = codec.encode_all([value])
    with pytest.raises(TesseraError) as caught:
        codec.encode(value)
    assert type(outcome.error) is caught.type


def test_images_are_read_only_as_far_as_needed(codec, images):
    read = []
    endless = (read.append(1) or images[2] for _ in iter(int, 1))
    outcomes = codec.encode_all(endless, resources=Resources(threads=1, batch=1), tokens=1)
    assert [next(outcomes).error for _ in range(3)] == [None] * 3
    outcomes.close()
    assert len(read) < 20


def test_wrong_options_are_an_error_before_any_work(codec):
    with pytest.raises(UsageError):
        codec.encode_all([], quality=101)
    with pytest.raises(UsageError):
        codec.decode_all([], save_as=image_format(".png"), tokens=0)
    with pytest.raises(TypeError):
        codec.encode_all([], speed=1)


def test_progress_moves_within_an_image(images):
    tiled = Codec(device="cpu", tile=32)
    image = images[0].crop((0, 0, 64, 48))

    def moves(effort: int) -> list[float]:
        shares: list[float] = []
        (outcome,) = tiled.encode_all([image], resources=Resources(1), progress=shares.append, effort=effort)
        assert outcome.error is None
        assert sum(shares) == pytest.approx(outcome.reported)
        assert 0 < sum(shares) < 1
        return shares

    assert len(moves(3)) >= 6  # tiles
    assert len(moves(5)) > len(moves(4)) > len(moves(3))  # steps
    shares: list[float] = []
    files = [tiled.encode(image).data]
    (outcome,) = tiled.decode_all(files, save_as=image_format(".png"), resources=Resources(1), progress=shares.append)
    assert len(shares) >= 6
    assert sum(shares) == pytest.approx(outcome.reported)


# Several images in one network call


def test_images_tokenized_together_have_the_tokens_of_each_alone(codec, images):
    alone = [codec.tokenize([image])[0] for image in images]
    together = codec.tokenize([read_source(image) for image in images])
    for (width, height), one, shared in zip(SIZES, alone, together, strict=True):
        assert (shared.layout.width, shared.layout.height) == (width, height)
        digits = [np.concatenate([level.ravel() for level in sequence.symbols]) for sequence in (one, shared)]
        assert digits[0].shape == digits[1].shape
        assert (digits[0] != digits[1]).mean() <= 1e-4  # the rounding of a float may change a digit


def test_images_detokenized_together_have_the_pixels_of_each_alone(codec, images):
    qualities = (0, 30, 50, 80, 100)
    files = [codec.encode(image, quality=quality).data for image, quality in zip(images, qualities, strict=True)]
    stored = [codec.read(file) for file in files]
    for file, shared in zip(stored, codec.detokenize(stored), strict=True):
        (alone,) = codec.detokenize([file])
        assert alone.shape == shared.shape
        assert np.abs(alone.astype(int) - shared).max() <= 1
    assert codec.detokenize([]) == codec.tokenize([]) == []


def test_images_of_similar_size_share_calls_and_keep_their_order(codec, images, monkeypatch):
    calls = []
    encode = tokenizer.encode_pixels
    monkeypatch.setattr(tokenizer, "encode_pixels", lambda *values: calls.append(len(values[1])) or encode(*values))
    order = [0, 3, 1, 3, 2]
    sequences = codec.tokenize([images[index] for index in order], tokens=20)
    assert [sequence.layout.width for sequence in sequences] == [SIZES[index][0] for index in order]
    assert calls == [3, 2]


def test_the_pixels_of_a_call_are_bounded(codec, monkeypatch):
    monkeypatch.setattr(tokenizer, "UNTILED_PIXELS", 3 * 65536)
    layouts = [codec.model.code.layout(256, side) for side in (256, 256, 256, 300, 256, 1500)]
    assert tokenizer.group_by_canvas(layouts) == [[0, 1, 2], [4], [3], [5]]
