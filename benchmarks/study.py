"""The study: every image through every codec at every rate, measured, kept in a cache, and summed up.

Rates are common to all codecs: at each of them a codec makes the best file that is no larger, for every image apart. With
`own settings` each codec runs at fixed settings of its own instead, which is how published curves are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache import Cache, key_of
from benchmarks.codecs.base import CodedFile, Coder
from benchmarks.codecs.registry import SCALED, SCALES, enlarge, shrink
from benchmarks.measurements import METRICS, ImageInfo, Pixels, Point, Sample, Series
from benchmarks.measures import Measure, possible
from codec.errors import CodecMissingError, ImageError
from codec.image.reading import MAX_PIXELS, read_image, to_pixels

BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.25, 0.4, 0.7)  # bits per pixel
Samples = dict[tuple[str, str, str], list[Sample]]  # (image, codec, label) -> one per scale


@dataclass(frozen=True)
class Source:
    """An image to code."""

    image: ImageInfo
    digest: str  # of its pixels
    max_pixels: int = MAX_PIXELS

    def pixels(self) -> Pixels:
        return _pixels(self.image.path, self.max_pixels)


@lru_cache(maxsize=4)
def _pixels(path: str, max_pixels: int) -> Pixels:
    """Transparency is laid on white: the codecs are compared on colours."""
    try:
        return to_pixels(read_image(Path(path).read_bytes(), max_pixels), background="white")
    except OSError as error:
        msg = f"cannot be read ({error.strerror}): check its permissions"
        raise ImageError(msg) from error


def open_source(path: Path, name: str, max_pixels: int = MAX_PIXELS) -> Source:
    """Raises ImageError for what is no image."""
    pixels = _pixels(str(path), max_pixels)
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Source(ImageInfo(name, str(path), width, height), digest, max_pixels)


@dataclass
class Study:
    """What to measure, and the means to do it."""

    sources: Sequence[Source]
    coders: Sequence[Coder]
    scaled: frozenset[str]  # names of codecs that also run at their best scale
    native: frozenset[str]  # names of codecs that run at the image's own size
    budgets: Sequence[float]  # bits per pixel; empty: each codec's own settings
    measures: Sequence[Measure]
    cache: Cache
    failed: dict[str, str] = field(default_factory=dict)  # codec -> why it stopped in the middle
    _seen: dict[tuple[str, str], Any] = field(default_factory=dict)  # of the original that is measured: by digest and basis

    def tasks(self) -> list[tuple[Source, Coder, float]]:
        """Pieces of work, image by image: a codec at a scale."""
        out = []
        for source in self.sources:
            for coder in self.coders:
                scales = SCALES if coder.name in self.scaled and self.budgets else (1.0,)
                out += [(source, coder, scale) for scale in scales]
        return out

    def labels(self, coder: Coder) -> list[str]:
        if self.budgets:
            return [f"{budget:g} bpp" for budget in self.budgets]
        return [f"quality {setting}" for setting in coder.settings]

    def run(self, measured: Iterable[tuple[list[Sample | None], str]], progress: Callable[[], None] = lambda: None) -> Samples:
        """Gathers what `try_task` found for each of the tasks, in their order. A codec that fails in the middle is left out;
        `failed` says why."""
        found: Samples = {}
        for (source, coder, _), (samples, problem) in zip(self.tasks(), measured, strict=True):
            if problem:
                self.failed[coder.name] = problem
            for label, sample in zip(self.labels(coder), samples, strict=False):
                if sample:
                    found.setdefault((source.image.name, coder.name, label), []).append(sample)
            progress()
        return {key: samples for key, samples in found.items() if key[1] not in self.failed}

    def try_task(self, place: int) -> tuple[list[Sample | None], str]:
        """The samples of a task, or why its codec failed."""
        source, coder, scale = self.tasks()[place]
        if coder.name in self.failed:
            return [], self.failed[coder.name]
        try:
            return self.measure(source, coder, scale), ""
        except CodecMissingError as error:
            self.failed[coder.name] = str(error)
            return [], str(error)

    def measure(self, source: Source, coder: Coder, scale: float) -> list[Sample | None]:
        """An image through a codec at a scale: a sample for each label. Files and metrics come from the cache as far as it
        knows them, so that a new metric needs no file to be made again."""
        keys = self.keys(source, coder, scale)
        known = [self.cache.get(key) for key in keys]
        samples = [sample for _, sample in known]
        todo = [place for place, (there, _) in enumerate(known) if not there]
        for place, made in zip(todo, self._make(source, coder, scale, todo) if todo else (), strict=True):
            if made:
                bpp = 8 * len(made.data) / (source.image.width * source.image.height)
                samples[place] = Sample(made.data, made.setting, scale, bpp, {})
            self.cache.put(keys[place], samples[place])
        last: Sample | None = None
        for place, sample in enumerate(samples):
            if sample:  # a budget past all that the codec can use has the file of the one before
                whole = replace(sample, metrics=last.metrics) if last and last.data == sample.data else sample
                whole = self._measured(source, coder, whole)
                if whole.metrics != sample.metrics:
                    self.cache.put(keys[place], whole)
                last = samples[place] = whole
        return [sample and replace(sample, metrics=self._plain(sample)) for sample in samples]

    def keys(self, source: Source, coder: Coder, scale: float) -> list[str]:
        """Those of the cache for each label of a task."""
        return [key_of(source.digest, coder.description, scale, label) for label in self.labels(coder)]

    def _make(self, source: Source, coder: Coder, scale: float, places: list[int]) -> Iterator[CodedFile | None]:
        small = shrink(source.pixels(), scale)
        if self.budgets:
            area = source.image.width * source.image.height
            yield from coder.fit(small, [int(self.budgets[place] * area / 8) for place in places])
        else:
            for place in places:
                setting = coder.settings[place]
                yield CodedFile(coder.encode(small, setting), f"quality {setting}", setting)

    def _measured(self, source: Source, coder: Coder, sample: Sample) -> Sample:
        """The sample with all metrics that its image is large enough for, each under its key and what it depends on."""
        lacking = [
            measure
            for measure in possible(self.measures, source.image.width, source.image.height)
            if any(_full(key, measure) not in sample.metrics for key in measure.keys)
        ]
        if not lacking:
            return sample
        original = source.pixels()
        height, width = original.shape[:2]
        image = enlarge(coder.decode(sample.data), width, height)
        if image.shape != original.shape:
            msg = f"{coder.title} gave back {image.shape[1]}x{image.shape[0]} pixels for {width}x{height}: it is left out"
            raise CodecMissingError(msg)
        metrics = dict(sample.metrics)
        for measure in lacking:
            values = measure.values(image, original, self._sight(measure, source))
            metrics |= {_full(key, measure): value for key, value in values.items()}
        return replace(sample, metrics=metrics)

    def _plain(self, sample: Sample) -> dict[str, float]:
        """The metrics that are measured here, under their keys."""
        full = {key: _full(key, measure) for measure in self.measures for key in measure.keys}
        return {key: sample.metrics[full[key]] for key in METRICS if full.get(key) in sample.metrics}

    def _sight(self, measure: Measure, source: Source) -> Any:
        """What a measure sees in an original is kept for the next of its samples."""
        if any(digest != source.digest for digest, _ in self._seen):
            self._seen.clear()
        place = source.digest, " ".join((*measure.keys, measure.basis))
        if place not in self._seen:
            self._seen[place] = measure.see(source.pixels())
        return self._seen[place]

    def series(self, found: Samples) -> list[Series]:
        """The mean curves of all codecs, the downscaled variants after their codec."""
        out = []
        for coder in self.coders:
            if coder.name in self.failed:
                continue
            labels = self.labels(coder)
            if coder.name in self.native:
                points = tuple(self._point(found, coder.name, label, native) for label in labels)
                out.append(Series(coder.name, coder.title, coder.description, tuple(p for p in points if p.images), coder.aim))
            if coder.name in self.scaled and self.budgets:
                points = tuple(self._point(found, coder.name, label, best_of_scales) for label in labels)
                text = f"{coder.description}, at the best of the scales {', '.join(f'{s:g}' for s in SCALES)}"
                name, title = coder.name + SCALED, f"{coder.title}, best scale"
                out.append(Series(name, title, text, tuple(p for p in points if p.images), coder.aim))
        return out

    def _point(self, found: Samples, name: str, label: str, choose: Callable[[list[Sample]], Mapping[str, float]]) -> Point:
        rows = [choose(found.get((source.image.name, name, label), [])) for source in self.sources]
        rows = [row for row in rows if row]
        names = [key for key in ("bpp", *METRICS) if rows and all(key in row for row in rows)]
        means = {key: float(np.mean([row[key] for row in rows])) for key in names}
        return Point(label, len(rows), means.pop("bpp", 0.0), means)


def _full(key: str, measure: Measure) -> str:
    return f"{key} {measure.basis}"


def native(samples: list[Sample]) -> Mapping[str, float]:
    """Rate and metrics of the sample at the image's own size; nothing where there is none."""
    return next(({"bpp": s.bpp, **s.metrics} for s in samples if s.scale == 1), {})


def best_of_scales(samples: list[Sample]) -> Mapping[str, float]:
    """The best of all scales for each metric apart, at the largest of their rates."""
    if not samples:
        return {}
    best = {key: METRICS[key].best(s.metrics[key] for s in samples) for key in samples[0].metrics}
    return {"bpp": max(s.bpp for s in samples), **best}


def shown_of_scales(samples: list[Sample]) -> Sample:
    """The sample to look at: the best by the first metric that there is, LPIPS if it was measured."""
    key = next(name for name in METRICS if name in samples[0].metrics)
    best = METRICS[key].best(sample.metrics[key] for sample in samples)
    return next(sample for sample in samples if sample.metrics[key] == best)


def shown(found: Samples, series: Sequence[Series]) -> dict[tuple[str, str, str], Sample]:
    """What a page shows of each image, codec and label."""
    names = {one.name for one in series}
    out = {}
    for (image, codec, label), samples in found.items():
        if codec in names and (own := [sample for sample in samples if sample.scale == 1]):
            out[image, codec, label] = own[0]
        if codec + SCALED in names:
            out[image, codec + SCALED, label] = shown_of_scales(samples)
    return out
