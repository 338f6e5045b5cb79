"""`tessera bench run` and `tessera bench recognition`: rate, quality and speed of Tessera and of other codecs."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks import BUDGETS
from cli import options
from cli.inputs import IMAGES, find_inputs, named_inputs
from cli.outputs import STANDARD, check_output, printable, write_output
from cli.progress import Bar
from cli.report import ReportOptions, reporting, say
from codec.errors import FileError, TesseraError

if TYPE_CHECKING:
    from benchmarks.bench import BenchOptions
    from benchmarks.records import Results

RUN = "run"
PLOTS = (".png", ".svg", ".pdf")
RECOGNITION_CODECS = "tessera,webp-scaled,avif-scaled,vvc-scaled"


class BenchGroup(click.Group):
    """A group with `run` as its default command: `tessera bench photos/` is `tessera bench run photos/`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[RUN].format_help(click.Context(self.commands[RUN], info_name=ctx.info_name, parent=ctx.parent), formatter)
        formatter.write("\n")
        self.format_commands(ctx, formatter)


class Names(click.ParamType):
    """Names separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(",") if part.strip())


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(map(float, value.rstrip(", ").split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers: separate numbers with commas, as in 0.02,0.05", param, ctx)


_weights = click.option(
    "--classifier-weights", metavar="FILE", help="Classifier weights.  [default: from its package, or torch's cache]"
)
_classifier = click.option(
    "--classifier", metavar="NAME", help="Classifier for top1 and top5, from torchvision.  [default: efficientnet-lite0]"
)
_csv = click.option("--csv", "csv_path", metavar="PATH", help="Write all numbers as CSV; '-' is standard output.")
_plot = click.option("--plot", "plot_path", metavar="PATH", help="Plot the curves: .png, .svg or .pdf.")
_cache = click.option("--cache", metavar="DIR", help="Folder of cached results.  [default: in the user's cache]")
_no_cache = click.option("--no-cache", is_flag=True, help="Do not cache results.")
_running = options.together(_cache, _no_cache, options.jobs, options.ray, options.force, options.coding, options.reporting)


@click.group(cls=BenchGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def bench() -> None:
    """Compare rate, quality and speed with other codecs."""


@bench.command(RUN)
@click.argument("inputs", metavar="DIR|FILE...", nargs=-1)
@options.inputs
@click.option(
    "--codecs",
    type=Names(),
    metavar="LIST",
    default=(),
    help="Codecs to run: tessera; jpeg, webp, avif, avif-psnr, heic, jpeg2000, jxl, vvc, each also with -scaled (at its best "
    "scale); compressai's bmshj2018-factorized, bmshj2018-hyperprior, mbt2018-mean, cheng2020-attn. All but tessera, jpeg2000 "
    "and compressai's also with -quick (at quick settings). Also any model of `tessera models list`: NAME at every length, "
    "NAME@TOKENS at one. Default: all but quick settings and models.",
)
@click.option(
    "--bpp",
    "budgets",
    type=Numbers(),
    metavar="LIST",
    default=",".join(map(str, BUDGETS)),
    show_default=True,
    help="Maximum rates, in bits per pixel.",
)
@click.option(
    "--own-settings", is_flag=True, help="Run codecs at fixed settings instead of common rates, as in published curves."
)
@click.option(
    "--metrics",
    type=Names(),
    metavar="LIST",
    default=(),
    help="Metrics: lpips, psnr, ms_ssim, colour and peaks (the default), features and ssimulacra2 (slow), top1, top5, or all.",
)
@_classifier
@_weights
@click.option("--lpips-weights", metavar="NPZ", help="LPIPS weights.  [default: downloaded by `models fetch lpips`]")
@click.option("--compressai-weights", metavar="DIR", help="Weights for compressai's codecs.  [default: from compressai's hub]")
@click.option("--anchor", metavar="CODEC", help="Reference codec for BD-rates.  [default: webp-scaled]")
@_csv
@click.option("--json-dir", metavar="DIR", help="Write one JSON file per codec, for compressai's plot tool.")
@_plot
@click.option(
    "--overlay",
    "overlays",
    metavar="JSON",
    multiple=True,
    help="Also plot a published curve, from compressai's JSON.",
)
@click.option("--report", "page_path", metavar="HTML", help="Write a self-contained page: curves, tables, images side by side.")
@click.option("--no-speed", is_flag=True, help="Do not measure speed.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Threads when measuring speed."
)
@_running
def run(inputs: tuple[str, ...], recursive: bool, files_from: str | None, **values: Any) -> None:
    """Measure rate, quality and speed of Tessera and other codecs on images.

    Rates count complete files. At each rate, each codec writes the best file that fits. Results are cached, so an
    interrupted run continues where it stopped.

    \b
    tessera bench photos/
    tessera bench photos/ --codecs tessera,webp,webp-scaled --bpp 0.02,0.05,0.1 --report report.html
    """
    _measure(inputs, files_from, recursive, values)


@bench.command()
@click.argument("inputs", metavar="DIR|FILE...", nargs=-1)
@options.inputs
@_classifier
@_weights
@click.option(
    "--codecs",
    type=Names(),
    metavar="LIST",
    default=RECOGNITION_CODECS,
    show_default=True,
    help="Codecs to run, as in `tessera bench`.",
)
@click.option(
    "--bpp",
    "budgets",
    type=Numbers(),
    metavar="LIST",
    default=",".join(map(str, BUDGETS[:5])),
    show_default=True,
    help="Maximum rates, in bits per pixel.",
)
@_csv
@_plot
@_running
def recognition(inputs: tuple[str, ...], recursive: bool, files_from: str | None, **values: Any) -> None:
    """Measure how often a classifier recognises the same class in the decoded image as in the original, at equal bytes.

    A codec with -scaled recognises a class if it does so at any of its scales.

    \b
    tessera bench recognition photos/
    tessera bench recognition photos/ --classifier resnet50 --codecs tessera,webp,webp-scaled
    """
    _measure(inputs, files_from, recursive, {**values, "metrics": ("top1", "top5"), "no_speed": True})


@dataclass(frozen=True)
class Outputs:
    """The files to write."""

    force: bool
    csv_path: str | None = None
    plot_path: str | None = None
    json_dir: str | None = None
    page_path: str | None = None
    overlays: tuple[str, ...] = ()

    def check(self, as_json: str | None) -> None:
        """Raises FileError or click.UsageError, before any work, if one cannot be written."""
        for path in (self.csv_path, self.plot_path, self.page_path):
            if path:
                check_output(path, self.force, "")
        if self.csv_path == STANDARD and as_json:
            msg = "--json and --csv - both need standard output: name a file for one of them"
            raise click.UsageError(msg)
        if self.plot_path and not self.plot_path.lower().endswith(PLOTS):
            msg = f"cannot plot to {self.plot_path!r}: choose a name that ends with {' or '.join(PLOTS)}"
            raise click.UsageError(msg)


def _measure(inputs: tuple[str, ...], files_from: str | None, recursive: bool, values: dict[str, Any]) -> None:
    """Runs a benchmark. Exits with 1 if an image, codec or metric that the user named is missing."""
    report_options, outputs = options.gather(ReportOptions, values), options.gather(Outputs, values)
    with failing(report_options):
        outputs.check(report_options.as_json)
        images, ray = find_images(inputs, files_from, recursive), values.pop("ray")
        problems = _run(_options(images, values), outputs, report_options, ray)
    sys.exit(1 if problems else 0)


def _options(images: dict[str, str], values: dict[str, Any]) -> BenchOptions:
    """The options of a benchmark. Those in `values` that are not about codecs, weights and the cache are fields of
    `BenchOptions` themselves."""
    from benchmarks.bench import BenchOptions
    from benchmarks.classifiers import DEFAULT
    from benchmarks.codecs.registry import BenchCodecOptions
    from benchmarks.metrics import MetricOptions

    codec_options = options.gather(BenchCodecOptions, values)
    classifier, weights = values.pop("classifier") or DEFAULT, values.pop("classifier_weights")
    metric_options = MetricOptions(values.pop("lpips_weights", None), classifier, weights)
    folder, no_cache, no_speed = values.pop("cache"), values.pop("no_cache"), values.pop("no_speed")
    return BenchOptions(
        images,
        metric_options=metric_options,
        codec_options=codec_options,
        cache=None if no_cache else _cache_folder(folder),
        speed=not no_speed,
        command=printable(shlex.join(["tessera", *sys.argv[1:]])),
        **values,
    )


def _cache_folder(name: str | None) -> Path | None:
    """The folder of cached results; None if it is not named and the user has no home folder."""
    from codec.system.files import cache_folder

    if name:
        return Path(name)
    with suppress(FileError):
        return cache_folder() / "bench"
    return None


def find_images(inputs: tuple[str, ...], files_from: str | None, recursive: bool) -> dict[str, str]:
    """The paths of all named images and of all images in named folders, by unique and printable name.

    Raises FileError if a folder holds no images or cannot be read."""
    named = named_inputs(inputs, files_from)
    if STANDARD in named:
        msg = "'-' is standard input, which can be read only once: name a file"
        raise click.UsageError(msg)
    images: dict[str, str] = {}
    for found in find_inputs(named, recursive, IMAGES):
        if found.error:
            raise FileError(found.error.message, file=found.path)
        name = printable(found.name)
        names = (f"{name} ({n})" if n > 1 else name for n in itertools.count(1))
        images[next(name for name in names if name not in images)] = found.path
    return images


def _run(bench_options: BenchOptions, outputs: Outputs, report_options: ReportOptions, ray: str | None) -> bool:
    """Runs a benchmark and writes its outputs. Returns whether there were problems."""
    from benchmarks import export
    from benchmarks.bench import Bench, run_locally

    overlays = [_overlay(path) for path in outputs.overlays]
    bench = Bench.open(bench_options, say)
    study = bench.study()
    if ray:
        from benchmarks.ray_bench import run_on_ray
        from cli.ray_runner import cluster_of

        codec_options = bench_options.codec_options
        cluster = cluster_of(ray, codec_options.device, codec_options.runtime, threads=1)
        outcomes = run_on_ray(bench_options, study, cluster)
    else:
        outcomes = run_locally(bench_options, study)
    with Bar(len(study.tasks()), "measuring", hidden=report_options.quiet) as bar:
        results = bench.run(study, outcomes, bar.advance, bar.say)
    if report_options.as_json:
        for series in results.series:
            report_options.put_record(export.json_of(series, results))
    elif outputs.csv_path != STANDARD and not report_options.quiet:
        _show(results)
    if outputs.csv_path:
        write_output(outputs.csv_path, export.csv_of(results).encode(errors="backslashreplace"), outputs.force)
    if outputs.json_dir:
        export.write_json(results, Path(outputs.json_dir))
    if outputs.plot_path:
        export.write_plot(results.series, results.metrics, Path(outputs.plot_path), overlays)
    if outputs.page_path:
        from benchmarks.report import write_report

        sources = {source.image.name: source for source in bench.sources}
        write_report(results, Path(outputs.page_path), lambda name: sources[name].pixels(), bench.decode)
    return bench.problems


def _overlay(path: str) -> dict:
    try:
        curve = json.loads(Path(path).read_text())
        curve["results"]["bpp"], curve["name"]  # raises if one of them is missing
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"not a curve in compressai's JSON ({error})"
        raise TesseraError(msg, file=path) from error
    return curve


def _show(results: Results) -> None:
    """Prints tables and remarks on standard output."""
    from rich.console import Console
    from rich.text import Text

    from benchmarks.export import tables

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)

    def show(part: Any) -> None:
        console.print(part, soft_wrap=isinstance(part, str | Text), markup=False)  # a path may look like markup

    count = len(results.images)
    show(f"{count} image{'s' if count > 1 else ''}, whole files, means; 'n of {count}' if not all images fit\n")
    for title, table, remarks in tables(results):
        for part in (Text(title, "bold"), table, f"{remarks}\n" if remarks else ""):
            show(part)
    for name, reason in results.missing.items():
        show(printable(f"left out: {name}: {reason}"))


@contextmanager
def failing(report_options: ReportOptions) -> Iterator[None]:
    """Turns an error into one line on standard error and an exit code."""
    with reporting("bench", None, ReportOptions(verbose=report_options.verbose)):
        try:
            yield
        except ModuleNotFoundError as error:
            msg = f"needs {error.name}, which is not installed: pip install '.[report]' in Tessera's repository"
            raise TesseraError(msg) from error
