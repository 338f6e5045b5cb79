"""A study: every image through every codec at every rate, with metrics, cached and averaged.

Rates are common to all codecs: at each rate a codec makes, for every image, its best file that is no larger. If there are no
rates, each codec runs at fixed settings of its own, as in published curves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import BenchError
from benchmarks.cache import Cache, key_of
from benchmarks.codecs.base import SCALES, BenchCodec, CodedFile, enlarge, shrink
from benchmarks.codecs.tessera import TesseraCodec
from benchmarks.metrics import METRICS, Evaluator
from benchmarks.records import SCALED, ImageInfo, Pixels, Point, Sample, Series, rate_label
from codec.errors import ImageError
from codec.image.opening import open_image
from codec.image.source import read_source
from codec.options import MAX_PIXELS

Outcome = tuple[int, list[Sample | None], str]  # index of a task; its samples, one per label, or none and the reason
Samples = dict[tuple[str, str, str], list[Sample]]  # (image, codec, label) -> one per scale


@dataclass(frozen=True)
class BenchmarkImage:
    """An image to code."""

    image: ImageInfo
    digest: str  # hash of its pixels
    max_pixels: int = MAX_PIXELS

    def pixels(self) -> Pixels:
        return read_pixels(Path(self.image.path), self.max_pixels)


def open_benchmark_image(path: Path, name: str, max_pixels: int = MAX_PIXELS) -> BenchmarkImage:
    """Raises ImageError if the file cannot be read as an image."""
    pixels = read_pixels(path, max_pixels)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return BenchmarkImage(ImageInfo(name, str(path), width, height), digest, max_pixels)


@lru_cache(maxsize=4)
def read_pixels(path: Path, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The pixels of an image file. Transparent images are composited on white, since codecs are compared on colours alone."""
    try:
        return read_source(open_image(path.read_bytes(), max_pixels), {"background": "white"}, max_pixels).pixels
    except FileNotFoundError as error:
        msg = "no such file: check the name"
        raise ImageError(msg) from error
    except OSError as error:
        msg = f"cannot be read ({error.strerror}): check its permissions"
        raise ImageError(msg) from error


@dataclass
class Study:
    """The images, codecs and metrics of a benchmark, and the computation of its samples and curves."""

    sources: Sequence[BenchmarkImage]
    codecs: Sequence[BenchCodec]
    scaled: frozenset[str]  # names of codecs that also run at their best scale
    native: frozenset[str]  # names of codecs that run at the image's own size
    budgets: Sequence[float]  # bits per pixel; empty: each codec's own settings
    evaluators: Sequence[Evaluator]
    cache: Cache
    failed: dict[str, str] = field(default_factory=dict)  # codec -> reason
    _prepared: dict[tuple[str, str], Any] = field(default_factory=dict)  # (digest of the original, evaluator)

    def tasks(self) -> list[tuple[BenchmarkImage, BenchCodec, float]]:
        """Units of work, image by image: a codec at a scale."""
        tasks = []
        for source in self.sources:
            for codec in self.codecs:
                scales = SCALES if codec.name in self.scaled and self.budgets else (1.0,)
                tasks += [(source, codec, scale) for scale in scales]
        return tasks

    def order(self) -> list[int]:
        """The order in which to run the tasks: those of each model together, so that only one network is in memory."""
        models = [codec.name for codec in self.codecs if isinstance(codec, TesseraCodec)]
        names = [codec.name for _, codec, _ in self.tasks()]
        return sorted(range(len(names)), key=lambda index: models.index(names[index]) if names[index] in models else -1)

    def labels(self, codec: BenchCodec) -> list[str]:
        if self.budgets:
            return [rate_label(budget) for budget in self.budgets]
        return [f"quality {setting}" for setting in codec.settings]

    def keys(self, source: BenchmarkImage, codec: BenchCodec, scale: float) -> list[str]:
        """The keys of a task's samples in the cache, one per label."""
        return [key_of(source.digest, codec.description, scale, label) for label in self.labels(codec)]

    def run_task(self, index: int) -> Outcome:
        """Measures a task of `tasks()`. A codec that failed is not run again."""
        source, codec, scale = self.tasks()[index]
        if codec.name in self.failed:
            return index, [], self.failed[codec.name]
        try:
            return index, self.measure(source, codec, scale), ""
        except BenchError as error:
            self.failed[codec.name] = str(error)
            return index, [], str(error)

    def measure(self, source: BenchmarkImage, codec: BenchCodec, scale: float) -> list[Sample | None]:
        """Codes and measures an image at a scale: a sample for each label, None if no file fits. Files and metrics are cached
        separately, so a new metric does not require new files."""
        keys = self.keys(source, codec, scale)
        cached = [self.cache.get(key) for key in keys]
        samples = [sample for _, sample in cached]
        missing = [index for index, (known, _) in enumerate(cached) if not known]
        for index, file in zip(missing, self._encode(source, codec, scale, missing) if missing else (), strict=True):
            if file:
                bpp = 8 * len(file.data) / (source.image.width * source.image.height)
                samples[index] = Sample(file.data, file.setting, scale, bpp, {})
            self.cache.put(keys[index], samples[index])
        previous: Sample | None = None
        for index, sample in enumerate(samples):
            if sample:  # once a codec is at its limit, several budgets have the same file
                complete = replace(sample, metrics=previous.metrics) if previous and previous.data == sample.data else sample
                complete = self._evaluated(source, codec, complete)
                if complete.metrics != sample.metrics:
                    self.cache.put(keys[index], complete)
                previous = samples[index] = complete
        return [sample and replace(sample, metrics=self._metrics(sample)) for sample in samples]

    def _metrics(self, sample: Sample) -> dict[str, float]:
        """The metrics of this study, by key of METRICS. A cached sample may also have metrics of other studies."""
        cache_keys = {key: _cache_key(key, evaluator) for evaluator in self.evaluators for key in evaluator.keys}
        return {key: sample.metrics[cache_keys[key]] for key in METRICS if cache_keys.get(key) in sample.metrics}

    def _encode(
        self, source: BenchmarkImage, codec: BenchCodec, scale: float, indexes: list[int]
    ) -> Iterator[CodedFile | None]:
        """The files of the labels at `indexes`."""
        pixels = shrink(source.pixels(), scale)
        if self.budgets:
            area = source.image.width * source.image.height
            yield from codec.fit(pixels, [int(self.budgets[index] * area / 8) for index in indexes])
        else:
            for index in indexes:
                setting = codec.settings[index]
                yield CodedFile(codec.encode(pixels, setting), f"quality {setting}", setting)

    def _evaluated(self, source: BenchmarkImage, codec: BenchCodec, sample: Sample) -> Sample:
        """The sample with all metrics that allow an image of its size, by cache key."""
        min_side = min(source.image.width, source.image.height)
        missing = [
            evaluator
            for evaluator in self.evaluators
            if min_side >= evaluator.min_side
            and any(_cache_key(key, evaluator) not in sample.metrics for key in evaluator.keys)
        ]
        if not missing:
            return sample
        original = source.pixels()
        height, width = original.shape[:2]
        image = enlarge(codec.decode(sample.data), width, height)
        if image.shape != original.shape:
            msg = f"{codec.title} decoded {image.shape[1]}x{image.shape[0]} pixels instead of {width}x{height}: it is left out"
            raise BenchError(msg)
        metrics = dict(sample.metrics)
        for evaluator in missing:
            values = evaluator.evaluate(image, original, self._prepare(evaluator, source))
            metrics |= {_cache_key(key, evaluator): value for key, value in values.items()}
        return replace(sample, metrics=metrics)

    def _prepare(self, evaluator: Evaluator, source: BenchmarkImage) -> Any:
        """The result of `evaluator.prepare` for an original, kept until the next original."""
        if any(digest != source.digest for digest, _ in self._prepared):
            self._prepared.clear()
        key = source.digest, " ".join((*evaluator.keys, evaluator.fingerprint))
        if key not in self._prepared:
            self._prepared[key] = evaluator.prepare(source.pixels())
        return self._prepared[key]

    def collect(self, outcomes: Iterable[Outcome], progress: Callable[[], None] = lambda: None) -> Samples:
        """The samples of all tasks from their outcomes, in any order. A codec that failed is left out, with its reason in
        `failed`."""
        by_task: dict[int, list[Sample | None]] = {}
        tasks = self.tasks()
        for index, task_samples, problem in outcomes:
            if problem:
                self.failed[tasks[index][1].name] = problem
            by_task[index] = task_samples
            progress()
        samples: Samples = {}
        for index, (source, codec, _) in enumerate(tasks):
            for label, sample in zip(self.labels(codec), by_task[index], strict=False):
                if sample:
                    samples.setdefault((source.image.name, codec.name, label), []).append(sample)
        return {key: value for key, value in samples.items() if key[1] not in self.failed}

    def series(self, samples: Samples) -> list[Series]:
        """The mean curves of all codecs, each downscaled variant after its codec."""
        curves = []
        for codec in self.codecs:
            if codec.name in self.failed:
                continue
            if codec.name in self.native:
                points = self._points(samples, codec, native)
                curves.append(Series(codec.name, codec.title, codec.description, points, codec.made_for))
            if codec.name in self.scaled and self.budgets:
                points = self._points(samples, codec, best_of_scales)
                text = f"{codec.description}, at the best of the scales {', '.join(f'{s:g}' for s in SCALES)}"
                curves.append(Series(codec.name + SCALED, f"{codec.title}, best scale", text, points, codec.made_for))
        return curves

    def _points(
        self, samples: Samples, codec: BenchCodec, choose: Callable[[list[Sample]], Mapping[str, float]]
    ) -> tuple[Point, ...]:
        """The means over images of the values that `choose` takes from the samples of all scales."""
        points = []
        for label in self.labels(codec):
            rows = [choose(samples.get((source.image.name, codec.name, label), [])) for source in self.sources]
            rows = [row for row in rows if row]
            names = [key for key in ("bpp", *METRICS) if rows and all(key in row for row in rows)]
            means = {key: float(np.mean([row[key] for row in rows])) for key in names}
            if rows:
                points.append(Point(label, len(rows), means.pop("bpp"), means))
        return tuple(points)


def _cache_key(key: str, evaluator: Evaluator) -> str:
    return f"{key} {evaluator.fingerprint}"


def native(samples: list[Sample]) -> Mapping[str, float]:
    """Rate and metrics of the sample at the image's own size; empty if there is none."""
    return next(({"bpp": s.bpp, **s.metrics} for s in samples if s.scale == 1), {})


def best_of_scales(samples: list[Sample]) -> Mapping[str, float]:
    """The best of all scales for each metric separately, at the highest of their rates."""
    if not samples:
        return {}
    best = {key: METRICS[key].best(s.metrics[key] for s in samples) for key in samples[0].metrics}
    return {"bpp": max(s.bpp for s in samples), **best}


def shown(samples: Samples, series: Sequence[Series]) -> dict[tuple[str, str, str], Sample]:
    """The sample that a report shows for each image, name of a series and label. A downscaled variant shows the best
    sample by the first metric that was measured."""
    names = {one.name for one in series}
    chosen = {}
    for (image, codec, label), scales in samples.items():
        if codec in names and (own := [sample for sample in scales if sample.scale == 1]):
            chosen[image, codec, label] = own[0]
        if codec + SCALED in names:
            key = next(name for name in METRICS if name in scales[0].metrics)
            best = METRICS[key].best(sample.metrics[key] for sample in scales)
            chosen[image, codec + SCALED, label] = next(sample for sample in scales if sample.metrics[key] == best)
    return chosen
