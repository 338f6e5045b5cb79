"""`tessera decode`: .tsr files to pictures of any format that Pillow writes."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitstream.errors import TesseraError
from cli import options
from cli.batch import Batch, Told, Work, load
from cli.files import STANDARD, Writer
from cli.plan import Job, Kind, Wanted, make_plan
from cli.report import Saying

if TYPE_CHECKING:
    from PIL import Image

    from codec.pipeline import Drawn, Outcome

SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
KEPT = ("icc_profile", "exif", "xmp")  # what Pillow's plugins take, where their format has a place for it


@dataclass(frozen=True)
class Request:
    """What is asked of a decoder."""

    ending: str | None
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
@click.option(
    "--format", "ending", metavar="EXT", help="Output format where the name does not say it: png, jpg, webp, ppm, ..."
)
@click.option(
    "--tokens", type=click.FloatRange(1, 1365), metavar="N", help="Use at most N tokens a block of those in the file."
)
@options.allow_partial
@options.jobs
@options.batch
@options.coding
@options.reporting
def decode(**given: Any) -> None:
    """Draw the pictures of .tsr files, as PNG unless the output's name or --format says otherwise.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr -o photo.webp --tokens 200
    tessera decode -r small/ --output-dir drawn/ --format jpg
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    saying, wanted, request = options.gather(Saying, given), options.gather(Wanted, given), options.gather(Request, given)
    ending = f".{(request.ending or 'png').lstrip('.')}"
    kind = Kind(lambda: frozenset([".tsr"]), picture_endings, ending, is_picture)
    plan = make_plan(wanted, kind, saying.as_json)
    save_as = _format_of(plan.output or ending, request.ending)
    raise SystemExit(Batch(plan, _work(request, kind, save_as), saying).run(wanted.dry_run))


def picture_endings() -> frozenset[str]:
    """Endings of the pictures that Pillow writes."""
    from PIL import Image

    Image.init()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE) - {".tsr"}


def is_picture(path: str) -> bool:
    """Whether all of a picture can be read."""
    from codec.images import read_image

    try:
        read_image(Path(path).read_bytes())
    except (TesseraError, OSError):
        return False
    return True


def _work(request: Request, kind: Kind, save_as: str) -> Work:
    def store(job: Job, image: Image.Image, writer: Writer) -> int:
        data = picture_bytes(image, save_as)
        writer.write(job.output, data, job.replace)
        return len(data)

    def run(jobs: tuple[Job, ...], writer: Writer) -> Generator[Outcome[Job, Drawn], None, None]:
        from codec.pipeline import Limits, decode_all

        return decode_all(
            jobs,
            lambda: _codec(request),
            lambda job: load(job, kind),
            lambda job, image: store(job, image, writer),
            allow_partial=request.allow_partial,
            tokens=request.tokens,
            limits=Limits(request.jobs, request.batch, max_pixels=request.max_pixels),
        )

    return Work("decoded", kind, run, _told)


def _codec(request: Request) -> Any:
    from codec.api import Codec

    return Codec(request.model, request.device, max_pixels=request.max_pixels)


def _told(_: Job, made: Drawn) -> Told:
    width, height = made.file.width, made.file.height
    values = {
        "width": width, "height": height, "bytes": made.bytes_in, "bpp": round(8 * made.bytes_in / (width * height), 5),
        "tokens": round(made.tokens, 2), "model": made.model, "partial": made.partial,
    }  # fmt: skip
    cut = f", cut: {made.tokens:.1f} tokens a block" if made.partial else ""
    return Told(f"{width}x{height}{cut}", values, made.bytes_in, made.bytes_out, width * height)


def _format_of(output: str, ending: str | None) -> str:
    """Pillow's name of the format to write. Raises a usage error for one that it cannot write."""
    from PIL import Image

    suffix = f".{ending.lstrip('.')}" if ending else ("" if output == STANDARD else os.path.splitext(output)[1])
    suffix = (suffix or ".png").lower()
    Image.init()
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE:
        msg = f"no picture format is called {suffix.lstrip('.')!r}: use png, jpg, webp, ppm, tiff or another that Pillow writes"
        raise click.UsageError(msg)
    return name


def picture_bytes(image: Image.Image, name: str) -> bytes:
    """A picture as a file of the format that Pillow calls so. Raises TesseraError where the format cannot hold it."""
    stream = io.BytesIO()
    kept = {key: image.info[key] for key in KEPT if key in image.info}
    try:
        image.save(stream, name, **SAVE_OPTIONS.get(name, {}), **kept)
    except MemoryError:
        raise
    except Exception as error:  # odd EXIF makes Pillow's writers of TIFF and AVIF raise errors of any kind
        msg = f"the picture cannot be written as {name} ({error}): use png"
        raise TesseraError(msg) from error
    return stream.getvalue()
