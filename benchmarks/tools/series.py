"""Bytes of a series of images that resemble each other, at equal LPIPS and at equal PSNR. For docs/references.md.

    pip install --target /tmp/ffmpeg imageio-ffmpeg  # for av1-video and vvc-video; it brings its own ffmpeg
    PYTHONPATH=/tmp/ffmpeg python -m benchmarks.tools.series burst --lpips lpips_alex.npz --csv series.csv

Codes all images of a folder, in order of name, with each method and at several settings:

| method | files |
|---|---|
| tessera | one per image |
| first, previous, auto | one per image, by `tessera encode --reference` with this value |
| avif, avif-psnr | one per image, by Pillow at speed 4, tuned for the eye or for squared error |
| av1-video, vvc-video | one for all images, by libaom at speed 4 or VVenC's preset medium; an image needs those before it |

Each setting is a row of the CSV: total bytes, and the means over images of LPIPS and of PSNR. Rows that the CSV has already are
not measured again. Prints two Markdown tables of all its rows for the folder, with a line for each setting of the method
`--anchor`: each method's bytes at the same mean LPIPS or PSNR, interpolated on its curve, and relative to the anchor. Videos
have no random access and no metadata. Encoders use one thread.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import BenchError
from benchmarks.codecs.pillow import AVIF, AVIF_PSNR, PillowCodec
from benchmarks.codecs.vvc import FLAGS, RGB
from benchmarks.curves import same_quality
from benchmarks.records import Pixels, Point
from benchmarks.records import Series as Curve
from benchmarks.study import read_pixels
from codec.errors import TesseraError
from codec.metrics import psnr
from codec.metrics.lpips import LPIPS

METRICS = {"lpips": "LPIPS", "psnr": "PSNR"}
QUALITIES = (0, 15, 30, 45, 60, 75, 90)  # of Tessera
AV1 = ("-c:v", "libaom-av1", "-cpu-used", "4", "-b:v", "0", "-g", "9999")  # only the first image is an intra image
VVC = ("-c:v", "libvvenc", "-preset", "medium", "-qpa", "0", "-period", "9999")


@dataclass(frozen=True)
class Images:
    """The images of a series: their files, and their pixels (H, W, 3)."""

    files: Sequence[Path]
    pixels: Sequence[Pixels]


@dataclass(frozen=True)
class Row:
    """A method at one setting, as a row of the CSV."""

    series: str  # name of the folder
    method: str
    setting: int
    images: int
    pixels: int  # total of all images
    bytes: int  # total of all files
    lpips: float
    psnr: float


Coded = tuple[int, list[Pixels]]  # bytes of all files, decoded images


@dataclass(frozen=True)
class Method:
    settings: Sequence[int]  # lowest rate first
    code: Callable[[Images, int], Coded]


def code_with_tessera(images: Images, quality: int, reference: str | None = None) -> Coded:
    """Encodes and decodes a folder by the command `tessera`. Raises BenchError if it fails."""
    if reference and "previous" not in run_tessera("encode", "--help"):
        msg = f"`tessera encode` has no `--reference {reference}` here: leave out this method"
        raise BenchError(msg)
    with tempfile.TemporaryDirectory() as name:
        sources, coded, decoded = (Path(name, part) for part in ("sources", "coded", "decoded"))
        sources.mkdir()
        for file in images.files:  # the folder may hold other folders
            (sources / file.name).symlink_to(file.resolve())
        options = ("--reference", reference) if reference else ()
        run_tessera("encode", "-r", sources, "--output-dir", coded, "--quality", quality, "-j", 1, *options)
        run_tessera("decode", "-r", coded, "--output-dir", decoded, "-j", 1)
        files = [next(coded.rglob(f"{file.stem}.*")) for file in images.files]
        pixels = [read_pixels(next(decoded.rglob(f"{file.stem}.*"))) for file in images.files]
        return sum(file.stat().st_size for file in files), pixels


def code_each(images: Images, quality: int, codec: PillowCodec) -> Coded:
    files = [codec.encode(pixels, quality) for pixels in images.pixels]
    return sum(map(len, files)), [codec.decode(file) for file in files]


def code_as_video(images: Images, setting: int, encoder: Sequence[str], scale: str, container: str) -> Coded:
    """Codes images as the frames of one video in 10-bit 4:2:0, BT.709. `scale` is the encoder's option for the setting.

    Raises BenchError if the images differ in size or ffmpeg fails."""
    if len({pixels.shape for pixels in images.pixels}) > 1:
        msg = "a video needs images of one size: leave out av1-video and vvc-video"
        raise BenchError(msg)
    height, width = images.pixels[0].shape[:2]
    padded = np.pad(np.stack(images.pixels), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{padded.shape[2]}x{padded.shape[1]}"
    video = run_ffmpeg(
        *RGB, "-s", size, "-r", "24", "-i", "-", "-vf", f"scale=out_color_matrix=bt709:out_range=tv:{FLAGS}",
        "-pix_fmt", "yuv420p10le", *encoder, scale, str(setting), "-threads", "1", "-f", container, "-", stdin=padded.tobytes(),
    )  # fmt: skip
    frames = run_ffmpeg(
        "-threads", "1", "-f", container, "-i", "-", "-fps_mode", "passthrough",
        "-vf", f"scale=in_color_matrix=bt709:in_range=tv:out_range=pc:{FLAGS}", *RGB, "-", stdin=video,
    )  # fmt: skip
    if len(frames) != padded.size:
        msg = f"the video has {len(frames)} bytes of pixels instead of {padded.size}: use another version of imageio-ffmpeg"
        raise BenchError(msg)
    return len(video), list(np.frombuffer(frames, np.uint8).reshape(padded.shape)[:, :height, :width])


METHODS = {
    "tessera": Method(QUALITIES, code_with_tessera),
    **{name: Method(QUALITIES, partial(code_with_tessera, reference=name)) for name in ("first", "previous", "auto")},
    "avif": Method((10, 25, 40, 55, 70), partial(code_each, codec=AVIF)),
    "avif-psnr": Method((10, 25, 40, 55, 70), partial(code_each, codec=AVIF_PSNR)),
    "av1-video": Method((60, 52, 44, 36, 28, 20), partial(code_as_video, encoder=AV1, scale="-crf", container="obu")),
    "vvc-video": Method((47, 42, 37, 32, 27, 22), partial(code_as_video, encoder=VVC, scale="-qp", container="vvc")),
}


def run_tessera(*arguments: object) -> str:
    """The standard output of the command `tessera`. Raises BenchError if it fails."""
    return _run([sys.executable, "-m", "tessera", *map(str, arguments)], b"").decode()


def run_ffmpeg(*arguments: str, stdin: bytes) -> bytes:
    """The standard output of ffmpeg. Raises BenchError if it fails or is not installed."""
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is installed without its program
        msg = "videos need imageio-ffmpeg: pip install imageio-ffmpeg"
        raise BenchError(msg) from error
    return _run([program, "-v", "error", *arguments], stdin)


def _run(command: Sequence[str], stdin: bytes) -> bytes:
    process = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if process.returncode:
        reason = (process.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[0]
        msg = f"{Path(command[0]).name} failed ({reason})"
        raise BenchError(msg)
    return process.stdout


class Meter:
    """Measures decoded images against a series, whose features are computed once."""

    def __init__(self, images: Images, lpips: LPIPS) -> None:
        self.images, self.lpips = images, lpips
        self.features = [lpips.image_features(pixels) for pixels in images.pixels]

    def measure(self, decoded: Sequence[Pixels]) -> tuple[float, float]:
        """The means over images of LPIPS and of PSNR in dB."""
        pairs = zip(decoded, self.features, strict=True)
        distances = [float(self.lpips.compare(self.lpips.image_features(image), features)) for image, features in pairs]
        ratios = [psnr(image, original) for image, original in zip(decoded, self.images.pixels, strict=True)]
        return float(np.mean(distances)), float(np.mean(ratios))


def read_rows(path: Path, series: str) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["series"] == series]
    types = {"series": str, "method": str, "lpips": float, "psnr": float}
    return [Row(**{key: types.get(key, int)(value) for key, value in row.items()}) for row in rows]


def add_row(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, asdict(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row) | {"lpips": f"{row.lpips:.5f}", "psnr": f"{row.psnr:.4f}"})


def curve(rows: Sequence[Row], method: str) -> Curve:
    """A method's curve, of total bytes instead of bits per pixel."""
    own = sorted((row for row in rows if row.method == method), key=lambda row: row.bytes)
    points = (Point(str(row.setting), row.images, row.bytes, {"lpips": row.lpips, "psnr": row.psnr}) for row in own)
    return Curve(method, method, method, tuple(points))


def table(rows: Sequence[Row], anchor: str, metric: str) -> str:
    """Markdown: bytes of each method at the quality of each setting of the anchor, interpolated on the method's curve."""
    curves = [curve(rows, method) for method in METHODS if any(row.method == method for row in rows)]
    lines = [f"| {METRICS[metric]} | " + " | ".join(one.title for one in curves) + " |", "|---" * (len(curves) + 1) + "|"]
    for point, ratios in same_quality(curves, curve(rows, anchor), metric, rows[0].images):
        cells = ["-" if ratio is None else f"{ratio * point.bpp:,.0f} ({ratio:.2f})" for ratio in ratios]
        lines.append(f"| {point.metrics[metric]:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lpips", type=Path, required=True, help=".npz with LPIPS weights")
    parser.add_argument("--csv", type=Path, required=True, help="file to add rows to")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD", help="default: all")
    parser.add_argument("--anchor", default="avif", choices=METHODS, help="method that others are compared with")
    parser.add_argument("--threads", type=int, default=1, help="of LPIPS; encoders use one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = sorted(arguments.folder.glob("*.*"))
    images = Images(files, [read_pixels(file) for file in files])
    area = sum(pixels.shape[0] * pixels.shape[1] for pixels in images.pixels)
    meter = Meter(images, LPIPS(arguments.lpips))
    series = arguments.folder.resolve().name
    done = {(row.method, row.setting) for row in read_rows(arguments.csv, series)}
    try:
        for method in arguments.methods:
            for setting in METHODS[method].settings:
                if (method, setting) not in done:
                    size, decoded = METHODS[method].code(images, setting)
                    row = Row(series, method, setting, len(files), area, size, *meter.measure(decoded))
                    add_row(arguments.csv, row)
                    sys.stderr.write(f"{row}\n")
    except TesseraError as error:
        sys.exit(f"series: {method}: {error}")
    rows = read_rows(arguments.csv, series)
    if rows:
        sys.stdout.write("\n".join(table(rows, arguments.anchor, metric) for metric in METRICS))


if __name__ == "__main__":
    main()
