"""A study measured by the workers of a Ray cluster.

A worker takes one image and runs all codecs on it. This machine sends its cache entries for the image along
and receives new entries, so only this machine uses the cache file.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.bench import Bench, BenchOptions
from benchmarks.cache import Cache
from benchmarks.codecs.base import BenchCodec
from benchmarks.metrics import Evaluator
from benchmarks.records import Sample
from benchmarks.study import BenchmarkImage, Outcome, Study
from codec.errors import ClusterError, TesseraError
from codec.parallel.ray_cluster import Cluster, WorkerResources, run_on_cluster

CacheEntries = dict[str, Sample | None]  # key -> sample


def run_on_ray(options: BenchOptions, study: Study, cluster: Cluster) -> Iterator[Outcome]:
    """The outcomes of a study's tasks, image by image. Raises TesseraError if workers are lost or lack a codec or metric."""

    def pack(source: BenchmarkImage, _: int) -> tuple[BenchmarkImage, CacheEntries]:
        tasks = replace(study, sources=[source]).tasks()
        entries = {key: study.cache.get(key) for _, codec, scale in tasks for key in study.keys(source, codec, scale)}
        return source, {key: sample for key, (known, sample) in entries.items() if known}

    first = study.sources[0].image
    start = _StartWorker(replace(options, images={first.name: first.path}, cache=None), _components(study))
    for index, result in run_on_cluster(study.sources, start, cluster, pack, max_chunk=1):
        if isinstance(result, TesseraError):
            raise TesseraError(result.message, result.advice, file=result.file or study.sources[index].image.path) from result
        outcomes, new_entries = result
        for key, sample in new_entries.items():
            study.cache.put(key, sample)
        for task, samples, problem in outcomes:  # `task` counts the tasks of one image
            yield index * len(outcomes) + task, samples, problem


def _codec_id(codec: BenchCodec) -> tuple[str, ...]:
    return codec.name, codec.description


def _evaluator_id(evaluator: Evaluator) -> tuple[str, ...]:
    return *evaluator.keys, evaluator.fingerprint


def _components(study: Study) -> set[tuple[str, ...]]:
    """The codecs and metrics that numbers depend on, with their versions."""
    return {*map(_codec_id, study.codecs), *map(_evaluator_id, study.evaluators)}


@dataclass(frozen=True)
class _StartWorker:
    """Opens codecs and metrics in a worker."""

    options: BenchOptions
    components: set[tuple[str, ...]]  # codecs and metrics that the worker needs

    def __call__(self, _: WorkerResources) -> _ImageTask:
        torch.set_num_threads(1)  # makes numbers equal on all machines
        study = Bench.open(self.options, lambda line: None).study()
        if missing := self.components - _components(study):
            words = "; ".join(" ".join(component) for component in sorted(missing))
            msg = f"{socket.gethostname()} would measure differently from this machine: it lacks {words}"
            raise ClusterError(msg)
        codecs = [codec for codec in study.codecs if _codec_id(codec) in self.components]
        evaluators = [evaluator for evaluator in study.evaluators if _evaluator_id(evaluator) in self.components]
        return _ImageTask(replace(study, codecs=codecs, evaluators=evaluators))


class _ImageTask:
    """All tasks of an image: a `codec.parallel.ray_cluster.Task`."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def do(self, items: list[tuple[BenchmarkImage, CacheEntries]]) -> Iterator[tuple[int, tuple[list[Outcome], CacheEntries]]]:
        for index, (source, entries) in enumerate(items):
            self._study.sources = [source]
            self._study.cache = Cache(None)
            for key, sample in entries.items():
                self._study.cache.put(key, sample)
            outcomes = [self._study.run_task(task) for task in range(len(self._study.tasks()))]
            cached = self._study.cache.all()
            self._study.cache.close()
            yield index, (outcomes, {key: s for key, s in cached.items() if key not in entries or entries[key] != s})

    def end(self) -> None:
        """Nothing to end: results are cached on the machine that started the benchmark."""
