"""`tessera decode`: .tsr files to images of any format that Pillow writes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli import options
from cli.formats import Format, endings, format_of, image_bytes
from cli.inputs import TSR_FILES, read_image_file, read_tsr
from cli.outputs import write_output
from cli.plan import Conversion, FileOptions, Job, make_plan
from cli.report import ReportOptions
from cli.runner import Batch, Means, Summary, Work, load
from codec.errors import TesseraError
from codec.system.files import Writer

if TYPE_CHECKING:
    from PIL import Image

    from codec.parallel.pipeline import Decompressed, Outcome


@dataclass(frozen=True)
class DecoderOptions:
    """Options of a decoder."""

    ending: str | None
    output_quality: int | None
    background: str | None
    tokens: float | None
    allow_partial: bool
    model: str | None
    device: str
    runtime: str
    max_pixels: int
    jobs: int
    batch: int | None


@click.command()
@options.sources
@options.outputs
@options.inputs
@click.option("--format", "ending", metavar="EXT", help="Output format, if no name gives it: png, jpg, webp, ppm, ...")
@click.option("--tokens", type=click.FloatRange(1), metavar="N", help="Decode at most N tokens per block of 256x256 pixels.")
@click.option(
    "--output-quality",
    type=click.IntRange(0, 100),
    metavar="0-100",
    help="Quality of lossy output. Default: 90 for jpg, webp, jxl and heic, 80 for avif; 100 is lossless for webp and jxl.",
)
@options.background
@options.allow_partial
@options.jobs
@options.batch
@options.ray
@options.model("the one that wrote the file")
@options.computing
@options.reporting
def decode(**given: Any) -> None:
    """Decode .tsr files to images, as PNG unless the output's name or --format says otherwise.

    A second name with the ending of an image is the output; without one, photo.tsr becomes photo.png beside it. Formats are
    those that Pillow writes, JPEG XL and HEIC with their plugins (pillow-jxl-plugin, pillow-heif). Lossy formats are written
    at a quality that loses little; -v shows it.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr photo.webp --output-quality 80
    tessera decode -r small/ --output-dir decoded/ --format jpg
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    report_options, file_options = options.gather(ReportOptions, given), options.gather(FileOptions, given)
    chosen = options.gather(DecoderOptions, given)
    ending = f".{(chosen.ending or 'png').lstrip('.')}"
    conversion = Conversion(
        TSR_FILES,
        endings,
        ending,
        lambda path: read_tsr(path, chosen.max_pixels),
        lambda path: is_image(path, chosen.max_pixels),
    )
    plan = make_plan(file_options, conversion, report_options.as_json is not None)
    save_as = format_of(plan.output or ending, chosen.ending, chosen.output_quality)
    work = _work(chosen, conversion, save_as, report_options.verbose)
    if given["ray"]:
        from cli.ray_runner import across

        work = across(work, plan, given["ray"], chosen.device, chosen.runtime)
    raise SystemExit(Batch(plan, work, report_options).run(file_options.dry_run))


def is_image(path: str, max_pixels: int) -> bool:
    """Whether an image is complete."""
    from codec.image.reading import read_image

    try:
        read_image(read_image_file(path, max_pixels), max_pixels)
    except TesseraError:
        return False
    return True


def _work(chosen: DecoderOptions, conversion: Conversion, save_as: Format, verbose: bool) -> Work:
    def store(job: Job, image: Image.Image, writer: Writer) -> int:
        data = image_bytes(image, save_as, chosen.background)
        write_output(job.output, data, job.replace, writer)
        return len(data)

    def run(jobs: tuple[Job, ...], means: Means) -> Generator[Outcome[Job, Decompressed], None, None]:
        from codec.parallel.pipeline import Limits, decode_all, room

        return decode_all(
            jobs,
            means.codec,
            lambda job: load(job, conversion),
            lambda job, image: store(job, image, means.writer),
            allow_partial=chosen.allow_partial,
            tokens=chosen.tokens,
            limits=Limits(means.threads, chosen.batch, room(means.share), chosen.max_pixels),
            progress=means.progress,
        )

    def summarise(_: Job, made: Decompressed) -> Summary:
        return _summary(made, f", {save_as}" if verbose else "")

    return Work("decoded", conversion, chosen.jobs, partial(_codec, chosen), run, summarise, ("partial",))


def _codec(chosen: DecoderOptions) -> Any:
    from codec.codec import Codec

    return Codec(chosen.model, chosen.device, runtime=chosen.runtime, max_pixels=chosen.max_pixels)


def _summary(made: Decompressed, more: str) -> Summary:
    width, height = made.file.width, made.file.height
    values = {
        "width": width, "height": height, "bytes": made.bytes_in, "bpp": round(8 * made.bytes_in / (width * height), 5),
        "tokens": round(made.block_tokens, 2), "model": made.model, "partial": made.partial,
    }  # fmt: skip
    cut = f", cut: {made.block_tokens:.1f} tokens per block" if made.partial else ""
    return Summary(f"{width}x{height}{cut}{more}", values, made.bytes_in, made.bytes_out, width * height)
