"""Measuring in many processes, on one machine or several: a worker takes an image and all codecs. What the cache knows of it
travels with it, and what was new in it comes back, so that a file of the cache is used by one machine only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.bench import Bench, BenchOptions
from benchmarks.cache import Cache
from benchmarks.codecs.base import Coder
from benchmarks.measurements import Sample
from benchmarks.measures import Measure
from benchmarks.study import Source, Study
from codec.errors import ClusterError, TesseraError
from codec.parallel.ray_cluster import Cluster, Room, spread

Found = tuple[list[Sample | None], str]  # as `Study.try_task` returns it
Known = dict[str, Sample | None]  # by keys of the cache


def measured_across(options: BenchOptions, study: Study, cluster: Cluster) -> Iterator[Found]:
    """What each task of a study found, in order. Raises TesseraError where workers are lost, or cannot measure alike."""

    def pack(source: Source, _: int) -> tuple[Source, Known]:
        cached = {key: study.cache.get(key) for key in _keys(study, source)}
        return source, {key: sample for key, (there, sample) in cached.items() if there}

    first = study.sources[0].image
    begin = _Begin(replace(options, images={first.name: first.path}, cache=None, cluster=None), _means(study))
    done: dict[int, list[Found]] = {}
    following = 0
    for place, result in spread(study.sources, begin, cluster, pack, most=1):
        if isinstance(result, TesseraError):
            msg = f"{study.sources[place].image.path}: {result}"
            raise TesseraError(msg) from result
        done[place], fresh = result
        for key, sample in fresh.items():
            study.cache.put(key, sample)
        while following in done:
            yield from done.pop(following)
            following += 1


def _keys(study: Study, source: Source) -> Iterator[str]:
    for _, coder, scale in replace(study, sources=[source]).tasks():
        yield from study.keys(source, coder, scale)


def _coder_means(coder: Coder) -> tuple[str, ...]:
    return coder.name, coder.description


def _measure_means(measure: Measure) -> tuple[str, ...]:
    return *measure.keys, measure.basis


def _means(study: Study) -> set[tuple[str, ...]]:
    """What numbers depend on besides images: codecs and metrics."""
    return {*map(_coder_means, study.coders), *map(_measure_means, study.measures)}


@dataclass(frozen=True)
class _Begin:
    """Opens codecs and metrics in a worker."""

    options: BenchOptions
    means: set[tuple[str, ...]]  # of the study that is summed up

    def __call__(self, _: Room) -> _Measuring:
        torch.set_num_threads(1)  # the same numbers on any machine
        study = Bench.prepare(self.options, lambda line: None).study()
        if lacking := self.means - _means(study):
            told = "; ".join(" ".join(words) for words in sorted(lacking))
            msg = f"{socket.gethostname()} cannot measure as this machine does: it lacks {told}"
            raise ClusterError(msg)
        coders = [coder for coder in study.coders if _coder_means(coder) in self.means]  # it may have more
        measures = [measure for measure in study.measures if _measure_means(measure) in self.means]
        return _Measuring(replace(study, coders=coders, measures=measures))


class _Measuring:
    """What one worker does: a `codec.parallel.ray_cluster.Task`."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def do(self, items: list[tuple[Source, Known]]) -> Iterator[tuple[int, tuple[list[Found], Known]]]:
        for place, (source, known) in enumerate(items):
            self._study.sources = [source]
            self._study.cache = Cache(None)
            for key, sample in known.items():
                self._study.cache.put(key, sample)
            found = [self._study.try_task(task) for task in range(len(self._study.tasks()))]
            whole = self._study.cache.all()
            self._study.cache.close()
            yield place, (found, {key: sample for key, sample in whole.items() if key not in known or known[key] != sample})

    def end(self) -> None:
        """Nothing is half-done: results are kept where they are summed up."""
