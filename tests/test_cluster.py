"""The number of workers that a cluster has room for, computed without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from codec.errors import ClusterError, TesseraError
from codec.parallel.ray_cluster import Cluster, _Scheduler, _worker_options, run_on_cluster


def node(cores: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    """A machine in the form of `ray.nodes`, which leaves out resources of which there are none."""
    resources = {"CPU": cores, "GPU": gpus, "memory": 1e9}
    return {"Alive": alive, "Resources": {name: count for name, count in resources.items() if count}}


MIXED = [node(16.0, 4.0), node(63.0), node(8.0, 1.0), node(128.0, 8.0, alive=False), node(0)]


@pytest.mark.parametrize(
    ("nodes", "cluster", "workers", "cores", "gpus"),
    [
        ([node(2.0)], Cluster(), 1, 2, 0),
        ([node(2.0)], Cluster(threads=1), 2, 1, 0),
        (MIXED, Cluster(), 4 + 15 + 2, 4, 0),
        (MIXED, Cluster(threads=8), 2 + 7 + 1, 8, 0),
        (MIXED, Cluster(gpus=True), 4 + 1, 4, 1),
        (MIXED, Cluster(gpus=True, threads=8), 2 + 1, 8, 1),
        ([node(2.0, 4.0)], Cluster(gpus=True), 2, 1, 1),
        ([node(6.0)], Cluster(gpus=True), 1, 4, 0),
    ],
)
def test_a_worker_takes_a_gpu_or_some_cores(nodes, cluster, workers, cores, gpus):
    assert _worker_options(nodes, cluster) == (workers, {"num_cpus": cores, "num_gpus": gpus})


@pytest.mark.parametrize(("nodes", "largest"), [([], 0), ([node(0, 2.0)], 0), ([node(4.0), node(7.0)], 7)])
def test_a_cluster_without_room_is_an_error(nodes, largest):
    with pytest.raises(ClusterError, match=rf"\b8 threads\b.*\b{largest} cores\b") as caught:
        _worker_options(nodes, Cluster(threads=8))
    assert caught.value.advice == ("threads",)


class FakeRay:
    """Ray's functions that the scheduler calls, with workers in this process that answer at once."""

    class exceptions:  # noqa: N801 (a module in Ray)
        RayActorError = RayTaskError = type("NeverRaisedError", (Exception,), {})

    def wait(self, watched: list, **_: object) -> tuple[list, list]:
        return watched, []

    def get(self, value: Any) -> Any:
        return None if isinstance(value, FakeStart) else value

    def kill(self, actor: Any) -> None:
        pass


class FakeStart:
    """A pending call of a worker's `start`."""


class FakeWorker:
    """Answers by `answers`, which maps the items of a chunk to pairs of an index and a result."""

    def __init__(self, answers: Any) -> None:
        self.start = SimpleNamespace(remote=FakeStart)
        self.work = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda items: iter(answers(items))))


def right(items: list) -> list[tuple[Any, int]]:
    return [(index, 10 * item) for index, item in enumerate(items)]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda items: [(len(items), 0)],
        lambda items: [(-1, 0)],
        lambda items: [("0", 0)],
        lambda items: [(None, 0)],
        lambda items: [(0, 10 * items[0])] * (len(items) + 1),  # one index twice, and another never
        lambda items: right(items)[:-1],
        lambda items: [],
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_with_wrong_answers_is_replaced(wrong, workers):
    """All items have a result all the same, once each."""
    answers = iter([wrong])
    scheduler = _Scheduler(FakeRay(), lambda: FakeWorker(next(answers, right)), range(8), lambda item, _: item, 8)
    results = list(scheduler.run(workers))
    assert sorted(results) == [(index, 10 * index) for index in range(8)]


def test_items_whose_workers_all_answer_wrongly_are_given_up():
    scheduler = _Scheduler(FakeRay(), lambda: FakeWorker(lambda items: [(99, 0)]), range(3), lambda item, _: item, 8)
    results = dict(scheduler.run(1))
    assert sorted(results) == [0, 1, 2]
    assert all(isinstance(error, TesseraError) for error in results.values())


def test_an_empty_list_needs_no_cluster():
    assert list(run_on_cluster([], lambda resources: pytest.fail("a worker was started"), Cluster("nowhere:1"))) == []
