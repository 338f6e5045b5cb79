"""Work handed out to many processes on one machine or several, by Ray (https://docs.ray.io). No terminal.

    for place, result in spread(items, begin, Cluster("head:6379")):
        ...  # in the order in which they are finished

A worker is a process of its own, on any machine of the cluster. It calls `begin` once, and then takes chunks of items. Results
stream back one by one, so they should be small. The items of a worker that is lost are done again, each on its own: whichever
of them ends its worker every time is given up.

Tessera must be installed on all machines in the same version, and they must see the files that items name.
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

Item = TypeVar("Item")
Result = TypeVar("Result", covariant=True)

LOCAL, AUTO = "local", "auto"  # start Ray on this machine; find the Ray that runs on it
INSTALL = "pip install 'tessera-codec[ray]'"
THREADS = 4  # of a worker, at most, where nobody says: as many network calls go on at once in one process
CHUNK = 128  # items at most: at its end a worker waits a moment for its last ones
TURNS = 2  # chunks per worker, at least, that what is left is cut into, so that all end at about the same time
ATTEMPTS = 3  # that lose the worker, before an item is given up
REACHABLE = 10  # seconds to wait for an address: Ray itself would wait a minute, and then end this process
PATIENCE = 0.2  # seconds that a signal waits at most
FAREWELL = 5  # seconds to wait for workers that are told to end
OBJECTS = 100 << 20  # bytes of memory for Ray's objects: results are smaller than what it takes to share them
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # sends nothing home, warns of nothing


class Task(Protocol[Result]):
    """What a worker does."""

    def do(self, items: list[Any]) -> Iterator[tuple[int, Result]]:
        """The place in the list of each item, and its result, in any order."""

    def end(self) -> None:
        """Stops at once, whatever `do` is at in another thread."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run, and what each of them takes."""

    address: str = LOCAL  # or 'auto', or HOST:PORT
    threads: int | None = None  # cores of each; None: as many as machines have for it, up to THREADS without a GPU
    gpus: bool = False  # a GPU for each, where Ray knows any


@dataclass(frozen=True)
class Room:
    """What a worker has of its machine."""

    threads: int
    share: float  # of its memory


def spread(
    items: Sequence[Item],
    begin: Callable[[Room], Task[Result]],
    cluster: Cluster,
    pack: Callable[[Item, int], Any] = lambda item, _: item,
    most: int = CHUNK,
) -> Generator[tuple[int, Result | TesseraError], None, None]:
    """The place of each item, and what became of it: a result, or why there is none.

    `pack` makes of an item what travels, and is told how many workers were lost with it: they may have done a part. A chunk
    has `most` items at most. Who stops early ends all workers at once. Raises ClusterError where Ray is not installed, cannot
    be reached or has no room."""
    if not items:
        return
    with _connected(cluster.address) as ray:
        workers, options = _measure(ray.nodes(), cluster)
        actor = ray.remote(Worker).options(**options, max_concurrency=2, scheduling_strategy="SPREAD")
        start = partial(actor.remote, str(Path.cwd()), codec.__version__, options["num_cpus"], begin)
        crew: _Crew[Item, Result] = _Crew(ray, start, items, pack, most)
        try:
            yield from crew.run(min(workers, len(items)))
        except BaseException:
            with _undisturbed(), suppress(ray.exceptions.RayError):
                crew.end()
            raise


class Worker:
    """A process that Ray starts; its methods are called from afar. Two may run at once, so that `end` is heard."""

    def __init__(self, folder: str, version: str, threads: int, begin: Callable[[Room], Task[Any]]) -> None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's own threads get in the way of ours
        self._folder = folder
        self._version = version
        self._threads = threads
        self._begin = begin

    def start(self) -> TesseraError | None:
        """Why this process cannot work, if it cannot."""
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
            self._task = self._begin(Room(self._threads, min(1.0, self._threads / (os.cpu_count() or 1))))
        except TesseraError as error:
            return error
        return None

    def work(self, items: list[Any]) -> Iterator[tuple[int, Any]]:
        for told in self._task.do(items):  # noqa: UP028 (Ray sends values in, which not every iterator takes)
            yield told

    def end(self) -> None:
        self._task.end()


@dataclass(eq=False)
class _Hand:
    """A worker as those who hand out work know it."""

    actor: Any
    chunk: list[int] | None = None  # places of the items that it was given last; None until it has started
    left: set[int] = field(default_factory=set)  # those of them that it has not finished


class _Crew(Generic[Item, Result]):
    """All workers, and what is still to do."""

    def __init__(
        self, ray: Any, make: Callable[[], Any], items: Sequence[Item], pack: Callable[[Item, int], Any], most: int
    ) -> None:
        self._ray = ray
        self._make = make  # a worker
        self._items = items
        self._pack = pack
        self._most = most
        self._open = len(items)  # items that are not finished
        self._waiting = deque(range(len(items)))
        self._lost: deque[int] = deque()  # with their worker, and to be done again
        self._attempts: Counter[int] = Counter()  # that lost one
        self._moving: dict[Any, _Hand] = {}  # by what Ray can wait for: the start of a worker, or its stream of results
        self._idle: list[_Hand] = []

    def run(self, workers: int) -> Iterator[tuple[int, Result | TesseraError]]:
        with _signals_later():
            for _ in range(workers):
                self._hire()
        while self._open:
            with _signals_later():
                told = list(self._news())
            yield from told

    def _news(self) -> Iterator[tuple[int, Result | TesseraError]]:
        """What has been finished meanwhile; waits a moment for it."""
        for moved in self._moved():
            hand = self._moving[moved]
            try:
                if hand.chunk is None:
                    self._welcome(moved, hand)
                else:
                    yield from self._result(moved, hand, hand.chunk)
            except self._ray.exceptions.RayActorError as error:
                del self._moving[moved]
                yield from self._without(hand, error)
            except self._ray.exceptions.RayTaskError as error:  # of the task itself, as it would be without Ray
                raise error.cause from error

    def _moved(self) -> list[Any]:
        """All that has something new: asking costs as much for many as for one."""
        watched = list(self._moving)
        self._ray.wait(watched, num_returns=1, timeout=PATIENCE)
        return self._ray.wait(watched, num_returns=len(watched), timeout=0)[0]

    def end(self) -> None:
        """Ends all workers at once; what they are writing is removed."""
        hands = [*self._moving.values(), *self._idle]
        farewells = [hand.actor.end.remote() for hand in hands if hand.chunk is not None]
        if farewells:
            self._ray.wait(farewells, num_returns=len(farewells), timeout=FAREWELL)
        for hand in hands:
            self._ray.kill(hand.actor)

    def _hire(self) -> None:
        actor = self._make()
        self._moving[actor.start.remote()] = _Hand(actor)

    def _welcome(self, start: Any, hand: _Hand) -> None:
        """Raises the error for which a worker cannot work."""
        if problem := self._ray.get(start):
            raise problem
        del self._moving[start]
        self._give(hand)

    def _give(self, hand: _Hand) -> None:
        """Hands out the next chunk, if anything is left."""
        if self._lost:
            hand.chunk = [self._lost.popleft()]
        else:
            workers = len(self._moving) + len(self._idle) + 1
            fair = ceil(len(self._waiting) / (TURNS * workers))
            hand.chunk = [self._waiting.popleft() for _ in range(min(fair, self._most))]
        hand.left = set(hand.chunk)
        if hand.chunk:
            items = [self._pack(self._items[place], self._attempts[place]) for place in hand.chunk]
            self._moving[hand.actor.work.options(num_returns="streaming").remote(items)] = hand
        else:
            self._idle.append(hand)

    def _result(self, stream: Any, hand: _Hand, chunk: list[int]) -> Iterator[tuple[int, Result]]:
        """The next result of a worker, or, after its last one, new work for it."""
        try:
            within, result = self._ray.get(next(stream))
        except StopIteration:
            del self._moving[stream]
            self._give(hand)
            return
        hand.left.discard(chunk[within])
        self._open -= 1
        yield chunk[within], result

    def _without(self, hand: _Hand, error: Exception) -> Iterator[tuple[int, TesseraError]]:
        """Has others do what a lost worker had."""
        self._ray.kill(hand.actor)  # it may live where nothing reaches it, and keep its cores
        for place in sorted(hand.left):
            self._attempts[place] += 1
            if self._attempts[place] < ATTEMPTS:
                self._lost.append(place)
            else:
                self._open -= 1
                msg = f"{ATTEMPTS} workers were lost with it: it may need too much memory, or crash what reads it"
                yield place, TesseraError(msg)
        if hand.chunk is not None:  # one that could not even start is not tried again
            self._hire()
        elif not (self._moving or self._idle):
            msg = f"no worker can start ({str(error).strip().splitlines()[-1]}): is Tessera installed on all machines?"
            raise ClusterError(msg) from error
        idle, self._idle = self._idle, []
        for other in idle:
            self._give(other)


def _ray() -> Any:
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})  # before it is imported
    try:
        import ray
    except ModuleNotFoundError as error:
        msg = f"work on several machines needs ray, which is not installed: {INSTALL}"
        raise ClusterError(msg) from error
    return ray


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster for a while, and silent: what it says of its processes is in its own logs."""
    ray = _ray()
    _refuse_unreachable(address)
    own = {"include_dashboard": False, "object_store_memory": OBJECTS} if address == LOCAL else {}
    with _signals_later():
        try:
            ray.init(address, log_to_driver=False, logging_level="CRITICAL", **own)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if address == AUTO and isinstance(error, ConnectionError):
                msg = "this machine is in no cluster of Ray: give its address as HOST:PORT"
            else:
                token = "" if address == LOCAL else "; a cluster that wants a token needs RAY_AUTH_MODE=token"
                msg = f"Ray cannot be used: {str(error).strip().splitlines()[0]}{token}"
            raise ClusterError(msg) from error
    _silence()
    try:
        yield ray
    finally:
        with _undisturbed():
            ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raises ClusterError where nothing answers at HOST:PORT."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHABLE).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        msg = f"nothing answers at {address} ({reason}): give the address that Ray printed when it was started"
        raise ClusterError(msg) from error


def _silence() -> None:
    """Ray prints the end of a worker on standard output, where records may be, and has no option against it."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_, **__: None


def _measure(nodes: list[dict[str, Any]], cluster: Cluster) -> tuple[int, dict[str, Any]]:
    """How many workers there is room for, and what Ray gives each. Raises ClusterError where there is room for none."""
    machines = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes if node["Alive"]]
    gpus = cluster.gpus and any(count for _, count in machines)
    if gpus:
        machines = [(cores, count) for cores, count in machines if count]
        usual = min(cores // count for cores, count in machines)
    else:
        usual = min(THREADS, max((cores for cores, _ in machines), default=0))
    threads = cluster.threads or max(1, usual)
    rooms = [min(cores // threads, count) if gpus else cores // threads for cores, count in machines]
    if not sum(rooms):
        largest = max((cores for cores, _ in machines), default=0)
        msg = f"workers of {threads} threads have room on no machine: the largest has {largest} cores for Ray"
        raise ClusterError(msg, ("threads",))
    return sum(rooms), {"num_cpus": threads, "num_gpus": int(gpus)}


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes over a signal, which ends this process without what its own handler would do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Signals that come within are raised at its end: where a handler raises SystemExit in the midst of a call of Ray, that
    raises one of its own, with another code."""
    came: list[int] = []
    with _handlers_kept():
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: came.append(number))
        yield
    for one in came:
        signal.raise_signal(one)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Requests to end are ignored for a moment: the end is on its way."""
    with _handlers_kept():
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        yield
