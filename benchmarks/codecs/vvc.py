"""VVC (H.266), still images by Fraunhofer's encoder VVenC, through the ffmpeg that the package imageio-ffmpeg carries.

A file is the raw stream of one intra image and, before it, what any container would have to add: width and height as 16-bit
numbers, big-endian, since the stream holds even sizes alone. The stream has no access unit delimiter and no timing, and the
parameter sets of images that refer to no other, which are 110 bytes shorter than those of a video.

Effort: VVenC's preset `medium`, its default; `slower` brought 0.1 dB on Kodak's kodim15 in four times the time. Quick:
`faster`. Perceptual adaptation (`-qpa`) is off, so that the encoder's aim is squared error. Images are coded as 4:2:0 of 10
bits in BT.709, each by a process of its own, which starts in some hundredths of a second.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmarks.codecs.base import CodedFile, Sizes
from benchmarks.codecs.pillow_codecs import QUICK
from benchmarks.measurements import Pixels
from codec.errors import CodecMissingError, FormatError, ImageError

LEAST = 16  # pixels of a side that VVenC takes
HEAD = 4  # bytes before the stream
SIDE_MAX = 0xFFFF  # pixels
QP_MAX = 63  # the coarsest quantizer
INTRA = "IntraPeriod=1:GOPSize=1:HrdParametersPresent=0:AccessUnitDelimiter=0"
RGB = ("-f", "rawvideo", "-pix_fmt", "rgb24")
FLAGS = "flags=accurate_rnd+full_chroma_int+lanczos"


@dataclass(frozen=True)
class VvcCoder:
    """VVC at a preset of VVenC. A setting s is the quantizer QP = 63 - s."""

    name: str
    title: str
    preset: str
    aim: str = "squared error"
    lowest: int = 0
    highest: int = QP_MAX - 12  # below QP 12 nothing is seen, and an image takes very long

    @property
    def description(self) -> str:
        return (
            f"{self.title}: libvvenc of ffmpeg {_ffmpeg()[1]} in imageio-ffmpeg, preset {self.preset}, qpa 0, one thread; "
            f"quality is 63 - QP; a raw stream, and {HEAD} bytes for its size"
        )

    @property
    def settings(self) -> Sequence[int]:
        return [*range(11, 47, 5)]  # QP 52 to 17; the usual points are 22 to 37

    def check(self) -> None:
        """Raises CodecMissingError where there is no ffmpeg with VVenC."""
        if b"libvvenc" not in _run("-encoders"):
            msg = f"{self.title} needs an ffmpeg with libvvenc, which {_ffmpeg()[0]} lacks: pip install imageio-ffmpeg"
            raise CodecMissingError(msg)

    def encode(self, pixels: Pixels, setting: float) -> bytes:
        """Pixels -> a whole file. Raises CodecMissingError where ffmpeg fails, ImageError for a side above 65535."""
        height, width = pixels.shape[:2]
        if max(width, height) > SIDE_MAX:
            msg = f"{width}x{height} is too large for {self.title} here: sides are 1 to {SIDE_MAX} pixels"
            raise ImageError(msg)
        rows, columns = (max(LEAST, side + side % 2) - side for side in (height, width))
        padded = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
        stream = _run(
            *RGB, "-s", f"{width + columns}x{height + rows}", "-i", "-", "-frames:v", "1",
            "-vf", f"scale=out_color_matrix=bt709:out_range=tv:{FLAGS}", "-pix_fmt", "yuv420p10le",
            "-c:v", "libvvenc", "-preset", self.preset, "-qp", f"{QP_MAX - setting:.0f}", "-qpa", "0", "-threads", "1",
            "-vvenc-params", INTRA, "-f", "vvc", "-", given=padded.tobytes(),
        )  # fmt: skip
        return width.to_bytes(2, "big") + height.to_bytes(2, "big") + stream

    def decode(self, data: bytes) -> Pixels:
        """The inverse of `encode`. Raises FormatError for what is no such file."""
        width, height = (int.from_bytes(data[at : at + 2], "big") for at in (0, 2))
        shown = [max(LEAST, side + side % 2) for side in (height, width)]
        pixels = _run(
            "-threads", "1", "-f", "vvc", "-i", "-", "-frames:v", "1",
            "-vf", f"scale=in_color_matrix=bt709:in_range=tv:out_range=pc:{FLAGS}", *RGB, "-", given=data[HEAD:],
        )  # fmt: skip
        if not width or not height or len(pixels) != shown[0] * shown[1] * 3:
            msg = f"these {len(data)} bytes are not a file of {self.title}"
            raise FormatError(msg)
        return np.frombuffer(pixels, np.uint8).reshape(*shown, 3)[:height, :width].copy()

    def fit(self, pixels: Pixels, budgets: Sequence[int]) -> list[CodedFile | None]:
        sizes = Sizes(self, pixels)
        return [sizes.fit(range(self.lowest, self.highest + 1), budget) for budget in budgets]


VVC = VvcCoder("vvc", "VVC", "medium")
QUICK_VVC = VvcCoder(VVC.name + QUICK, "VVC, quick", "faster")


@lru_cache
def _ffmpeg() -> tuple[str, str]:
    """Path and version of ffmpeg. Raises CodecMissingError without one."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe(), imageio_ffmpeg.get_ffmpeg_version()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there without its program
        msg = "VVC needs imageio-ffmpeg: pip install imageio-ffmpeg"
        raise CodecMissingError(msg) from error


def _run(*arguments: str, given: bytes = b"") -> bytes:
    """What ffmpeg writes. Raises CodecMissingError where it fails."""
    done = subprocess.run([_ffmpeg()[0], "-v", "error", *arguments], input=given, capture_output=True, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[0]
        msg = f"ffmpeg failed on VVC ({reason})"
        raise CodecMissingError(msg)
    return done.stdout
