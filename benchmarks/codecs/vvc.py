"""VVC (H.266): still images by Fraunhofer's encoder VVenC, through the ffmpeg in the package imageio-ffmpeg.

A file holds width and height as 16-bit big-endian numbers, followed by the raw stream of one intra image; the stream itself
stores even sizes only. The stream has no access unit delimiter and no timing. Its parameter sets are for independent images,
which makes them 110 bytes shorter than for video.

Effort: VVenC's preset `medium`, its default; `slower` gains 0.1 dB on Kodak's kodim15 in four times the time. Quick: `faster`.
Perceptual adaptation (`-qpa`) is off, so that the encoder minimises squared error. Images are coded as 10-bit 4:2:0 in BT.709,
each in a new process, which takes a few hundredths of a second to start.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks import BenchError
from benchmarks.codecs.base import CodedFile, SettingSearch
from benchmarks.records import QUICK, Pixels
from codec.errors import FormatError, ImageError

MIN_SIDE = 16  # pixels that VVenC accepts; smaller images are padded
MAX_SIDE = 0xFFFF  # pixels
HEADER = 4  # bytes before the stream
MAX_QP = 63  # the coarsest quantizer
INTRA = "IntraPeriod=1:GOPSize=1:HrdParametersPresent=0:AccessUnitDelimiter=0"
RGB = ("-f", "rawvideo", "-pix_fmt", "rgb24")
FLAGS = "flags=accurate_rnd+full_chroma_int+lanczos"


@dataclass(frozen=True)
class VvcCodec:
    """VVC at a preset of VVenC. Setting s is the quantizer QP = 63 - s."""

    name: str
    title: str
    preset: str
    made_for: str = "squared error"
    lowest: int = 0
    highest: int = MAX_QP - 12  # QP below 12 makes no visible difference and takes very long

    @property
    def description(self) -> str:
        return (
            f"{self.title}: libvvenc of ffmpeg {_ffmpeg()[1]} in imageio-ffmpeg, preset {self.preset}, qpa 0, one thread; "
            f"quality is 63 - QP; a raw stream, and {HEADER} bytes for its size"
        )

    @property
    def settings(self) -> Sequence[int]:
        return range(11, 47, 5)  # QP 52 to 17; common test conditions use 22 to 37

    def check(self) -> None:
        if b"libvvenc" not in _run("-encoders"):
            msg = f"{self.title} needs an ffmpeg with libvvenc, which {_ffmpeg()[0]} lacks: pip install imageio-ffmpeg"
            raise BenchError(msg)

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """Pixels -> a complete file. Raises BenchError if ffmpeg fails, ImageError for a side above 65535."""
        height, width = pixels.shape[:2]
        if max(width, height) > MAX_SIDE:
            msg = f"{width}x{height} is too large for {self.title} here: sides are 1 to {MAX_SIDE} pixels"
            raise ImageError(msg)
        padded_height, padded_width = map(_padded, (height, width))
        padded = np.pad(pixels, ((0, padded_height - height), (0, padded_width - width), (0, 0)), mode="edge")
        stream = _run(
            *RGB, "-s", f"{padded_width}x{padded_height}", "-i", "-", "-frames:v", "1",
            "-vf", f"scale=out_color_matrix=bt709:out_range=tv:{FLAGS}", "-pix_fmt", "yuv420p10le",
            "-c:v", "libvvenc", "-preset", self.preset, "-qp", f"{MAX_QP - setting:.0f}", "-qpa", "0", "-threads", "1",
            "-vvenc-params", INTRA, "-f", "vvc", "-", stdin=padded.tobytes(),
        )  # fmt: skip
        return width.to_bytes(2, "big") + height.to_bytes(2, "big") + stream

    def decode(self, data: bytes) -> Pixels:
        """The inverse of `encode`. Raises FormatError if the bytes are not such a file, BenchError if ffmpeg fails."""
        width, height = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:HEADER], "big")
        padded_height, padded_width = map(_padded, (height, width))
        pixels = _run(
            "-threads", "1", "-f", "vvc", "-i", "-", "-frames:v", "1",
            "-vf", f"scale=in_color_matrix=bt709:in_range=tv:out_range=pc:{FLAGS}", *RGB, "-", stdin=data[HEADER:],
        )  # fmt: skip
        if not width or not height or len(pixels) != padded_height * padded_width * 3:
            msg = f"these {len(data)} bytes are not a file of {self.title}"
            raise FormatError(msg)
        return np.frombuffer(pixels, np.uint8).reshape(padded_height, padded_width, 3)[:height, :width].copy()

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        search = SettingSearch(self, pixels)
        return [search.fit(range(self.lowest, self.highest + 1), budget) for budget in budgets]


VVC = VvcCodec("vvc", "VVC", "medium")
QUICK_VVC = VvcCodec(VVC.name + QUICK, "VVC, quick", "faster")


def _padded(side: int) -> int:
    """The side of the coded image: even, and at least MIN_SIDE."""
    return max(MIN_SIDE, side + side % 2)


def _run(*arguments: str, stdin: bytes = b"") -> bytes:
    """The standard output of ffmpeg. Raises BenchError if it fails."""
    process = subprocess.run([_ffmpeg()[0], "-v", "error", *arguments], input=stdin, capture_output=True, check=False)
    if process.returncode:
        reason = (process.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[0]
        msg = f"ffmpeg failed on VVC ({reason})"
        raise BenchError(msg)
    return process.stdout


@lru_cache
def _ffmpeg() -> tuple[str, str]:
    """Path and version of ffmpeg. Raises BenchError if it is not installed."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe(), imageio_ffmpeg.get_ffmpeg_version()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is installed without its program
        msg = "VVC needs imageio-ffmpeg: pip install imageio-ffmpeg"
        raise BenchError(msg) from error
