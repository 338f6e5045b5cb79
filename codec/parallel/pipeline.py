"""Many images: reading, network, coding and writing overlap, in bounded memory.

Three stages, each with threads of its own. *Reading* makes of a job what the network wants. *Computing* is the network's part
and sees several images at once. *Writing* makes bytes of tokens, or an image of pixels, and stores them. The caller's
thread only hands jobs on, so that it can answer a signal at once.

    for outcome in encode_all(names, lambda: codec, load, store, limits=Limits(threads=4)):
        ...  # outcome.job, outcome.made or outcome.error, in the order in which they are finished

NumPy's own threads only get in the way of these: set OPENBLAS_NUM_THREADS to 1 before NumPy is imported.

One bad image does not stop the rest: its outcome carries the error. Whoever reads the outcomes may stop at any of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import psutil

from bitstream.block_order import blocks_of
from bitstream.container import File, read_file
from codec.errors import TesseraError
from codec.image.reading import MAX_PIXELS, check_size, open_image
from codec.rate_control import DEFAULT_EFFORT, DEFAULT_TARGET, Target, steps_of_effort
from codec.results import Encoded, ImageOptions, Prepared, Read
from codec.system.context import ProgressListener, network_context
from codec.system.process import process_threads, set_torch_threads

if TYPE_CHECKING:
    from PIL import Image

    from codec.codec import Codec

Job = TypeVar("Job")
Result = TypeVar("Result")
Admit: TypeAlias = Callable[[int], None]

PIXEL_BYTES = 60  # that coding an image takes, about, for each of its pixels
REFINING = 7  # times as much, where an effort asks for gradients
ROOM = 32_000_000  # pixels in memory at once where there is memory enough
SMALL = 512 * 512  # pixels of an image that batches are thought for
ENCODING, DECODING = 2, 1.2  # what coding an image costs, about, in passes over it; levels are not reported
SEARCH = 9  # passes, about, that looking for a target of quality takes
MOST = 0.95  # of an image, at most, that is reported as done before it is
WORKERS = 4  # network calls at once on a CPU, at most: on few threads each they wait less for each other than one on many
CPU_BATCH = 1  # images per network call there: more were 5 to 10 % slower, since they leave the cache


@dataclass(frozen=True)
class Limits:
    """How much is done at once. What is None is picked from device and memory."""

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # that read, as many that write, as many for the network
    batch: int | None = None  # images per network call
    pixels: int | None = None  # in memory; an image that is larger comes in alone
    max_pixels: int = MAX_PIXELS  # larger images are refused


@dataclass(frozen=True)
class Outcome(Generic[Job, Result]):
    """How a job ended: exactly one of `made` and `error` is there."""

    job: Job
    made: Result | None
    error: Exception | None
    seconds: float  # of work: reading, its share of the network calls that it was in, writing
    reported: float = 0.0  # of the image, to whoever watches the progress


@dataclass(frozen=True)
class Compressed:
    """An image that was encoded and stored."""

    encoded: Encoded
    bytes_in: int
    model: str  # its name


@dataclass(frozen=True)
class Decompressed:
    """A file that was decoded and stored as an image."""

    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    partial: bool  # tokens were missing because the file is cut
    model: str  # its name
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True)
class Stages(Generic[Job, Result]):
    """What is done to a job. `read` calls `admit` with an image's pixels before it makes them."""

    read: Callable[[Job, Admit], Any]
    compute: Callable[[list[Any]], list[Any]]  # several images -> as many results
    write: Callable[[Job, Any, Any], Result]  # the job, what was read, what was computed
    alike: Callable[[Any], Hashable]  # images for which it is equal can share a network call
    codec: Callable[[], Codec]
    passes: float = 1.0  # of the network over an image, about


def encode_all(
    jobs: Sequence[Job],
    codec: Callable[[], Codec],
    load: Callable[[Job], bytes],
    store: Callable[[Job, Encoded], object],
    *,
    options: ImageOptions | None = None,
    target: Target = DEFAULT_TARGET,
    effort: int = DEFAULT_EFFORT,
    limits: Limits | None = None,
    progress: ProgressListener | None = None,
) -> Generator[Outcome[Job, Compressed], None, None]:
    """Encodes one image per job: `load` gives the bytes of its file, `store` takes those made; both run in several threads.

    `codec` is called once the first image has been read. `progress` is called, from any thread, with the share of an image
    that has just been done; the outcome says how much of it was reported."""
    chosen = options or ImageOptions()
    steps = steps_of_effort(effort)
    weight = REFINING if steps else 1
    passes = ENCODING + (steps + 3 if steps else 0) + (SEARCH if target.searched else 0)
    once, bounds = _Once(codec), limits or Limits()

    def read(job: Job, admit: Admit) -> tuple[int, Prepared]:
        data = load(job)
        image = open_image(data, bounds.max_pixels)
        admit(weight * image.width * image.height)
        return len(data), once().prepare(image, chosen)

    def compute(items: list[tuple[int, Prepared]]) -> list[Any]:
        images = [prepared for _, prepared in items]
        made = once().tokenize(images, target, effort)
        return [cut(*pair) for pair in zip(images, made, strict=True)] if target.searched else made

    def cut(prepared: Prepared, made: Any) -> Encoded:
        encoded = once().cut(made, target, prepared)
        return replace(encoded, notes=(*prepared.notes, *encoded.notes))

    def write(job: Job, item: tuple[int, Prepared], made: Any) -> Compressed:
        encoded = made if target.searched else cut(item[1], made)
        store(job, encoded)
        return Compressed(encoded, item[0], once().model.name)

    def alike(item: tuple[int, Prepared]) -> Hashable:
        return blocks_of(item[1].width, item[1].height)

    yield from overlap(jobs, Stages(read, compute, write, alike, once, passes), bounds, progress)


def decode_all(
    jobs: Sequence[Job],
    codec: Callable[[], Codec],
    load: Callable[[Job], bytes],
    store: Callable[[Job, Image.Image], int],
    *,
    allow_partial: bool = False,
    tokens: float | None = None,
    limits: Limits | None = None,
    progress: ProgressListener | None = None,
) -> Generator[Outcome[Job, Decompressed], None, None]:
    """The inverse of `encode_all`: decodes one file per job. `store` takes the image and says how many bytes it became."""
    once, bounds = _Once(codec), limits or Limits()

    def read(job: Job, admit: Admit) -> tuple[int, Read]:
        data = load(job)
        file = read_file(data)  # before the codec is made: most wrong inputs are found here
        check_size(file.width, file.height, bounds.max_pixels)
        admit(file.width * file.height)
        return len(data), once().read(data, allow_partial=allow_partial, tokens=tokens)

    def compute(items: list[tuple[int, Read]]) -> list[Any]:
        return once().detokenize([part for _, part in items])

    def write(job: Job, item: tuple[int, Read], pixels: Any) -> Decompressed:
        size, part = item
        stored = store(job, once().finish(pixels, part.file))
        return Decompressed(part.file, part.block_tokens, part.partial, part.model.name, size, stored)

    def alike(item: tuple[int, Read]) -> Hashable:
        return item[1].file.stream_id, blocks_of(item[1].file.width, item[1].file.height)

    yield from overlap(jobs, Stages(read, compute, write, alike, once, DECODING), bounds, progress)


def overlap(
    jobs: Sequence[Job], stages: Stages[Job, Result], limits: Limits, progress: ProgressListener | None = None
) -> Generator[Outcome[Job, Result], None, None]:
    """Takes each job through all stages; yields how it ended, in the order in which they are finished."""
    yield from _Flow(stages, limits, progress).run(jobs)


class _Once:
    """A codec that is made when it is first needed, once, whatever thread needs it."""

    def __init__(self, make: Callable[[], Codec]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._codec: Codec | None = None
        self._error: Exception | None = None

    def __call__(self) -> Codec:
        """Raises what making it raised, each time."""
        with self._lock:
            if self._error:
                raise self._error
            if self._codec is None:
                try:
                    self._codec = self._make()
                except (TesseraError, MemoryError) as error:
                    self._error = error
                    raise
            return self._codec


class _Gate:
    """Lets pixels into memory while there is room; what is larger than the room comes in alone."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, pixels: int) -> None:
        """Waits for room. Raises CancelledError once the gate is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._inside or self._inside + pixels <= self._room)
            if self._closed:
                raise CancelledError
            self._inside += pixels

    def leave(self, pixels: int) -> None:
        with self._changed:
            self._inside -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(eq=False)
class _Carried(Generic[Job]):
    """A job on its way."""

    job: Job
    item: Any = None
    seconds: float = 0.0  # worked on it so far
    pixels: int = 0  # that it has let into memory
    reported: float = 0.0  # of it, as done


class _Flow(Generic[Job, Result]):
    """The three stages over some jobs. All but the threads' own work happens in the thread that calls `run`."""

    def __init__(self, stages: Stages[Job, Result], limits: Limits, progress: ProgressListener | None) -> None:
        self._stages = stages
        self._progress = progress
        self._limits = limits
        self._gate = _Gate(limits.pixels or room())
        self._readers = ThreadPoolExecutor(limits.threads, "read")
        self._writers = ThreadPoolExecutor(limits.threads, "write")
        self._computers: _Computers | None = None  # how many depends on the device, which a first image asks for
        self._reading: dict[Future[None], _Carried[Job]] = {}
        self._ready: deque[_Carried[Job]] = deque()
        self._computing: dict[Future[tuple[list[Any], float]], list[_Carried[Job]]] = {}
        self._writing: dict[Future[tuple[Result, float]], _Carried[Job]] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome[Job, Result]]:
        waiting = deque(jobs)
        finished = False
        try:
            while True:
                self._start_computing(len(jobs))
                self._start_reading(waiting)
                moving: list[Future[Any]] = [*self._reading, *self._computing, *self._writing]
                if not moving:
                    break
                for future in wait(moving, return_when=FIRST_COMPLETED).done:
                    yield from self._hand_on(future)
            finished = True
        finally:  # who stops early does not wait for what is under way
            self._gate.close()
            self._readers.shutdown(wait=finished, cancel_futures=True)
            self._writers.shutdown(wait=finished, cancel_futures=True)
            if self._computers:
                self._computers.close(wait=finished)

    def _start_computing(self, jobs: int) -> None:
        if self._ready and self._computers is None:
            self._computers = _Computers(self._stages.compute, self._stages.codec(), self._limits, jobs)
        while self._ready and self._computers and self._computers.free(len(self._computing)):
            if len(self._writing) >= 2 * self._limits.threads:  # writing is what is slow
                break
            self._compute(self._alike(self._computers.batch))

    def _start_reading(self, waiting: deque[Job]) -> None:
        ahead = self._limits.threads + (self._computers.ahead if self._computers else 0)
        while waiting and len(self._reading) + len(self._ready) < ahead:
            carried = _Carried(waiting.popleft())
            self._reading[self._readers.submit(self._read, carried)] = carried

    def _read(self, carried: _Carried[Job]) -> None:
        def admit(pixels: int) -> None:
            _, waited = _timed(self._gate.enter, pixels)
            carried.pixels += pixels
            carried.seconds -= waited

        carried.item, seconds = _timed(self._stages.read, carried.job, admit)
        carried.seconds += seconds

    def _compute(self, batch: list[_Carried[Job]]) -> None:
        assert self._computers

        def moved(passes: float) -> None:
            for carried in batch:
                share = min(passes / self._stages.passes, MOST - carried.reported)
                carried.reported += share
                if self._progress:
                    self._progress(share)

        pixels = sum(carried.pixels for carried in batch)
        submitted = self._computers.submit([carried.item for carried in batch], pixels, moved)
        self._computing[submitted] = batch

    def _alike(self, most: int) -> list[_Carried[Job]]:
        """Takes the image that has waited longest, and others that can share its network call."""
        kind = self._stages.alike(self._ready[0].item)
        batch = [carried for carried in self._ready if self._stages.alike(carried.item) == kind][:most]
        for carried in batch:
            self._ready.remove(carried)
        return batch

    def _hand_on(self, future: Future[Any]) -> Iterator[Outcome[Job, Result]]:
        """Passes what a thread has done to the next stage, or ends the job."""
        error = _reason(future)
        if future in self._reading:
            carried = self._reading.pop(future)
            if error:
                yield self._end(carried, error=error)
            else:
                self._ready.append(carried)
        elif future in self._writing:
            carried = self._writing.pop(future)
            made, seconds = (None, 0.0) if error else future.result()
            carried.seconds += seconds
            yield self._end(carried, made, error)
        else:
            batch = self._computing.pop(future)
            if error and len(batch) > 1:  # one of them is to blame: each on its own
                for carried in batch:
                    self._compute([carried])
            elif error:
                yield self._end(batch[0], error=error)
            else:
                results, seconds = future.result()
                for carried, computed in zip(batch, results, strict=True):
                    carried.seconds += seconds / len(batch)
                    written = self._writers.submit(_timed, self._stages.write, carried.job, carried.item, computed)
                    self._writing[written] = carried

    def _end(self, carried: _Carried[Job], made: Result | None = None, error: Exception | None = None) -> Outcome[Job, Result]:
        self._gate.leave(carried.pixels)
        return Outcome(carried.job, made, error, carried.seconds, carried.reported)


class _Computers:
    """The threads that run the network: one on a GPU, and on a CPU some that share its cores."""

    def __init__(self, compute: Callable[[list[Any]], list[Any]], codec: Codec, limits: Limits, jobs: int) -> None:
        self._compute = compute
        self._before = process_threads()
        self._cores = min(self._before, limits.threads)
        self._count = min(self._cores, WORKERS, jobs) if codec.device == "cpu" else 1
        self._large = (limits.pixels or room()) // 2
        self._pool = ThreadPoolExecutor(self._count, "compute")
        self.batch = limits.batch or _usual_batch(codec.device)
        self.ahead = 2 * self._count * self.batch  # images that should be read before they are needed

    def free(self, busy: int) -> bool:
        return busy < self._count

    def submit(self, items: list[Any], pixels: int, moved: ProgressListener) -> Future[tuple[list[Any], float]]:
        """Computes in a thread, on its share of the cores, or on all where no other large image fits into memory."""
        threads = self._cores if pixels > self._large else self._cores // self._count
        return self._pool.submit(self._run, items, threads, moved)

    def _run(self, items: list[Any], threads: int, moved: ProgressListener) -> tuple[list[Any], float]:
        try:
            with network_context(threads, moved):
                return _timed(self._compute, items)
        except RuntimeError as error:
            if type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):  # torch's, of CUDA and else
                raise MemoryError from error
            raise

    def close(self, wait: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)
        set_torch_threads(self._before)


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds that it took."""
    start = time.perf_counter()
    result = call(*arguments)
    return result, time.perf_counter() - start


def _reason(future: Future[Any]) -> Exception | None:
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error


def room(share: float = 1.0) -> int:
    """Pixels to have in memory at once: a quarter of it at most, or of a share of it."""
    return min(ROOM, int(share * psutil.virtual_memory().total) // 4 // PIXEL_BYTES)


def _usual_batch(device: str) -> int:
    """Images per network call where the user gives none."""
    if device == "cpu":
        return CPU_BATCH
    import torch

    return min(32, max(1, torch.cuda.mem_get_info(device)[0] // 4 // (PIXEL_BYTES * SMALL)))
