"""What `tessera bench` does: from folders and names of codecs to results."""

from __future__ import annotations

import platform
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.cache import Cache
from benchmarks.codecs.base import Coder
from benchmarks.codecs.registry import NATIVE_NAMES, QUICK_NAMES, SCALED, SCALED_NAMES, SCALES, CoderOptions, make_coder
from benchmarks.curves import delta
from benchmarks.measurements import METRICS, Pixels, Results, Sample, Speed
from benchmarks.measures import Measure, MeasureOptions, in_order, make_measure
from benchmarks.study import BUDGETS, Source, Study, open_source, shown
from benchmarks.timing import note, time_codec
from codec import __version__
from codec.errors import CodecMissingError, ImageError, ModelError, TesseraError, UsageError
from codec.image.reading import MAX_PIXELS
from codec.parallel.ray_cluster import Cluster

NAMES = (*NATIVE_NAMES, *SCALED_NAMES)
SPEED_BPP = 0.153  # rate at which speed is measured where no rates were asked for
SPEED_IMAGES = 2
LEAST_TASKS = 8  # that processes of their own, which take seconds to start, are worth
ALL = "all"  # of the metrics
ANCHORS = ("webp-scaled", "webp")  # in this order, where none is asked for
LIBRARIES = (
    "torch", "numpy", "pillow", "pytorch-msssim", "bjontegaard", "compressai",
    "pillow-jxl-plugin", "pillow-heif", "imageio-ffmpeg", "ssimulacra2", "constriction",
)  # fmt: skip


@dataclass(frozen=True)
class BenchOptions:
    """What a user asked for. Raises UsageError for what is unknown or contradicts itself."""

    images: Mapping[str, str]  # paths, by the names that tables have
    codecs: Sequence[str] = ()  # none: all but those at their quick settings
    budgets: Sequence[float] = BUDGETS
    own_settings: bool = False
    metrics: Sequence[str] = ()  # none: the usual ones; 'all': all
    measure_options: MeasureOptions = field(default_factory=MeasureOptions)
    anchor: str | None = None
    coder_options: CoderOptions = field(default_factory=CoderOptions)
    cache: Path | None = None
    jobs: int = 1
    speed: bool = True
    threads: int = 1
    max_pixels: int = MAX_PIXELS
    command: str = ""
    cluster: Cluster | None = None  # to measure in; speed is measured here

    def __post_init__(self) -> None:
        for what, given, known in (("codec", self.codecs, NAMES), ("metric", self.metrics, (*METRICS, ALL))):
            if unknown := [name for name in given if name not in known]:
                msg = f"unknown {what} {', '.join(map(repr, unknown))}: choose from {', '.join(known)}"
                raise UsageError(msg)
        if self.own_settings and (scaled := [name for name in self.codecs if name.endswith(SCALED)]):
            msg = f"{', '.join(scaled)} need common rates: leave out --own-settings"
            raise UsageError(msg)
        if self.anchor is not None and self.anchor not in self.names:
            msg = f"the anchor {self.anchor!r} is not among the codecs: choose from {', '.join(self.names)}"
            raise UsageError(msg)
        if not all(budget > 0 for budget in self.budgets):
            msg = "rates are bits per pixel, above 0"
            raise UsageError(msg)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to measure, as tables show them."""
        usual = (key for key, metric in METRICS.items() if metric.usual)
        return tuple(METRICS) if ALL in self.metrics else in_order(self.metrics or usual)

    @property
    def names(self) -> tuple[str, ...]:
        """The codecs to run, in a fixed order."""
        chosen = [name for name in NAMES if name in self.codecs or (not self.codecs and name not in QUICK_NAMES)]
        return tuple(name for name in chosen if not (self.own_settings and name.endswith(SCALED)))


def _too_small(sources: Sequence[Source], measures: Iterable[Measure]) -> Iterator[tuple[str, str]]:
    """Metrics that have no mean because some image is too small for them, and why."""
    for measure in measures:
        small = [source for source in sources if min(source.image.width, source.image.height) < measure.least]
        if small:
            count, first = f"{len(small)} of {len(sources)} images", small[0].image.name
            reason = f"{count} ({first}) have a side under {measure.least} pixels, so there is no mean"
            yield from ((key, reason) for key in measure.keys)


@dataclass
class Bench:
    """One run: opened images, codecs that can run, and what could not."""

    options: BenchOptions
    sources: list[Source]
    coders: list[Coder]
    measures: list[Measure]
    missing: dict[str, str]
    failed: dict[str, str]

    @classmethod
    def prepare(cls, options: BenchOptions, say: Callable[[str], None]) -> Bench:
        """Opens images and codecs; what cannot be had is said and left out. Raises TesseraError where nothing is left."""
        failed, missing, sources, coders = {}, {}, [], []
        for name, path in options.images.items():
            try:
                sources.append(open_source(Path(path), name, options.max_pixels))
            except ImageError as error:
                failed[name] = str(error)
                say(f"{path}: {error}")
        if not sources:
            msg = "none of the images could be read"
            raise ImageError(msg)
        for name in dict.fromkeys(name.removesuffix(SCALED) for name in options.names):
            try:
                coders.append(make_coder(name, options.coder_options))
            except CodecMissingError as error:
                missing[name] = str(error)
                if options.codecs:
                    say(f"{name}: {error}")
        if not coders:
            msg = f"none of the codecs can run: {'; '.join(missing.values())}"
            raise CodecMissingError(msg)
        measures: list[Measure] = []
        for key in options.metric_names:
            try:
                if not any(key in measure.keys for measure in measures):
                    measures.append(make_measure(key, options.measure_options))
            except (ModelError, CodecMissingError) as error:
                if key == "lpips" and options.measure_options.lpips_weights:
                    raise
                missing[key] = str(error)
                say(f"{METRICS[key].title} is left out: {error}")
        if not measures:
            msg = f"none of the metrics can be measured: {'; '.join(dict.fromkeys(missing.values()))}"
            raise TesseraError(msg)
        for key, reason in _too_small(sources, measures):
            if key in options.metric_names:
                missing[key] = reason
                say(f"{METRICS[key].title} is left out of the tables: {reason}")
        return cls(options, sources, coders, measures, missing, failed)

    @property
    def problems(self) -> bool:
        """Whether something that was asked for by name could not be done."""
        named = {name.removesuffix(SCALED) for name in self.options.codecs} | set(self.options.metrics)
        return bool(self.failed or named & self.missing.keys())

    @property
    def metrics(self) -> tuple[str, ...]:
        measured = {key for measure in self.measures for key in measure.keys}
        return tuple(key for key in self.options.metric_names if key in measured)

    def study(self) -> Study:
        names = self.options.names
        return Study(
            self.sources,
            self.coders,
            frozenset(name.removesuffix(SCALED) for name in names if name.endswith(SCALED)),
            frozenset(name for name in names if not name.endswith(SCALED)),
            () if self.options.own_settings else tuple(sorted(set(self.options.budgets))),
            self.measures,
            Cache(self.options.cache),
        )

    def measured(self, study: Study) -> Iterator[tuple[list[Sample | None], str]]:
        """What each task found, in order. Several jobs are as many processes, since most encoders hold Python's lock."""
        if self.options.cluster:
            from benchmarks.ray_bench import measured_across

            yield from measured_across(self.options, study, self.options.cluster)
            return
        places = range(len(study.tasks()))
        if self.options.jobs == 1 or len(places) < LEAST_TASKS:
            torch.set_num_threads(1)  # the same numbers with any number of jobs
            yield from map(study.try_task, places)
            return
        pool = ProcessPoolExecutor(self.options.jobs, get_context("spawn"), _start, (self.options,))
        try:
            yield from pool.map(_try_task, places)
        except BrokenProcessPool as error:
            msg = "a process of the benchmark crashed: run it again to continue where it stopped; -j 1 shows the cause"
            raise TesseraError(msg) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def run(self, study: Study, progress: Callable[[], None], say: Callable[[str], None]) -> Results:
        """Measures quality on all images, then speed on a few of them."""
        found = study.run(self.measured(study), progress)
        for name, reason in study.failed.items():
            self.missing[name] = reason
            say(f"{name}: {reason}")
        series = study.series(found)
        names = [s.name for s in series]
        anchor = self.options.anchor or next((n for n in (*ANCHORS, *names) if n in names and n != "tessera"), "")
        base = next((s for s in series if s.name == anchor), None)
        others = [s for s in series if s is not base]
        speeds, speed_note = self.speeds(say) if self.options.speed else ((), "")
        return Results(
            command=self.options.command or shlex.join(["tessera", "bench", *self.options.images.values()]),
            images=tuple(source.image for source in self.sources),
            metrics=self.metrics,
            budgets=tuple(study.budgets),
            series=tuple(series),
            missing=self.missing,
            failed=self.failed,
            anchor=anchor,
            deltas=tuple(delta(base, s, key, len(self.sources)) for s in others for key in self.metrics if METRICS[key].rated)
            if base
            else (),
            speeds=speeds,
            speed_note=speed_note,
            versions=versions(),
            settings=self.words(study),
            samples=shown(found, series),
        )

    def speeds(self, say: Callable[[str], None]) -> tuple[tuple[Speed, ...], str]:
        images = [source.pixels() for source in self.sources[:SPEED_IMAGES]]
        budgets = [] if self.options.own_settings else sorted(self.options.budgets)
        bpp = min(budgets, key=lambda budget: abs(budget - SPEED_BPP), default=SPEED_BPP)
        speeds = []
        with tempfile.TemporaryDirectory() as folder:
            for coder in self.coders:
                try:
                    coder_options = self.options.coder_options
                    speeds.append(time_codec(coder.name, coder_options, images, bpp, self.options.threads, Path(folder)))
                except TesseraError as error:
                    say(str(error))
        return tuple(speeds), note(self.options.threads, images, bpp)

    def words(self, study: Study) -> dict[str, str]:
        """How everything was done."""
        words = {coder.title: coder.description for coder in self.coders}
        if study.budgets:
            words["Rates"] = (
                "for every image the best file of each codec that is no larger than the rate allows, header included"
            )
        else:
            words["Rates"] = "each codec at fixed settings of its own, whole files"
        if study.scaled and study.budgets:
            scales = ", ".join(f"{scale:g}" for scale in SCALES)
            words["Best scale"] = (
                f"the image is shrunk by a Lanczos filter, coded, decoded and enlarged by a bicubic one, at scales {scales}; "
                "the best of them for each image, rate and metric apart"
            )
        words["Metrics"] = "on RGB at the original size: " + "; ".join(
            f"{METRICS[key].title} {METRICS[key].how}" for key in self.metrics
        )
        if {"top1", "top5"} & set(self.metrics):
            words["Classifier"] = self.options.measure_options.classifier
        words["BD-rate"] = (
            "Bjontegaard's delta rate by piecewise cubic interpolation of mean curves, over the qualities both reach"
        )
        return words


_worker: Study  # of a process that measures


def _start(options: BenchOptions) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it without a traceback
    torch.set_num_threads(1)
    _worker = Bench.prepare(options, lambda line: None).study()


def _try_task(place: int) -> tuple[list[Sample | None], str]:
    return _worker.try_task(place)


def decoded(bench: Bench) -> Callable[[str, str, Sample], Pixels]:
    """How to get the image of a sample back, at its original's size."""
    from benchmarks.codecs.registry import enlarge

    coders = {coder.name: coder for coder in bench.coders}
    sizes = {source.image.name: (source.image.width, source.image.height) for source in bench.sources}
    return lambda image, name, sample: enlarge(coders[name.removesuffix(SCALED)].decode(sample.data), *sizes[image])


def versions() -> dict[str, str]:
    """The software that the numbers depend on."""
    found = {"tessera": __version__, "Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
