"""`tessera decode`: .tsr files to pictures of any format that Pillow writes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from bitstream.errors import TesseraError
from cli import options
from cli.batch import Batch, Told, Work, load
from cli.files import Writer
from cli.formats import Format, endings, format_of, picture_bytes
from cli.inputs import read_picture, read_tsr
from cli.plan import Job, Kind, Wanted, make_plan
from cli.report import Saying

if TYPE_CHECKING:
    from PIL import Image

    from codec.batch import Drawn, Outcome


@dataclass(frozen=True)
class Request:
    """What is asked of a decoder."""

    ending: str | None
    output_quality: int | None
    background: str | None
    tokens: float | None
    allow_partial: bool
    model: str | None
    device: str
    max_pixels: int
    jobs: int
    batch: int | None


@click.command()
@options.sources
@options.outputs
@options.inputs
@click.option("--format", "ending", metavar="EXT", help="Output format where no name gives it: png, jpg, webp, ppm, ...")
@click.option(
    "--tokens", type=click.FloatRange(1, 1365), metavar="N", help="Use at most N tokens per block of those in the file."
)
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
@options.coding
@options.reporting
def decode(**given: Any) -> None:
    """Decode .tsr files to pictures, as PNG unless the output's name or --format says otherwise.

    A second name with the ending of a picture is the output; without one, photo.tsr becomes photo.png beside it. Formats are
    those that Pillow writes, JPEG XL and HEIC with their plugins (pillow-jxl-plugin, pillow-heif). Lossy formats are written
    at a quality at which little is lost; -v says which.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr photo.webp --output-quality 80
    tessera decode -r small/ --output-dir decoded/ --format jpg
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    saying, wanted, request = options.gather(Saying, given), options.gather(Wanted, given), options.gather(Request, given)
    ending = f".{(request.ending or 'png').lstrip('.')}"
    kind = Kind(
        lambda: frozenset([".tsr"]),
        endings,
        ending,
        lambda path: read_tsr(path, request.max_pixels),
        lambda path: is_picture(path, request.max_pixels),
    )
    plan = make_plan(wanted, kind, saying.as_json is not None)
    save_as = format_of(plan.output or ending, request.ending, request.output_quality)
    raise SystemExit(Batch(plan, _work(request, kind, save_as, saying.verbose), saying).run(wanted.dry_run))


def is_picture(path: str, max_pixels: int) -> bool:
    """Whether all of a picture can be read."""
    from codec.pictures.images import read_image

    try:
        read_image(read_picture(path, max_pixels), max_pixels)
    except TesseraError:
        return False
    return True


def _work(request: Request, kind: Kind, save_as: Format, verbose: bool) -> Work:
    def store(job: Job, image: Image.Image, writer: Writer) -> int:
        data = picture_bytes(image, save_as, request.background)
        writer.write(job.output, data, job.replace)
        return len(data)

    def run(
        jobs: tuple[Job, ...], writer: Writer, progress: Callable[[float], None]
    ) -> Generator[Outcome[Job, Drawn], None, None]:
        from codec.batch import Limits, decode_all

        return decode_all(
            jobs,
            lambda: _codec(request),
            lambda job: load(job, kind),
            lambda job, image: store(job, image, writer),
            allow_partial=request.allow_partial,
            tokens=request.tokens,
            limits=Limits(request.jobs, request.batch, max_pixels=request.max_pixels),
            progress=progress,
        )

    def tell(_: Job, made: Drawn) -> Told:
        return _told(made, f", {save_as}" if verbose else "")

    return Work("decoded", kind, request.jobs, run, tell, ("partial",))


def _codec(request: Request) -> Any:
    from codec.api import Codec

    return Codec(request.model, request.device, max_pixels=request.max_pixels)


def _told(made: Drawn, more: str) -> Told:
    width, height = made.file.width, made.file.height
    values = {
        "width": width, "height": height, "bytes": made.bytes_in, "bpp": round(8 * made.bytes_in / (width * height), 5),
        "tokens": round(made.tokens, 2), "model": made.model, "partial": made.partial,
    }  # fmt: skip
    cut = f", cut: {made.tokens:.1f} tokens per block" if made.partial else ""
    return Told(f"{width}x{height}{cut}{more}", values, made.bytes_in, made.bytes_out, width * height)
