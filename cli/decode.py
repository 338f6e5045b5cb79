"""`tessera decode`: .tsr files to images of any format that Pillow writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cli import options
from cli.inputs import OUTPUT_IMAGES, TSR_FILES, input_of, is_complete_image, read_tsr
from cli.outputs import STANDARD
from cli.plan import FileOptions, FileTypes, Job, make_plan
from cli.report import ReportOptions
from cli.runner import Command, Conversion, Run, RunOptions
from codec.errors import TesseraError, UsageError
from codec.options import CodecOptions, DecodeOptions
from codec.system.context import DECODE_PASSES

if TYPE_CHECKING:
    from codec.codec import Codec
    from codec.image.writing import ImageFormat
    from codec.parallel.pipeline import Outcome, Resources
    from codec.results import DecodedFile
    from codec.system.context import ProgressListener
    from codec.system.inputs import FileInput


@click.command()
@options.sources
@options.outputs
@options.inputs
@click.option(
    "--format", "ending", metavar="EXT", help="Output format, instead of the output name's format: png, jpg, webp, ppm, ..."
)
@options.library("tokens", DecodeOptions)
@click.option(
    "--output-quality",
    type=click.IntRange(0, 100),
    metavar="0-100",
    help="Quality of lossy output; 100 is lossless for webp and jxl.  [default: 90 for jpg, webp, jxl and heic, 80 for avif]",
)
@options.background
@options.allow_partial
@options.library("reference", DecodeOptions)
@options.library("detail", DecodeOptions)
@options.sampling
@options.jobs
@options.batch
@options.ray
@options.coding
@options.reporting
def decode(**values: Any) -> None:
    """Decode .tsr files to images, as PNG unless the output's name or --format says otherwise.

    A second name with an image extension is the output; without one, photo.tsr becomes photo.png in the same folder. Formats
    that hold any image can be written, such as png, jpg, webp, avif, tiff and ppm; JPEG XL and HEIC need plugins
    (pillow-jxl-plugin, pillow-heif). Lossy formats have a high quality by default; -v shows it.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr photo.webp --output-quality 80
    tessera decode -r small/ --output-dir decoded/ --format jpg
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    report, run = options.gather(ReportOptions, values), options.gather(RunOptions, values)
    files, codec = options.gather(FileOptions, values), options.select(CodecOptions, values)
    decoder = options.select(DecodeOptions, values)
    ending = f".{(values['ending'] or 'png').lstrip('.')}"
    check = partial(read_tsr, max_pixels=codec["max_pixels"])
    plan = make_plan(files, FileTypes("decode", TSR_FILES, OUTPUT_IMAGES, ending, check, "encode"), report.as_json)
    if "reference" not in decoder and (folders := [folder for folder in plan.folders if os.path.isdir(folder)]):
        decoder = {**decoder, "reference": folders[0]}
    if plan.output not in (None, STANDARD) and not values["ending"]:
        ending = os.path.splitext(plan.output or "")[1] or ending
    runner = Run(plan, run, report)
    from codec.image.writing import image_format  # after `Run` has limited the threads of NumPy

    try:
        save_as = image_format(ending, values["output_quality"])
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    command = Decoding(codec, DECODE_PASSES, decoder, save_as, values["background"], report.verbose)
    raise SystemExit(runner.execute(command, files.dry_run))


@dataclass(frozen=True)
class Decoding(Command):
    """The options of `tessera decode`, and its conversion of one file or many."""

    options: DecodeOptions
    save_as: ImageFormat
    background: str | None
    show_format: bool

    verb: ClassVar[str] = "decoded"
    keys: ClassVar[tuple[str, ...]] = ("partial", "reference", "notes")

    def is_complete(self, path: str) -> bool:
        return is_complete_image(path, self.codec_options["max_pixels"])

    def convert(self, codec: Codec, file: FileInput) -> DecodedFile:
        return codec.decode(file, **self.options).as_file(self.save_as, self.background)

    def convert_all(
        self, codec: Codec, pending: Sequence[Job], jobs: Sequence[Job], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[DecodedFile]]:
        order = self._order(pending)
        files = [input_of(pending[index].source) for index in order]
        settings: Any = {"save_as": self.save_as, "background": self.background, **self.options}
        for outcome in codec.decode_all(files, resources=resources, progress=progress, **settings):
            yield replace(outcome, index=order[outcome.index])

    def _order(self, jobs: Sequence[Job]) -> list[int]:
        """The indexes of jobs, those of files with the same reference together, so that it is decoded only once."""
        groups: dict[bytes, list[int]] = {}  # keys: hashes of references
        for index, job in enumerate(jobs):
            key = b""
            with suppress(TesseraError):  # decoding reports it
                file = read_tsr(job.source, self.codec_options["max_pixels"])
                key = file.reference.hash if file.reference else file.hash
            groups.setdefault(key, []).append(index)
        return [index for group in groups.values() for index in group]

    def summarise(self, report: Conversion, decoded: DecodedFile) -> None:
        width, height = decoded.file.width, decoded.file.height
        report.values = {
            "width": width, "height": height, "bytes": report.bytes_in,
            "bpp": round(8 * report.bytes_in / (width * height), 5),
            "tokens": round(decoded.block_tokens, 2), "model": decoded.model, "partial": decoded.partial,
            "reference": decoded.file.reference.name if decoded.file.reference else None, "notes": list(decoded.notes),
        }  # fmt: skip
        report.line = f"{report.arrow()}  {width}x{height}"
        if decoded.partial:
            report.line += f", cut: {decoded.block_tokens:.1f} tokens per block"
        if self.show_format:
            report.line += f", {self.save_as}"
        report.notes, report.bytes_out, report.pixels = decoded.notes, len(decoded.data), width * height
