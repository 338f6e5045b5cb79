"""`tessera encode`: images to .tsr files."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.inputs import IMAGES, read_image_file, read_tsr
from cli.outputs import human, write_output
from cli.plan import Conversion, FileOptions, Job, make_plan
from cli.report import ReportOptions
from cli.runner import Batch, Means, Summary, Work, load
from codec.errors import ModelError, TesseraError

if TYPE_CHECKING:
    from codec.parallel.pipeline import Compressed, Outcome

ENDING = ".tsr"


@dataclass(frozen=True)
class TargetOptions:
    """How large or how good a file should be: at most one of these is given. As `codec.rate_control.Target`, which imports
    NumPy: that must wait until the number of its threads is set."""

    quality: float | None
    tokens: float | None
    target_size: int | None
    target_bpp: float | None
    target_psnr: float | None
    target_lpips: float | None


@dataclass(frozen=True)
class EncoderOptions:
    """All other options of an encoder."""

    lpips_weights: str | None
    strict: bool
    effort: int
    strip: bool
    keep_exif: bool
    background: str | None
    alpha_quality: int | None
    model: str | None
    device: str
    runtime: str
    max_pixels: int
    jobs: int
    batch: int | None


def is_whole(path: str, max_pixels: int) -> bool:
    """Whether a .tsr file is complete: its header can be read and its checksum is right."""
    from bitstream.container import read_file

    try:
        return read_file(read_tsr(path, max_pixels)).whole
    except TesseraError:
        return False


@click.command()
@options.sources
@options.outputs
@click.option("--keep-extension", is_flag=True, help="Name outputs photo.jpg.tsr instead of photo.tsr.")
@options.inputs
@click.option(
    "-q", "--quality", type=click.FloatRange(0, 100), metavar="0-100", help="Quality: higher is better and larger. Default: 50."
)
@click.option("--tokens", type=click.FloatRange(1), metavar="N", help="Keep N tokens per block of 256x256 pixels.")
@click.option(
    "--target-size",
    type=options.Size(),
    metavar="SIZE",
    help="Make the best image that fits in SIZE bytes, such as 4k or 1500.",
)
@click.option(
    "--target-bpp",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Make the best image that fits in X bits per pixel.",
)
@click.option("--target-psnr", type=click.FloatRange(0), metavar="DB", help="Make the smallest file with at least this PSNR.")
@click.option(
    "--target-lpips", type=click.FloatRange(0), metavar="X", help="Make the smallest file with at most this LPIPS (AlexNet)."
)
@click.option("--lpips-weights", type=options.Name(), metavar="PATH", help="Weights of AlexNet and LPIPS, for --target-lpips.")
@click.option(
    "--strict", is_flag=True, help="Exit with 1 if a PSNR or LPIPS cannot be reached; the best file is still written."
)
@click.option(
    "-e",
    "--effort",
    type=click.IntRange(3, 9),
    default=3,
    show_default=True,
    metavar="3-9",
    help="3 is one pass of the network; higher values refine the tokens of each image: slower, smaller files.",
)
@click.option("--strip", is_flag=True, help="Drop the colour profile and convert colours to sRGB.")
@click.option("--keep-exif", is_flag=True, help="Keep EXIF and XMP.")
@options.background
@click.option(
    "--alpha-quality",
    type=click.IntRange(0, 100),
    metavar="0-100",
    help="Quality of transparency; 100 is lossless.  [default: 75, or lower with a target size]",
)
@options.jobs
@options.batch
@options.ray
@options.coding
@options.reporting
def encode(**given: Any) -> None:
    """Compress images: files, folders, or '-' for standard input.

    A second name that ends in .tsr is the output; without one, photo.jpg becomes photo.tsr beside it. Input files may have at
    most 4 bytes per pixel that --max-pixels allows, and 64 MiB more.

    \b
    tessera encode photo.jpg -q 75
    tessera encode photo.png small.tsr --target-bpp 0.05
    tessera encode -r photos/ --output-dir small/ --skip-existing
    """
    report_options, file_options = options.gather(ReportOptions, given), options.gather(FileOptions, given)
    chosen = options.gather(EncoderOptions, given)
    target_options = options.gather(TargetOptions, given)
    options.refuse_two(vars(target_options))
    options.refuse_two({"strip": chosen.strip, "keep_exif": chosen.keep_exif})
    target = {name: value for name, value in vars(target_options).items() if value is not None}
    conversion = _conversion(chosen.max_pixels)
    plan = make_plan(file_options, conversion, report_options.as_json is not None)
    work = _work(chosen, conversion, target)
    if given["ray"]:
        from cli.ray_runner import across

        work = across(work, plan, given["ray"], chosen.device, chosen.runtime)
    raise SystemExit(Batch(plan, work, report_options).run(file_options.dry_run))


def _conversion(max_pixels: int) -> Conversion:
    return Conversion(
        IMAGES,
        lambda: frozenset([ENDING]),
        ENDING,
        lambda path: read_image_file(path, max_pixels),
        lambda path: is_whole(path, max_pixels),
    )


def _work(chosen: EncoderOptions, conversion: Conversion, target: dict[str, Any]) -> Work:
    """What to do with the jobs of a plan."""

    def run(jobs: tuple[Job, ...], means: Means) -> Generator[Outcome[Job, Compressed], None, None]:
        from codec.parallel.pipeline import Limits, encode_all, room
        from codec.rate_control import Target
        from codec.results import ImageOptions

        return encode_all(
            jobs,
            means.codec,
            lambda job: load(job, conversion),
            lambda job, made: write_output(job.output, made.data, job.replace, means.writer),
            options=ImageOptions(**{field.name: getattr(chosen, field.name) for field in fields(ImageOptions)}),
            target=Target(**target),
            effort=chosen.effort,
            limits=Limits(means.threads, chosen.batch, room(means.share), chosen.max_pixels),
            progress=means.progress,
        )

    def summarise(_: Job, made: Compressed) -> Summary:
        return _summary(made, chosen, target)

    keys = ("reached", "measured", "notes")
    return Work("encoded", conversion, chosen.jobs, partial(_codec, chosen), run, summarise, keys, fatal=(ModelError,))


def _codec(chosen: EncoderOptions) -> Any:
    from codec.codec import Codec

    return Codec(
        chosen.model, chosen.device, runtime=chosen.runtime, max_pixels=chosen.max_pixels, lpips_weights=chosen.lpips_weights
    )


def _summary(made: Compressed, chosen: EncoderOptions, target: dict[str, Any]) -> Summary:
    encoded, file = made.encoded, made.encoded.file
    measured = encoded.measured if encoded.measured is not None and math.isfinite(encoded.measured) else None
    values = {
        "width": file.width, "height": file.height, "bytes": len(encoded.data), "bpp": round(encoded.bpp, 5),
        "tokens": round(encoded.block_tokens, 2), "quality": round(encoded.quality, 1),
        "model": made.model, "reached": encoded.reached, "measured": measured, "notes": list(encoded.notes),
    }  # fmt: skip
    size = f"{human(made.bytes_in)} -> {human(len(encoded.data))}  {encoded.bpp:.4f} bpp"
    line = f"{size}  {encoded.block_tokens:.0f} tokens per block"
    warning = None
    if encoded.measured is not None:
        found = f"{encoded.measured:.2f} dB" if "target_psnr" in target else f"LPIPS {encoded.measured:.4f}"
        line += f"  {found}"
        asked = "".join(f"--{name.replace('_', '-')} {value:g}" for name, value in target.items())
        warning = None if encoded.reached else f"{asked} is out of reach: the best is {found}"
    return Summary(
        line, values, made.bytes_in, len(encoded.data), file.width * file.height, encoded.notes, warning, chosen.strict
    )
