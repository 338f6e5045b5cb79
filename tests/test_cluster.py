"""The number of workers that a cluster has room for, computed without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from codec.errors import ClusterError
from codec.parallel.ray_cluster import Cluster, _worker_options, run_on_cluster


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


def test_an_empty_list_needs_no_cluster():
    assert list(run_on_cluster([], lambda resources: pytest.fail("a worker was started"), Cluster("nowhere:1"))) == []
