"""The commands. Each parses, calls one library function, and reports; torch is imported only by those that draw pictures."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from bitstream.errors import TesseraError
from cli import options
from cli.closer import bench
from cli.files import STANDARD, FileError, check_output, human, read_input, write_output
from cli.report import fail, name_of, reporting

if TYPE_CHECKING:
    from PIL import Image

SUFFIX = ".tsr"
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


class Ordered(click.Group):
    """Lists commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from bitstream.container import VERSION
    from codec import __version__
    from codec.weights import open_model

    model = open_model()
    click.echo(f"tessera {__version__}, format {VERSION}, model {model.name} (stream id {model.stream_id.hex()})")
    ctx.exit()


@click.group(cls=Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Tool, format and model."
)
def main() -> None:
    """Tessera compresses photographs far below the sizes at which JPEG and WebP fall apart.

    \b
    tessera encode photo.jpg                        a photo.tsr beside it
    tessera encode photo.jpg -o small.tsr --target-size 2k
    tessera decode small.tsr -o small.png
    tessera encode - -o - <a.png | tessera decode - -o - >b.png
    """
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))


@main.command()
@click.argument("source", metavar="IN")
@options.output
@click.option(
    "-q", "--quality", type=click.FloatRange(0, 100), metavar="0-100", help="Higher is better and larger. Default: 50."
)
@click.option(
    "--tokens", type=click.FloatRange(1, 1365), metavar="N", help="Keep N tokens a block of 256x256 pixels, 1 to 1365."
)
@click.option(
    "--target-size", type=options.Size(), metavar="SIZE", help="The best picture in so many bytes: 4k, 1500. Never larger."
)
@click.option(
    "--target-bpp",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="The best picture in so many bits a pixel. Never larger.",
)
@click.option("--background", metavar="COLOR", help="Lay transparency on this colour: white, '#204060'.")
@options.force
@options.coding
@options.reporting
def encode(source: str, output: str | None, force: bool, quality: float | None, tokens: float | None, target_size: int | None,
           target_bpp: float | None, background: str | None, model: str | None, device: str, max_pixels: int,
           as_json: bool, quiet: bool, verbose: bool) -> None:  # fmt: skip
    """Compress a picture: a file, or '-' for standard input.

    \b
    tessera encode photo.jpg -q 75
    tessera encode photo.png -o photo.tsr --target-bpp 0.05
    """
    given = {"quality": quality, "tokens": tokens, "target_size": target_size, "target_bpp": target_bpp}
    target = {name: value for name, value in given.items() if value is not None}
    if len(target) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in target)
        msg = f"{names} contradict each other: give one of them"
        raise click.UsageError(msg)
    output = output or (STANDARD if source == STANDARD else _renamed(source, SUFFIX))
    with reporting(source, output, as_json, quiet, verbose) as report:
        _check_streams(output, as_json)
        check_output(output, force, source)
        data = read_input(source)
        from codec.images import read_image
        from codec.lengths import quality_of_block_tokens

        image = read_image(data, max_pixels)
        coder = _codec(model, device, max_pixels)
        made = coder.compress(image, background=background, **target)
        write_output(output, made.data)
        report.values = {
            "width": made.file.width, "height": made.file.height, "bytes": len(made.data), "bpp": round(made.bpp, 5),
            "tokens": round(made.tokens, 2), "quality": round(quality_of_block_tokens(made.tokens), 1),
            "model": coder.model.name,
        }  # fmt: skip
        report.line = (
            f"{name_of(source)} -> {_out_name(output)}  {human(len(data))} -> {human(len(made.data))}  "
            f"{made.bpp:.4f} bpp  {made.tokens:.0f} tokens a block"
        )


@main.command()
@click.argument("source", metavar="IN")
@options.output
@click.option(
    "--format", "ending", metavar="EXT", help="Output format where the name does not say it: png, jpg, webp, ppm, ..."
)
@click.option(
    "--tokens", type=click.FloatRange(1, 1365), metavar="N", help="Use at most N tokens a block of those in the file."
)
@options.allow_partial
@options.force
@options.coding
@options.reporting
def decode(source: str, output: str | None, ending: str | None, tokens: float | None, allow_partial: bool, force: bool,
           model: str | None, device: str, max_pixels: int, as_json: bool, quiet: bool, verbose: bool) -> None:  # fmt: skip
    """Draw the picture of a .tsr file, as PNG unless the output's name or --format says otherwise.

    \b
    tessera decode photo.tsr
    tessera decode photo.tsr -o photo.webp --tokens 200
    head -c 800 photo.tsr | tessera decode - --allow-partial -o - | display
    """
    output = output or (STANDARD if source == STANDARD else _renamed(source, f".{(ending or 'png').lstrip('.')}"))
    save = _format_of(output, ending)
    with reporting(source, output, as_json, quiet, verbose) as report:
        _check_streams(output, as_json)
        check_output(output, force, source)
        data = read_input(source)
        from bitstream.container import read_file

        read_file(data)  # before torch is loaded: most wrong inputs are found here
        made = _codec(model, device, max_pixels).decompress(data, allow_partial=allow_partial, tokens=tokens)
        picture = _picture_bytes(made.image, save)
        write_output(output, picture)
        report.values = {
            "width": made.file.width, "height": made.file.height, "bytes": len(data),
            "bpp": round(8 * len(data) / (made.file.width * made.file.height), 5), "tokens": round(made.tokens, 2),
            "model": made.model, "partial": made.partial,
        }  # fmt: skip
        cut = f", cut: {made.tokens:.1f} tokens a block" if made.partial else ""
        report.line = f"{name_of(source)} -> {_out_name(output)}  {made.file.width}x{made.file.height}{cut}"


@main.command()
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@options.allow_partial
@options.reporting
def info(sources: tuple[str, ...], allow_partial: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what .tsr files hold, from their headers alone.

    \b
    tessera info photo.tsr
    tessera info *.tsr --json
    """
    from bitstream.container import SECTION_NAMES, VERSION, read_file
    from bitstream.errors import TruncatedError

    failed = 0
    for source in sources:
        try:
            with reporting(source, None, as_json, quiet, verbose) as report:
                data = read_input(source)
                file = read_file(data)
                sections = {SECTION_NAMES.get(kind, f"unknown {kind}"): len(content) for kind, content in file.sections}
                status = "whole" if file.whole else "cut or damaged"
                report.values = {
                    "width": file.width, "height": file.height, "bytes": len(data),
                    "bpp": round(8 * len(data) / (file.width * file.height), 5), "length": file.length,
                    "header_bytes": file.header_bytes, "section_bytes": file.section_bytes, "sections": sections,
                    "payload_bytes": len(file.payload), "format": VERSION, "stream_id": file.stream_id.hex(),
                    "whole": file.whole,
                }  # fmt: skip
                listed = "".join(f", {name} {human(size)}" for name, size in sections.items())
                if not (as_json or quiet):
                    click.echo(
                        f"{name_of(source)}: {file.width}x{file.height}, {file.length} tokens, {human(len(data))} "
                        f"({8 * len(data) / (file.width * file.height):.4f} bpp: header {file.header_bytes} B{listed}, "
                        f"tokens {human(len(file.payload))}), format {VERSION}, stream id {file.stream_id.hex()}, {status}"
                    )
                if not (file.whole or allow_partial):
                    msg = "the checksum is wrong: the file is cut or damaged; decode what there is with --allow-partial"
                    raise TruncatedError(msg)
        except SystemExit:
            failed = 1
    raise SystemExit(failed)


@main.command()
@click.argument("source", metavar="FILE")
@options.output
@click.option("--back", is_flag=True, help="The other way: an .npz of tokens to a .tsr file.")
@options.model
@options.force
@options.reporting
def tokens(
    source: str, output: str | None, back: bool, model: str | None, force: bool, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Take the tokens out of a .tsr file as arrays, or put them back, without drawing anything.

    The .npz holds digits_I (digits, rows, columns) and known_I (rows, columns) for each level I, and size (width, height).

    \b
    tessera tokens photo.tsr -o photo.npz
    tessera tokens photo.npz --back -o photo.tsr
    """
    output = output or (STANDARD if source == STANDARD else _renamed(source, SUFFIX if back else ".npz"))
    with reporting(source, output, as_json, quiet, verbose) as report:
        _check_streams(output, as_json)
        check_output(output, force, source)
        from codec.arrays import file_to_npz, npz_to_file

        data = read_input(source)
        made, width, height, length = npz_to_file(data, model) if back else file_to_npz(data, model)
        write_output(output, made)
        report.values = {"width": width, "height": height, "bytes": len(made), "length": length}
        report.line = f"{name_of(source)} -> {_out_name(output)}  {width}x{height}  {length} tokens  {human(len(made))}"


@main.command()
@click.argument("photos", metavar="PHOTOS...", nargs=-1, required=True, type=click.Path(exists=True))
@options.output
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="N", help="Length of the schedule.  [default: 60]")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Its length in steps instead, so that runs repeat exactly.")
@click.option(
    "--state", metavar="DIR", default=".data/train", show_default=True, help="Checkpoint and logs; a run found there goes on."
)
@click.option("--init", metavar="MODEL", help="Start from a model instead of from the KLT of the photos.")
@click.option("--restart", is_flag=True, help="Start a new schedule from the checkpoint's weights.")
@click.option("--vgg", metavar="FILE", help="VGG19 features (.npz) for the perceptual loss; without it, squared error alone.")
@click.option("--perceptual", type=float, metavar="W", help="Weight of the perceptual loss.")
@click.option("--patch", type=click.IntRange(16, 256), metavar="PIXELS", help="Side of the window it looks at.")
@click.option("--rate", type=float, metavar="LR", help="Highest learning rate.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Crops a step.")
@click.option("--slope", type=float, metavar="S", help="Multiplies what a bit is worth.")
@click.option("--average", type=float, metavar="DECAY", help="Decay of the moving average that ships.")
@click.option("--seed", type=int, metavar="N", help="Of the random crops and lengths.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Processor threads (default: cores).")
@click.option(
    "--tables",
    "table_photos",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    metavar="N",
    help="Photos that the prior's tables are measured on.",
)
@options.device
def train(photos: tuple[str, ...], **given: Any) -> None:
    """Train a model on photographs (folders, tar files, pictures), or go on where a run stopped.

    SIGTERM and Ctrl-C end a run with a checkpoint. With -o, the end writes a model file: its prior in integers, the
    prior's tables measured on the photos.

    \b
    tessera train photos/ --vgg vgg19.npz --minutes 600 -o mine.safetensors
    tessera encode a.jpg --model mine.safetensors
    """
    from codec.training import TrainingConfig
    from codec.training_run import Run

    recipe = {name: given.pop(name) for name in TrainingConfig.__dataclass_fields__ if name in given}
    recipe = {name: value for name, value in recipe.items() if value is not None}
    try:
        Run(photos=photos, recipe=recipe, **given).execute(lambda line: click.echo(line, err=True))
    except TesseraError as error:
        fail("train", error, verbose=False)


main.add_command(bench)


def _codec(model: str | None, device: str, max_pixels: int) -> Any:
    from codec.api import Codec

    return Codec(model, device, max_pixels=max_pixels)


def _renamed(path: str, suffix: str) -> str:
    return os.path.splitext(path)[0] + suffix


def _check_streams(output: str, as_json: bool) -> None:
    if output == STANDARD and as_json:
        msg = "--json and -o - both want standard output: name an output file"
        raise FileError(msg)


def _out_name(output: str) -> str:
    return "standard output" if output == STANDARD else output


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


def _picture_bytes(image: Image.Image, name: str) -> bytes:
    stream = io.BytesIO()
    try:
        image.save(stream, name, **SAVE_OPTIONS.get(name, {}))
    except (OSError, ValueError) as error:
        msg = f"the picture cannot be written as {name} ({error}): use png"
        raise TesseraError(msg) from error
    return stream.getvalue()
