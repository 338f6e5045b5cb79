"""Work in many processes, on one machine or several, with Ray (https://docs.ray.io). No terminal.

    for index, result in run_on_cluster(items, start_task, Cluster("head:6379")):
        ...  # results in completion order

A worker is a process on any machine of the cluster. It calls `start_task` once and then takes chunks of items. Results return
one by one, so they should be small. If a worker is lost, other workers process its items, one at a time; an item that loses
three workers is given up. Tessera must be installed on all machines, in the same version, and all must see the files that items
name.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import codec
from codec.errors import ClusterError, TesseraError
from codec.options import AUTO, LOCAL

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)

INSTALL = "pip install 'tessera-codec[ray]'"
MAX_THREADS = 4  # default maximum per worker, the number of concurrent network calls in one process
MAX_CHUNK = 128  # items: a worker idles for a moment at the end of a chunk
CHUNKS_PER_WORKER = 2  # minimum number of chunks of the remaining items, so that all workers end at about the same time
MAX_LOSSES = 3  # workers lost with an item before it is given up
CONNECT_TIMEOUT = 10  # seconds; Ray itself would wait a minute and then end this process
POLL_INTERVAL = 0.2  # seconds; the longest time that a signal waits
STOP_TIMEOUT = 5  # seconds to wait for workers to stop
OBJECT_STORE_BYTES = 100 << 20  # a small store suffices: Ray sends small results directly
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # no telemetry; no warning
LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # listens on loopback, instead of on all interfaces


class Task(Protocol[Result]):
    """The work of a worker."""

    def do(self, items: list[Any]) -> Iterator[tuple[int, Result]]:
        """The index of each item in the list and its result, in any order."""

    def end(self) -> None:
        """Stops at once, even while `do` runs in another thread."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster, and the resources of each worker."""

    address: str = LOCAL  # or 'auto', or HOST:PORT
    threads: int | None = None  # cores of each worker; None: as many as machines have, up to MAX_THREADS without a GPU
    gpus: bool = False  # a GPU for each worker, if Ray has any


@dataclass(frozen=True)
class WorkerResources:
    """The share of its machine that a worker may use."""

    threads: int
    memory_share: float


def run_on_cluster(
    items: Sequence[Item],
    start_task: Callable[[WorkerResources], Task[Result]],
    cluster: Cluster,
    pack: Callable[[Item, int], Any] = lambda item, _: item,
    max_chunk: int = MAX_CHUNK,
) -> Generator[tuple[int, Result | TesseraError], None, None]:
    """Yields the index of each item, and its result or the error that prevented it.

    `pack` converts an item to the form sent to a worker. Its second argument is the number of workers that were lost with the
    item, and may have processed a part of it. A caller that stops early stops all workers at once. Raises ClusterError if Ray
    is not installed, or the cluster cannot be reached or has no room for a worker."""
    if not items:
        return
    with _connected(cluster.address) as ray:
        workers, options = _worker_options(ray.nodes(), cluster)
        actor = ray.remote(Worker).options(**options, max_concurrency=2, scheduling_strategy="SPREAD")
        create = partial(actor.remote, str(Path.cwd()), codec.__version__, options["num_cpus"], start_task)
        scheduler: _Scheduler[Item, Result] = _Scheduler(ray, create, items, pack, max_chunk)
        try:
            yield from scheduler.run(min(workers, len(items)))
        except BaseException:
            with _signals_ignored(), suppress(ray.exceptions.RayError):
                scheduler.stop()
            raise


class Worker:
    """A process that Ray starts; the scheduler calls its methods remotely. Two of them may run at once, so that `end` works."""

    def __init__(self, folder: str, version: str, threads: int, start_task: Callable[[WorkerResources], Task[Any]]) -> None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's own threads slow down the pipeline
        self._folder = folder
        self._version = version
        self._threads = threads
        self._start_task = start_task

    def start(self) -> TesseraError | None:
        """Starts the task. Returns the error if this process cannot work."""
        host = socket.gethostname()
        if codec.__version__ != self._version:
            msg = f"{host} has Tessera {codec.__version__}, and this machine {self._version}: install the same on all"
            return ClusterError(msg)
        try:
            os.chdir(self._folder)  # names of files may be relative
        except OSError as error:
            msg = f"{host} does not see the folder {self._folder} ({error.strerror}): start in one that all machines share"
            return ClusterError(msg)
        try:
            share = min(1.0, self._threads / (os.cpu_count() or 1))
            self._task = self._start_task(WorkerResources(self._threads, share))
        except TesseraError as error:
            return error
        return None

    def work(self, items: list[Any]) -> Iterator[tuple[int, Any]]:
        for result in self._task.do(items):  # noqa: UP028 (Ray sends values in, and not every iterator accepts them)
            yield result

    def end(self) -> None:
        self._task.end()


@dataclass(eq=False)
class _WorkerHandle:
    """The scheduler's handle to a worker."""

    actor: Any
    chunk: list[int] | None = None  # indexes of its current items; None until it has started
    unfinished: set[int] = field(default_factory=set)  # indexes of the chunk without a result


class _Scheduler(Generic[Item, Result]):
    """Hands chunks of items to workers."""

    def __init__(
        self, ray: Any, create: Callable[[], Any], items: Sequence[Item], pack: Callable[[Item, int], Any], max_chunk: int
    ) -> None:
        self._ray = ray
        self._create = create  # creates a worker
        self._items = items
        self._pack = pack
        self._max_chunk = max_chunk
        self._unfinished = len(items)
        self._waiting = deque(range(len(items)))
        self._retries: deque[int] = deque()  # items of lost workers
        self._losses: Counter[int] = Counter()  # workers lost, by item
        self._busy: dict[Any, _WorkerHandle] = {}  # keys: objects for Ray to wait for, a start or a stream of results
        self._idle: list[_WorkerHandle] = []

    def run(self, workers: int) -> Iterator[tuple[int, Result | TesseraError]]:
        with _signals_deferred():
            for _ in range(workers):
                self._add_worker()
        while self._unfinished:
            with _signals_deferred():
                results = list(self._poll())
            yield from results

    def stop(self) -> None:
        """Stops all workers at once, and removes the files that they are writing."""
        handles = [*self._busy.values(), *self._idle]
        ends = [handle.actor.end.remote() for handle in handles if handle.chunk is not None]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=STOP_TIMEOUT)
        for handle in handles:
            self._ray.kill(handle.actor)

    def _poll(self) -> Iterator[tuple[int, Result | TesseraError]]:
        """Results that have arrived; waits a moment for them."""
        watched = list(self._busy)
        self._ray.wait(watched, num_returns=1, timeout=POLL_INTERVAL)
        for ready in self._ray.wait(watched, num_returns=len(watched), timeout=0)[0]:
            handle = self._busy[ready]
            try:
                if handle.chunk is None:
                    if error := self._ray.get(ready):
                        raise error
                    del self._busy[ready]
                    self._assign(handle)
                else:
                    yield from self._next_result(ready, handle, handle.chunk)
            except self._ray.exceptions.RayActorError as error:
                del self._busy[ready]
                yield from self._replace(handle, error)
            except self._ray.exceptions.RayTaskError as error:  # raised by the task, as it would be without Ray
                raise error.cause from error

    def _add_worker(self) -> None:
        actor = self._create()
        self._busy[actor.start.remote()] = _WorkerHandle(actor)

    def _assign(self, handle: _WorkerHandle) -> None:
        """Gives a worker its next chunk, if any item is left."""
        if self._retries:
            handle.chunk = [self._retries.popleft()]
        else:
            workers = len(self._busy) + len(self._idle) + 1
            fair_share = ceil(len(self._waiting) / (CHUNKS_PER_WORKER * workers))
            handle.chunk = [self._waiting.popleft() for _ in range(min(fair_share, self._max_chunk))]
        handle.unfinished = set(handle.chunk)
        if handle.chunk:
            items = [self._pack(self._items[index], self._losses[index]) for index in handle.chunk]
            self._busy[handle.actor.work.options(num_returns="streaming").remote(items)] = handle
        else:
            self._idle.append(handle)

    def _next_result(self, stream: Any, handle: _WorkerHandle, chunk: list[int]) -> Iterator[tuple[int, Result | TesseraError]]:
        """The next result of a worker; after its last one, the worker gets a new chunk. A worker whose answers do not fit its
        items, each of them once, is treated as a lost one."""
        try:
            position, result = self._ray.get(next(stream))
        except StopIteration:
            del self._busy[stream]
            if handle.unfinished:
                yield from self._replace(handle, ClusterError("a worker ended with items undone"))
            else:
                self._assign(handle)
            return
        if position not in range(len(chunk)) or chunk[position] not in handle.unfinished:
            del self._busy[stream]
            yield from self._replace(handle, ClusterError(f"a worker answered with the index {position!r}"))
            return
        handle.unfinished.discard(chunk[position])
        self._unfinished -= 1
        yield chunk[position], result

    def _replace(self, handle: _WorkerHandle, error: Exception) -> Iterator[tuple[int, TesseraError]]:
        """Gives the items of a lost worker to other workers."""
        self._ray.kill(handle.actor)  # an unreachable worker may still hold its cores
        for index in sorted(handle.unfinished):
            self._losses[index] += 1
            if self._losses[index] < MAX_LOSSES:
                self._retries.append(index)
            else:
                self._unfinished -= 1
                msg = f"{MAX_LOSSES} workers ended while processing it: it may need too much memory, or crash a decoder"
                yield index, TesseraError(msg)
        if handle.chunk is not None:  # a worker that could not start is not replaced
            self._add_worker()
        elif not (self._busy or self._idle):
            msg = f"no worker can start ({str(error).strip().splitlines()[-1]}): is Tessera installed on all machines?"
            raise ClusterError(msg) from error
        idle, self._idle = self._idle, []
        for other in idle:
            self._assign(other)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster. It prints nothing: its messages are in its own logs."""
    environment = ENVIRONMENT | (LOCAL_ENVIRONMENT if address == LOCAL else {})
    os.environ.update({name: os.environ.get(name, value) for name, value in environment.items()})  # before it is imported
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = f"work on several machines needs ray, which is not installed: {INSTALL}"
        raise ClusterError(msg) from error
    _check_reachable(address)
    local_options = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address == LOCAL else {}
    with _signals_deferred():
        try:
            ray.init(address, log_to_driver=False, logging_level="CRITICAL", **local_options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if address == AUTO and isinstance(error, ConnectionError):
                msg = "this machine is not in a Ray cluster: give the address of one as HOST:PORT"
            else:
                token = "" if address == LOCAL else "; if the cluster requires a token, set RAY_AUTH_MODE=token"
                msg = f"Ray cannot be used: {str(error).strip().splitlines()[0]}{token}"
            raise ClusterError(msg) from error
    # Ray reports the end of a worker on standard output, among the records, and has no option to disable this.
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield ray
    finally:
        with _signals_ignored():
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises ClusterError if nothing answers at HOST:PORT."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"nothing answers at {address} ({reason}): give the address that Ray printed when it was started"
        raise ClusterError(msg) from error


def _worker_options(nodes: list[dict[str, Any]], cluster: Cluster) -> tuple[int, dict[str, Any]]:
    """The number of workers that the cluster has room for, and Ray's options for each. Raises ClusterError if it has none."""
    machines = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes if node["Alive"]]
    use_gpus = cluster.gpus and any(gpus for _, gpus in machines)
    if use_gpus:
        machines = [(cores, gpus) for cores, gpus in machines if gpus]
        default = min(cores // gpus for cores, gpus in machines)
    else:
        default = min(MAX_THREADS, max((cores for cores, _ in machines), default=0))
    threads = cluster.threads or max(1, default)
    workers = sum(min(cores // threads, gpus) if use_gpus else cores // threads for cores, gpus in machines)
    if not workers:
        largest = max((cores for cores, _ in machines), default=0)
        msg = f"no machine has room for a worker of {threads} threads: the largest has {largest} cores for Ray"
        raise ClusterError(msg, ("threads",))
    return workers, {"num_cpus": threads, "num_gpus": int(use_gpus)}


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Raises signals that arrive within the block at its end: if a handler raises SystemExit within a call of Ray, Ray raises a
    SystemExit of its own, with another code."""
    arrived: list[int] = []
    with _handlers_restored():
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: arrived.append(number))
        yield
    for signal_number in arrived:
        signal.raise_signal(signal_number)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Ignores SIGINT and SIGTERM within the block: this process is about to end."""
    with _handlers_restored():
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        yield


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """Restores the signal handlers at the end of the block. Ray replaces one of them, and would end this process without
    running ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
