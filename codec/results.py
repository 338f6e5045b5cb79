"""What passes between the stages of coding, so that a pipeline can overlap them.

    encoding: prepare (no network) -> sequences (network, several pictures) -> cut (no network, but for some targets)
    decoding: read (no network) -> draw (network, several pictures) -> finish (no network)

The stages are methods of `codec.api.Codec`. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.coder import Tokens, decode_tokens, sequence_of
from bitstream.container import COLOURED, File, Sections
from bitstream.errors import FormatError, TruncatedError, UsageError
from bitstream.layout import Layout
from bitstream.prior import Prior

SLACK = 64  # bits: trailing zero bytes are not stored


@dataclass(frozen=True)
class PictureOptions:
    """What of a picture is kept beside its colours."""

    background: str | None = None  # a CSS colour that transparency is laid on, instead of being kept
    strip: bool = False  # keep no profile; colours become sRGB
    keep_exif: bool = False  # keep EXIF and XMP
    alpha_quality: int | None = None  # 0..100, where 100 is without loss; None: 75, or less where a size is asked for

    def __post_init__(self) -> None:
        if self.strip and self.keep_exif:
            msg = "strip and keep exif contradict each other: give one of them"
            raise UsageError(msg)
        if self.alpha_quality is not None and self.alpha_quality not in range(101):
            msg = f"alpha quality {self.alpha_quality} is out of range: 0 to 100"
            raise UsageError(msg)


class EncodeOptions(TypedDict, total=False):
    """How a picture is encoded: the fields of `codec.lengths.Target`, of which at most one is given, and of `PictureOptions`,
    and the effort 3..9. Written out so that editors and type checkers know them; a test compares."""

    quality: float | None
    tokens: float | None
    target_size: int | None
    target_bpp: float | None
    target_psnr: float | None
    target_lpips: float | None
    background: str | None
    strip: bool
    keep_exif: bool
    alpha_quality: int | None
    effort: int


@dataclass(frozen=True)
class Prepared:
    """A picture as the network wants it, and what its file keeps besides."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    sections: Sections = ()
    space: int = 0  # number of the colour space in `codec.pictures.profiles`
    greyness: int = COLOURED  # or GREY, NEUTRAL
    notes: tuple[str, ...] = ()  # what a person should hear, such as 'first of 12 frames'
    alpha: NDArray[np.uint8] | None = None  # (H, W), where its section may be made smaller for a size

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class Encoded:
    """A picture's bytes, and what they came to."""

    data: bytes
    file: File
    tokens: float  # a block of 256x256 pixels
    reached: bool = True  # whether the target was; a size always is, or there is an error
    measured: float | None = None  # PSNR in dB, or LPIPS, where the target is one
    notes: tuple[str, ...] = ()  # of `Prepared`

    @property
    def bpp(self) -> float:
        """Bits a pixel of the whole file."""
        return 8 * len(self.data) / (self.file.width * self.file.height)


@dataclass(frozen=True)
class Read:
    """What was read of a file: all but its pixels."""

    file: File
    layout: Layout
    tokens: Tokens
    model: str  # its name

    @property
    def block_tokens(self) -> float:
        """Tokens a block of 256x256 pixels."""
        return self.layout.block_tokens_of(self.tokens.length)

    @property
    def partial(self) -> bool:
        """Whether tokens are missing because the file is cut."""
        return not self.file.whole


@dataclass(frozen=True)
class Decoded:
    """A picture, and how much of its file went into it."""

    image: Image.Image
    file: File
    tokens: float  # a block of 256x256 pixels
    partial: bool  # tokens were missing because the file is cut
    model: str  # its name


def read_tokens(file: File, prior: Prior, allow_partial: bool = False, tokens: float | None = None) -> tuple[Layout, Tokens]:
    """The tokens of a file, at most `tokens` a block, without torch.

    Raises TruncatedError for a cut file unless `allow_partial`, and FormatError for a damaged one: a file whose checksum is
    wrong is cut if it is shorter than its header says, or, where that says nothing, if its tokens run out."""
    layout = Layout(prior.levels, file.width, file.height)
    if file.length > layout.tokens:
        msg = f"{file.length} tokens for a picture that has {layout.tokens}: the file is damaged"
        raise FormatError(msg)
    length = file.length if tokens is None or not file.whole else min(file.length, layout.length_of(tokens))
    read = decode_tokens(prior, layout, file.payload, length, partial=not file.payload_whole)
    if file.whole:
        return layout, read
    if file.surplus and _ends_before(file, prior, layout):
        msg = f"the file is damaged: {file.surplus} byte{'s' * (file.surplus > 1)} after its end; get it again"
        raise FormatError(msg)
    if file.missing == 0 or (file.missing is None and read.length == file.length):
        msg = "the checksum is wrong: the file is damaged, get it again"
        raise FormatError(msg)
    if not allow_partial:
        there = f"{read.length} of {file.length} tokens are there"
        if read.length == file.length:
            there = "its picture is there, but not all that follows it"
        msg = f"the file is cut short: {there}"
        raise TruncatedError(msg, ("allow_partial",))
    if tokens is not None:
        read = decode_tokens(prior, layout, file.payload, min(read.length, layout.length_of(tokens)), not file.payload_whole)
    return layout, read


def _ends_before(file: File, prior: Prior, layout: Layout) -> bool:
    """Whether the payload without its surplus holds all tokens, by what they cost; a cut one is far shorter than they cost."""
    payload = file.payload[: len(file.payload) - file.surplus]
    try:
        tokens = decode_tokens(prior, layout, payload, file.length)
    except FormatError:
        return False
    bits = sequence_of(prior, layout, tokens.digits).bits()[: file.length].sum()
    return bool(bits <= 8 * len(payload) + SLACK)
