"""`tessera encode`: images to .tsr files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cli import options
from cli.inputs import ENDING, IMAGES, TSR_FILES, input_of, is_complete_tsr
from cli.outputs import human
from cli.plan import FileOptions, FileTypes, Job, make_plan
from cli.report import ReportOptions
from cli.runner import Command, Conversion, Run, RunOptions
from codec.errors import ModelError
from codec.options import EXCLUSIVE, CodecOptions, EncodeOptions, is_mode
from codec.system.context import encode_passes

if TYPE_CHECKING:
    from codec.codec import Codec
    from codec.image.opening import ImageInput
    from codec.parallel.pipeline import Outcome, Resources
    from codec.results import Encoded
    from codec.system.context import ProgressListener


@click.command()
@options.sources
@options.outputs
@click.option("--keep-extension", is_flag=True, help="Name outputs photo.jpg.tsr instead of photo.tsr.")
@options.inputs
@options.encoder
@options.library("lpips_weights", CodecOptions)
@click.option(
    "--strict", is_flag=True, help="Exit with 1 if a PSNR or LPIPS target cannot be reached; the best file is still written."
)
@options.jobs
@options.batch
@options.ray
@options.coding
@options.reporting
def encode(**values: Any) -> None:
    """Compress images: files, folders, or '-' for standard input.

    A second name that ends in .tsr is the output; without one, photo.jpg becomes photo.tsr in the same folder. An input file
    may have up to 4 bytes for each pixel that --max-pixels allows, plus 64 MiB.

    \b
    tessera encode photo.jpg -q 75
    tessera encode photo.png small.tsr --target-bpp 0.05
    tessera encode -r photos/ --output-dir small/ --skip-existing
    tessera encode -r burst/ --output-dir small/ --reference auto
    """
    report, run = options.gather(ReportOptions, values), options.gather(RunOptions, values)
    for group in EXCLUSIVE:
        options.refuse_two({name: values[name] for name in group})
    files, codec = options.gather(FileOptions, values), options.select(CodecOptions, values)
    encoder = options.select(EncodeOptions, values)
    if run.ray and is_mode(encoder.get("reference")):
        msg = (
            f"--ray and --reference {encoder['reference']} contradict each other: images wait for their references. Encode the "
            "first image alone, and use its file as the reference"
        )
        raise click.UsageError(msg)
    check = partial(_check_image, max_pixels=codec["max_pixels"])
    types = FileTypes("encode", IMAGES, TSR_FILES, ENDING, check, "decode", keeps_extension=True)
    plan = make_plan(files, types, report.as_json)
    command = Encoding(codec, encode_passes(encoder), encoder, values["strict"])
    raise SystemExit(Run(plan, run, report).execute(command, files.dry_run))


def _check_image(path: str, max_pixels: int) -> None:
    from codec.image.opening import open_input

    open_input(input_of(path), max_pixels)


@dataclass(frozen=True)
class Encoding(Command):
    """The options of `tessera encode`, and its conversion of one image or many."""

    options: EncodeOptions
    strict: bool

    verb: ClassVar[str] = "encoded"
    keys: ClassVar[tuple[str, ...]] = ("reached", "measured", "reference", "notes")
    fatal: ClassVar[tuple[type[Exception], ...]] = (ModelError,)  # every image would raise the same error

    def is_complete(self, path: str) -> bool:
        return is_complete_tsr(path, self.codec_options["max_pixels"])

    @property
    def in_series(self) -> bool:
        return is_mode(self.options.get("reference"))

    def convert(self, codec: Codec, image: ImageInput) -> Encoded:
        options: Any = self.options | {"reference": None} if self.in_series else self.options  # it is the only image
        return codec.encode(image, **options)

    def convert_all(
        self, codec: Codec, pending: Sequence[Job], jobs: Sequence[Job], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[Encoded]]:
        model = codec.model  # an unknown model is reported before the pipeline, and so for the first image in any case
        if self.in_series:
            from codec.references import check_reference

            check_reference(model, self.options)
            return self._convert_series(codec, pending, jobs, resources, progress)
        images = [input_of(job.source) for job in pending]
        return codec.encode_all(images, resources=resources, progress=progress, **self.options)

    def _convert_series(
        self, codec: Codec, pending: Sequence[Job], jobs: Sequence[Job], resources: Resources, progress: ProgressListener | None
    ) -> Iterator[Outcome[Encoded]]:
        """The outputs of each folder are a series, so that a decoder finds the reference of a file beside it."""
        from codec.parallel.series import Member, encode_series

        indexes = {job: index for index, job in enumerate(pending)}
        folders: dict[Path, list[Job]] = {}
        for job in jobs:
            folders.setdefault(Path(job.output).parent, []).append(job)
        for folder in folders.values():
            members = [
                Member(input_of(job.source), Path(job.output).name, None if job in indexes else job.output) for job in folder
            ]
            for outcome in encode_series(codec, members, self.options, resources, progress):
                yield replace(outcome, index=indexes[folder[outcome.index]])

    def summarise(self, report: Conversion, encoded: Encoded) -> None:
        file = encoded.file
        measured = encoded.measured if encoded.measured is not None and math.isfinite(encoded.measured) else None
        report.values = {
            "width": file.width, "height": file.height, "bytes": len(encoded.data), "bpp": round(encoded.bpp, 5),
            "tokens": round(encoded.block_tokens, 2), "quality": None if encoded.quality is None else round(encoded.quality, 1),
            "model": encoded.model, "reached": encoded.reached, "measured": measured,
            "reference": file.reference.name if file.reference else None, "notes": list(encoded.notes),
        }  # fmt: skip
        size = f"{human(report.bytes_in)} -> {human(len(encoded.data))}  {encoded.bpp:.4f} bpp"
        report.line = f"{report.arrow()}  {size}  {encoded.block_tokens:.0f} tokens per block"
        if file.reference:
            report.line += f"  reference {file.reference.name or file.reference.hash.hex()}"
        if encoded.measured is not None:
            kind = "target_psnr" if self.options.get("target_psnr") is not None else "target_lpips"
            reached = f"{encoded.measured:.2f} dB" if kind == "target_psnr" else f"LPIPS {encoded.measured:.4f}"
            report.line += f"  {reached}"
            if not encoded.reached:
                flag = f"--{kind.replace('_', '-')} {self.options[kind]:g}"  # type: ignore
                report.warning, report.strict = f"{flag} is out of reach: the best is {reached}", self.strict
        report.notes, report.bytes_out, report.pixels = encoded.notes, len(encoded.data), file.width * file.height
