"""`tessera decode`: .tsr files to images of any format that Pillow writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cli import options
from cli.inputs import TSR_FILES, Files, is_complete_image, read_tsr
from cli.outputs import STANDARD
from cli.plan import FileOptions, make_plan
from cli.report import ReportOptions
from cli.runner import Run, Summary
from codec.errors import UsageError
from codec.options import DECODE_PASSES, CodecOptions, DecodeOptions

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

    A second name with an image extension is the output; without one, photo.tsr becomes photo.png beside it. Formats that hold
    any image can be written, such as png, jpg, webp, avif, tiff and ppm; JPEG XL and HEIC need plugins (pillow-jxl-plugin,
    pillow-heif). Lossy formats have a high quality by default; -v shows it.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr photo.webp --output-quality 80
    tessera decode -r small/ --output-dir decoded/ --format jpg
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    report, files = options.gather(ReportOptions, values), options.gather(FileOptions, values)
    decoder, codec = options.select(DecodeOptions, values), options.select(CodecOptions, values)
    ending = f".{(values['ending'] or 'png').lstrip('.')}"
    command = Decoding(decoder, codec, ending, values["output_quality"], values["background"], report.verbose)
    plan = make_plan(files, command, report.as_json is not None)
    if "reference" not in decoder and (folders := [folder for folder in plan.folders if os.path.isdir(folder)]):
        command = replace(command, options={**decoder, "reference": folders[0]})
    if plan.output not in (None, STANDARD) and not values["ending"]:
        command = replace(command, ending=os.path.splitext(plan.output or "")[1] or ending)
    raise SystemExit(Run(command, plan, report, values).execute(files.dry_run))


@dataclass(frozen=True)
class Decoding:
    """The options of `tessera decode`, and its conversion of one file or many."""

    options: DecodeOptions
    codec_options: CodecOptions
    ending: str  # extension of outputs, with its dot
    output_quality: int | None
    background: str | None
    show_format: bool

    inputs: ClassVar[Files] = TSR_FILES
    name: ClassVar[str] = "decode"
    verb: ClassVar[str] = "decoded"
    keys: ClassVar[tuple[str, ...]] = ("partial", "reference", "notes")  # JSON keys in addition to `cli.report.FIELDS`
    fatal: ClassVar[tuple[type[Exception], ...]] = ()

    @property
    def passes(self) -> float:
        return DECODE_PASSES

    @cached_property
    def save_as(self) -> ImageFormat:
        from codec.image.writing import image_format

        return image_format(self.ending, self.output_quality)

    def output_endings(self) -> frozenset[str]:
        from codec.image.plugins import writable_endings

        return writable_endings()

    def check_input(self, path: str) -> None:
        read_tsr(path, self.codec_options["max_pixels"])

    def is_complete(self, path: str) -> bool:
        return is_complete_image(path, self.codec_options["max_pixels"])

    def prepare(self) -> None:
        """Raises UsageError if the output's format cannot be written."""
        try:
            self.save_as  # noqa: B018
        except UsageError as error:
            raise click.UsageError(str(error)) from error

    def convert(self, codec: Codec, file: FileInput) -> DecodedFile:
        return codec.decode(file, **self.options).as_file(self.save_as, self.background)

    def convert_all(
        self, codec: Codec, files: Sequence[FileInput], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[DecodedFile]]:
        return codec.decode_all(
            files,
            save_as=self.save_as,
            background=self.background,
            resources=resources,
            progress=progress,
            **self.options,
        )

    def summarise(self, decoded: DecodedFile, bytes_in: int) -> Summary:
        width, height = decoded.file.width, decoded.file.height
        values = {
            "width": width, "height": height, "bytes": bytes_in, "bpp": round(8 * bytes_in / (width * height), 5),
            "tokens": round(decoded.block_tokens, 2), "model": decoded.model, "partial": decoded.partial,
            "reference": decoded.file.reference.name if decoded.file.reference else None, "notes": list(decoded.notes),
        }  # fmt: skip
        line = f"{width}x{height}"
        if decoded.partial:
            line += f", cut: {decoded.block_tokens:.1f} tokens per block"
        if self.show_format:
            line += f", {self.save_as}"
        return Summary(line, values, bytes_in, len(decoded.data), width * height, decoded.notes)
