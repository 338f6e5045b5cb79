"""Many images in bounded memory: reading, network and writing overlap.

One thread takes each image through the steps of `Codec.encode` or `Codec.decode`. Threads share a memory budget, reserved once
an image's size is known, and the network, run by a few dedicated threads. On a GPU, images of similar size share a network
call.

NumPy's own threads slow these down: set OPENBLAS_NUM_THREADS to 1 before NumPy is imported.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psutil
from numpy import ndarray

from bitstream.block_order import blocks_of
from codec.image.opening import ImageInput, open_input
from codec.image.source import Source, read_source, restore_image
from codec.image.writing import ImageFormat
from codec.options import DEFAULT_EFFORT, REFINEMENT_STEPS, DecodeOptions, EncodeOptions
from codec.rate_control import Target
from codec.reading import read_tsr
from codec.results import Decoded, DecodedFile, Encoded
from codec.system.context import DECODE_PASSES, ImageProgress, ProgressListener, encode_passes, network_context
from codec.system.inputs import FileInput, folder_of
from codec.system.process import process_threads, set_torch_threads

if TYPE_CHECKING:
    from codec.codec import Codec

Result = TypeVar("Result", covariant=True)

PIXEL_BYTES = 60  # memory per pixel while coding
REFINING_FACTOR = 7  # times the memory with gradients, for an effort above the default
MAX_PIXELS_AT_ONCE = 32_000_000  # more pixels do not make the network faster
BATCH_PIXELS = 512 * 512  # typical size of an image in a batch
MAX_NETWORK_THREADS = 4  # concurrent network calls on a CPU: several calls on few cores wait less than one call on many
CPU_BATCH = 1  # images per network call on a CPU; larger batches overflow the cache and were 5 to 10 % slower


@dataclass(frozen=True)
class Resources:
    """Limits on concurrent work. None: chosen by device and memory."""

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    batch: int | None = None  # images per network call
    pixels: int | None = None  # total size of the images in memory; a larger image is coded alone


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """The outcome for one image. Exactly one of `result` and `error` is set."""

    index: int  # position of the image in the input
    result: Result | None
    error: Exception | None
    seconds: float  # processing time, without waits for memory or the network
    reported: float = 0.0  # share of the image that was reported as progress


def pixels_at_once(memory_share: float = 1.0) -> int:
    """Pixels that may be in memory: at most a quarter of it, or of a share of it."""
    return min(MAX_PIXELS_AT_ONCE, int(memory_share * psutil.virtual_memory().total) // 4 // PIXEL_BYTES)


def encode_all(
    codec: Codec,
    images: Iterable[ImageInput],
    options: EncodeOptions,
    resources: Resources | None = None,
    progress: ProgressListener | None = None,
) -> Iterator[Outcome[Encoded]]:
    """The pipeline of `Codec.encode_all`."""
    decodes = Target.of(options).searched or options.get("reference") is not None
    factor = REFINING_FACTOR if options.get("effort", DEFAULT_EFFORT) in REFINEMENT_STEPS else 1

    def compute(sources: list[Source]) -> list[Any]:
        sequences = codec.tokenize(sources, **options)
        if decodes:
            return [codec.write(*pair, **options) for pair in zip(sequences, sources, strict=True)]
        return sequences

    def process(image: ImageInput, item: Item) -> Encoded:
        opened = open_input(image, codec.max_pixels, options.get("allow_damaged", False))
        height, width = opened.shape[:2] if isinstance(opened, ndarray) else opened.size[::-1]
        item.enter(factor * width * height)
        source = read_source(opened, options, codec.max_pixels)
        del opened  # with its pixels
        computed = item.compute(source, blocks_of(width, height))
        return computed if decodes else codec.write(computed, source, **options)

    return _Pipeline(process, compute, codec, resources or Resources(), encode_passes(options), progress).run(images)


def decode_all(
    codec: Codec,
    files: Iterable[FileInput],
    options: DecodeOptions,
    save_as: ImageFormat,
    background: str | None = None,
    resources: Resources | None = None,
    progress: ProgressListener | None = None,
) -> Iterator[Outcome[DecodedFile]]:
    """The pipeline of `Codec.decode_all`, the inverse of `encode_all`."""

    def process(file: FileInput, item: Item) -> DecodedFile:
        parsed = read_tsr(file, codec.max_pixels)
        item.enter(parsed.width * parsed.height)
        stored = codec.read(parsed, folder_of(file), **options)
        pixels = item.compute(stored, (parsed.stream_id, blocks_of(parsed.width, parsed.height)))
        image = restore_image(pixels, parsed)
        return Decoded(parsed, stored.block_tokens, stored.model.name, image).as_file(save_as, background)

    return _Pipeline(process, codec.detokenize, codec, resources or Resources(), DECODE_PASSES, progress).run(files)


class _MemoryBudget:
    """Limits the pixels in memory. An image larger than the limit is admitted alone."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, pixels: int) -> None:
        """Waits for room. Raises CancelledError once the budget is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._used or self._used + pixels <= self._pixels)
            if self._closed:
                raise CancelledError
            self._used += pixels

    def release(self, pixels: int) -> None:
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Item:
    """An image on its way through a pipeline."""

    def __init__(self, pipeline: _Pipeline[Any], index: int) -> None:
        self._pipeline = pipeline
        self.index = index
        self.pixels = 0  # reserved memory
        self.seconds = 0.0  # processing time
        self.progress = ImageProgress(pipeline.passes, pipeline.progress)

    def enter(self, pixels: int) -> None:
        """Waits until there is memory for `pixels`."""
        start = time.perf_counter()
        self._pipeline.budget.acquire(pixels)
        self.seconds -= time.perf_counter() - start
        self.pixels = pixels

    def compute(self, value: Any, kind: Hashable) -> Any:
        """Waits for the network's result. Images of one `kind` may share a network call."""
        start = time.perf_counter()
        request = _Request(self, value, kind)
        self._pipeline.network.submit(request)
        result, seconds = request.future.result()
        self.seconds += seconds - (time.perf_counter() - start)
        return result


@dataclass(eq=False)
class _Request:
    """A request for the network."""

    item: Item
    value: Any
    kind: Hashable
    future: Future[tuple[Any, float]] = field(default_factory=Future)  # the result, and its share of the seconds of the call


class _Network:
    """Threads that run the network for all images: one on a GPU, and on a CPU a few that share its cores."""

    def __init__(
        self, compute: Callable[[list[Any]], list[Any]], device: str, resources: Resources, pixels: int, images: int | None
    ) -> None:
        self._compute = compute
        self._process_threads = process_threads()
        self._cores = min(self._process_threads, resources.threads)
        self.count = min(self._cores, MAX_NETWORK_THREADS, images or MAX_NETWORK_THREADS) if device == "cpu" else 1
        self.batch = resources.batch or (CPU_BATCH if device == "cpu" else _gpu_batch(device))
        self._large = pixels // 2
        self._pool = ThreadPoolExecutor(self.count, "network")
        self._requests: list[_Request] = []
        self._lock = threading.Lock()

    def submit(self, request: _Request) -> None:
        with self._lock:
            self._requests.append(request)
        self._pool.submit(self._run_next)

    def _run_next(self) -> None:
        """Takes the image that has waited longest, and others of its kind, through one network call."""
        with self._lock:
            if not self._requests:  # another call has taken the request
                return
            kind = self._requests[0].kind
            group = [request for request in self._requests if request.kind == kind][: self.batch]
            self._requests = [request for request in self._requests if request not in group]
        self._run(group)

    def _run(self, group: list[_Request]) -> None:
        large = sum(request.item.pixels for request in group) > self._large  # no other large image fits into memory
        threads = self._cores if large else self._cores // self.count

        def report(passes: float) -> None:
            for request in group:
                request.item.progress(passes)

        start = time.perf_counter()
        try:
            with network_context(threads, report):
                results = self._compute([request.value for request in group])
        except Exception as error:
            if len(group) > 1:  # one image is the cause: run each alone
                for request in group:
                    self._run([request])
            elif type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(
                error
            ):  # torch's, on CUDA and elsewhere
                group[0].future.set_exception(MemoryError())
            else:
                group[0].future.set_exception(error)
            return
        seconds = (time.perf_counter() - start) / len(group)
        for request, result in zip(group, results, strict=True):
            request.future.set_result((result, seconds))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for request in self._requests:
                request.future.set_exception(CancelledError())
            self._requests = []
        set_torch_threads(self._process_threads)


class _Pipeline(Generic[Result]):
    """Threads that take images through all steps."""

    def __init__(
        self,
        process: Callable[[Any, Item], Result],
        compute: Callable[[list[Any]], list[Any]],
        codec: Codec,
        resources: Resources,
        passes: float,
        progress: ProgressListener | None,
    ) -> None:
        self._process = process
        self._compute = compute
        self._codec = codec
        self._resources = resources
        self.passes = passes
        self.progress = progress

    def run(self, inputs: Iterable[Any]) -> Iterator[Outcome[Result]]:
        """Yields outcomes as they complete. A caller that stops early waits for nothing."""
        pixels = self._resources.pixels or pixels_at_once()
        count = len(inputs) if isinstance(inputs, Sized) else None
        self.budget = _MemoryBudget(pixels)
        self.network = _Network(self._compute, self._codec.device, self._resources, pixels, count)
        # An image waits for the network in its thread. One image more than network calls keeps all of them busy on a CPU; a GPU
        # takes the next batch while others are read and written.
        in_flight = self.network.count + 1 if self.network.batch == 1 else 2 * self.network.count * self.network.batch
        threads = max(self._resources.threads, in_flight)
        pool = ThreadPoolExecutor(threads, "image")
        running: dict[Future[Result], Item] = {}
        entries = enumerate(inputs)
        try:
            while True:
                while len(running) < threads and (entry := next(entries, None)):
                    item = Item(self, entry[0])
                    running[pool.submit(self._timed, entry[1], item)] = item
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item, error = running.pop(future), future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield Outcome(item.index, None if error else future.result(), error, item.seconds, item.progress.reported)
                    self.budget.release(item.pixels)
        finally:
            self.budget.close()
            self.network.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, value: Any, item: Item) -> Result:
        start = time.perf_counter()
        try:
            return self._process(value, item)
        finally:
            item.seconds += time.perf_counter() - start


def _gpu_batch(device: str) -> int:
    """Images per network call that fit a quarter of a GPU's free memory."""
    import torch

    return min(32, max(1, torch.cuda.mem_get_info(device)[0] // 4 // (PIXEL_BYTES * BATCH_PIXELS)))
