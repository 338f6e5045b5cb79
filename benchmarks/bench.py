"""`tessera bench`: from the user's options to results.

    bench = Bench.open(options, say)
    study = bench.study()
    results = bench.run(study, run_locally(options, study), progress, say)

`benchmarks.ray_bench.run_on_ray` takes the place of `run_locally` on several machines.
"""

from __future__ import annotations

import math
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

from benchmarks import BUDGETS, BenchError
from benchmarks.cache import Cache
from benchmarks.codecs.base import SCALES, BenchCodec, enlarge
from benchmarks.codecs.registry import NAMES, QUICK_NAMES, BenchCodecOptions, model_names, open_codec, split_name
from benchmarks.curves import delta, has_curve
from benchmarks.metrics import METRICS, Evaluator, MetricOptions, open_evaluator
from benchmarks.records import SCALED, TESSERA, ImageInfo, Pixels, Results, Sample, Series, Speed
from benchmarks.study import BenchmarkImage, Outcome, Study, open_benchmark_image, shown
from benchmarks.timing import note, time_codec
from codec import __version__
from codec.errors import ImageError, ModelError, TesseraError, UsageError
from codec.models.catalogue import CATALOGUE
from codec.options import MAX_PIXELS

SPEED_BPP = 0.153  # speed is measured at the nearest of the rates
SPEED_IMAGES = 2
MIN_TASKS = 8  # worker processes cost more time than they save if there are fewer tasks
ALL = "all"  # value of --metrics
DEFAULT_ANCHORS = ("webp-scaled", "webp")  # the first measured one is used
LIBRARIES = (
    "torch", "numpy", "pillow", "pytorch-msssim", "bjontegaard", "compressai",
    "pillow-jxl-plugin", "pillow-heif", "imageio-ffmpeg", "ssimulacra2", "constriction",
)  # fmt: skip


@dataclass(frozen=True)
class BenchOptions:
    """The options of `tessera bench`. Raises UsageError if they are unknown or contradict each other."""

    images: Mapping[str, str]  # name in tables -> path
    codecs: Sequence[str] = ()  # empty: all except quick settings
    budgets: Sequence[float] = BUDGETS
    own_settings: bool = False
    metrics: Sequence[str] = ()  # empty: the default metrics; 'all': all metrics
    metric_options: MetricOptions = field(default_factory=MetricOptions)
    anchor: str | None = None
    codec_options: BenchCodecOptions = field(default_factory=BenchCodecOptions)
    cache: Path | None = None
    jobs: int = 1
    speed: bool = True
    threads: int = 1  # threads when measuring speed
    max_pixels: int = MAX_PIXELS
    command: str = ""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.metrics if name not in (*METRICS, ALL)]:
            msg = f"unknown metric {', '.join(map(repr, unknown))}: choose from {', '.join((*METRICS, ALL))}"
            raise UsageError(msg)
        self._check_codecs()
        if self.own_settings and (scaled := [name for name in self.codecs if name.endswith(SCALED)]):
            msg = f"{', '.join(scaled)} need common rates: leave out --own-settings"
            raise UsageError(msg)
        if self.anchor is not None and self.anchor not in self.names:
            msg = f"the anchor {self.anchor!r} is not among the codecs: choose from {', '.join(self.names)}"
            raise UsageError(msg)
        if not all(budget > 0 for budget in self.budgets):
            msg = "rates are bits per pixel, above 0"
            raise UsageError(msg)

    def _check_codecs(self) -> None:
        """Raises UsageError for names that are neither codecs nor models."""
        models = [name for name in self.codecs if name not in NAMES]
        known = (TESSERA, *model_names()) if models else ()
        if unknown := [name for name in models if split_name(name)[0] not in known]:
            msg = (
                f"unknown codec {', '.join(map(repr, unknown))}: choose from {', '.join(NAMES)}; or a model, as NAME or "
                f"NAME@TOKENS: {', '.join(known[1:])}"
            )
            if importable := [name for name in unknown if split_name(name)[0] in CATALOGUE]:
                msg += f"; to install it, run `tessera models import {split_name(importable[0])[0]}`"
            raise UsageError(msg)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute, in the order of tables."""
        if ALL in self.metrics:
            return tuple(METRICS)
        return tuple(key for key, metric in METRICS.items() if (key in self.metrics if self.metrics else metric.default))

    @property
    def names(self) -> tuple[str, ...]:
        """The codecs to run, in the order of tables: Tessera, models as they were named, other codecs."""
        models = [name for name in dict.fromkeys(self.codecs) if name not in NAMES]
        known = (TESSERA, *models, *(name for name in NAMES if name != TESSERA))
        chosen = [name for name in known if name in self.codecs or (not self.codecs and name not in QUICK_NAMES)]
        return tuple(name for name in chosen if not (self.own_settings and name.endswith(SCALED)))


@dataclass
class Bench:
    """The images, codecs and metrics that a run could open, and its reasons for missing ones."""

    options: BenchOptions
    sources: list[BenchmarkImage]
    codecs: list[BenchCodec]
    evaluators: list[Evaluator]
    missing: dict[str, str]  # codec or metric -> reason
    failed: dict[str, str]  # image -> reason

    @classmethod
    def open(cls, options: BenchOptions, say: Callable[[str], None]) -> Bench:
        """Opens images, codecs and metrics. Calls `say` with a message for each item left out. Raises TesseraError if
        nothing remains."""
        bench = cls(options, [], [], [], {}, {})
        bench._open_images(say)
        bench._open_codecs(say)
        bench._open_evaluators(say)
        return bench

    def _open_images(self, say: Callable[[str], None]) -> None:
        for name, path in self.options.images.items():
            try:
                source = open_benchmark_image(Path(path), name, self.options.max_pixels)
                self._check_rates(source.image)
                self.sources.append(source)
            except ImageError as error:
                self.failed[name] = str(error)
                say(f"{path}: {error}")
        if not self.sources:
            msg = "none of the images can be measured"
            raise ImageError(msg)

    def _check_rates(self, image: ImageInfo) -> None:
        """Raises ImageError if the image has less than one byte at the lowest rate: no file could fit, so no codec would
        have a mean over all images."""
        lowest = min(() if self.options.own_settings else self.options.budgets, default=math.inf)
        if lowest * image.width * image.height < 8:
            rate = f"{lowest:g} bits per pixel"
            msg = f"{image.width}x{image.height} has less than one byte at {rate}: leave it out, or choose higher rates"
            raise ImageError(msg)

    def _open_codecs(self, say: Callable[[str], None]) -> None:
        for name in dict.fromkeys(name.removesuffix(SCALED) for name in self.options.names):
            try:
                self.codecs.append(open_codec(name, self.options.codec_options))
            except BenchError as error:
                self.missing[name] = str(error)
                if self.options.codecs:
                    say(f"{name}: {error}")
        if not self.codecs:
            msg = f"none of the codecs can run: {'; '.join(self.missing.values())}"
            raise BenchError(msg)

    def _open_evaluators(self, say: Callable[[str], None]) -> None:
        problems = {}
        for key in self.options.metric_names:
            if any(key in evaluator.keys for evaluator in self.evaluators):
                continue
            try:
                self.evaluators.append(open_evaluator(key, self.options.metric_options))
            except (ModelError, BenchError) as error:
                if key == "lpips" and self.options.metric_options.lpips_weights:
                    raise
                problems[key] = str(error)
                say(f"{METRICS[key].title} is left out: {error}")
        self.missing |= problems
        if not self.evaluators:
            msg = f"none of the metrics can be measured: {'; '.join(dict.fromkeys(problems.values()))}"
            raise TesseraError(msg)
        for evaluator in self.evaluators:
            small = [s.image.name for s in self.sources if min(s.image.width, s.image.height) < evaluator.min_side]
            for key in evaluator.keys if small else ():
                if key in self.options.metric_names:
                    count = f"{len(small)} of {len(self.sources)} images ({small[0]})"
                    self.missing[key] = f"{count} have a side under {evaluator.min_side} pixels, so there is no mean"
                    say(f"{METRICS[key].title} is left out of the tables: {self.missing[key]}")

    @property
    def problems(self) -> bool:
        """Whether an image was unreadable or a codec or metric that the user named is missing."""
        named = {name.removesuffix(SCALED) for name in self.options.codecs} | set(self.options.metrics)
        return bool(self.failed or named & self.missing.keys())

    @property
    def metrics(self) -> tuple[str, ...]:
        measured = {key for evaluator in self.evaluators for key in evaluator.keys}
        return tuple(key for key in self.options.metric_names if key in measured)

    def study(self) -> Study:
        names = self.options.names
        return Study(
            self.sources,
            self.codecs,
            frozenset(name.removesuffix(SCALED) for name in names if name.endswith(SCALED)),
            frozenset(name for name in names if not name.endswith(SCALED)),
            () if self.options.own_settings else tuple(sorted(set(self.options.budgets))),
            self.evaluators,
            Cache(self.options.cache),
        )

    def run(
        self, study: Study, outcomes: Iterable[Outcome], progress: Callable[[], None], say: Callable[[str], None]
    ) -> Results:
        """Measures quality on all images from the outcomes of the study's tasks, then speed on a few images."""
        samples = study.collect(outcomes, progress)
        for name, reason in study.failed.items():
            self.missing[name] = reason
            say(f"{name}: {reason}")
        series = {one.name: one for one in study.series(samples)}
        anchor = self.options.anchor or self._default_anchor(series)
        deltas = (
            delta(series[anchor], one, key, len(self.sources))
            for one in series.values() if anchor in series and one.name != anchor
            for key in self.metrics if METRICS[key].has_bd_rate
        )  # fmt: skip
        speeds, speed_note = self._speeds(say) if self.options.speed else ((), "")
        return Results(
            command=self.options.command or shlex.join(["tessera", "bench", *self.options.images.values()]),
            images=tuple(source.image for source in self.sources),
            metrics=self.metrics,
            budgets=tuple(study.budgets),
            series=tuple(series.values()),
            missing=self.missing,
            failed=self.failed,
            anchor=anchor,
            deltas=tuple(deltas),
            speeds=speeds,
            speed_note=speed_note,
            versions=versions(),
            settings=self._settings(study),
            samples=shown(samples, list(series.values())),
        )

    def _default_anchor(self, series: Mapping[str, Series]) -> str:
        """The first codec that has a curve, other than Tessera; else the first codec; '' if there is none."""
        names = [name for name in (*DEFAULT_ANCHORS, *series) if name in series and name != TESSERA]
        return next((name for name in names if has_curve(series[name], len(self.sources))), next(iter(names), ""))

    def _speeds(self, say: Callable[[str], None]) -> tuple[tuple[Speed, ...], str]:
        """The speeds of the codecs that can be timed, and a description of the conditions."""
        images = [source.pixels() for source in self.sources[:SPEED_IMAGES]]
        budgets = [] if self.options.own_settings else sorted(self.options.budgets)
        bpp = min(budgets, key=lambda budget: abs(budget - SPEED_BPP), default=SPEED_BPP)
        speeds = []
        with tempfile.TemporaryDirectory() as folder:
            for codec in self.codecs:
                try:
                    speeds.append(
                        time_codec(codec.name, self.options.codec_options, images, bpp, self.options.threads, Path(folder))
                    )
                except TesseraError as error:
                    say(str(error))
        return tuple(speeds), note(self.options.threads, images, bpp)

    def _settings(self, study: Study) -> dict[str, str]:
        """The settings of each codec and metric, for readers of the report."""
        settings = {codec.title: codec.description for codec in self.codecs}
        if study.budgets:
            settings["Rates"] = "for each image, each codec's best file within the rate, header included"
        else:
            settings["Rates"] = "each codec at its own fixed settings, whole files"
        if study.scaled and study.budgets:
            scales = ", ".join(f"{scale:g}" for scale in SCALES)
            settings["Best scale"] = (
                f"the image is shrunk by a Lanczos filter, coded, decoded and enlarged by a bicubic one, at scales {scales}; "
                "the best scale is chosen separately for each image, rate and metric"
            )
        settings["Metrics"] = "on RGB at the original size: " + "; ".join(
            f"{METRICS[key].title} {METRICS[key].how}" for key in self.metrics
        )
        if {"top1", "top5"} & set(self.metrics):
            settings["Classifier"] = self.options.metric_options.classifier
        settings["BD-rate"] = (
            "Bjontegaard's delta rate by piecewise cubic interpolation of mean curves, over the common range of quality"
        )
        return settings

    def decode(self, image: str, name: str, sample: Sample) -> Pixels:
        """A sample's decoded image, at the size of the original."""
        codec = next(codec for codec in self.codecs if codec.name == name.removesuffix(SCALED))
        info = next(source.image for source in self.sources if source.image.name == image)
        return enlarge(codec.decode(sample.data), info.width, info.height)


def run_locally(options: BenchOptions, study: Study) -> Iterator[Outcome]:
    """The outcomes of a study's tasks, model by model. Several jobs are separate processes, since most encoders hold the
    GIL."""
    indexes = study.order()
    if options.jobs == 1 or len(indexes) < MIN_TASKS:
        torch.set_num_threads(1)  # makes numbers independent of the number of jobs
        yield from map(study.run_task, indexes)
        return
    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"), _start_worker, (options,))
    try:
        yield from pool.map(_run_task, indexes)
    except BrokenProcessPool as error:
        msg = "a process of the benchmark crashed: run it again to continue where it stopped; -j 1 shows the cause"
        raise TesseraError(msg) from error
    finally:
        pool.shutdown(cancel_futures=True)


_study: Study  # the study of a worker process


def _start_worker(options: BenchOptions) -> None:
    global _study
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends the process without a traceback
    torch.set_num_threads(1)
    _study = Bench.open(options, lambda line: None).study()


def _run_task(index: int) -> Outcome:
    return _study.run_task(index)


def versions() -> dict[str, str]:
    """Versions of the software that the numbers depend on."""
    found = {"tessera": __version__, "Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
