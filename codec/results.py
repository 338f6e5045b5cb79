"""What passes between the stages of coding, so that a pipeline can overlap them.

    encoding: prepare (no network) -> tokenize (network, several images) -> cut (no network, but for some targets)
    decoding: read (no network) -> detokenize (network, several images) -> finish (no network)

The stages are methods of `codec.codec.Codec`. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.container import COLOURED, File, Sections
from bitstream.sequence import AnyCode, Layout, Prefix
from codec.errors import FormatError, TruncatedError, UsageError
from codec.models.base import Model

SLACK = 64  # bits: trailing zero bytes are not stored


@dataclass(frozen=True)
class ImageOptions:
    """What of an image is kept beside its colours."""

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
    """How an image is encoded: the fields of `codec.rate_control.Target`, of which at most one is given, and of `ImageOptions`,
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
    """An image as the network wants it, and what its file keeps besides."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    sections: Sections = ()
    space: int = 0  # number of the colour space in `codec.image.profiles`
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
    """An image's bytes, and what they came to."""

    data: bytes
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    quality: float  # 0..100, that these stand for
    reached: bool = True  # whether the target was; a size always is, or there is an error
    measured: float | None = None  # PSNR in dB, or LPIPS, where the target is one
    notes: tuple[str, ...] = ()  # of `Prepared`

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return 8 * len(self.data) / (self.file.width * self.file.height)


@dataclass(frozen=True)
class Read:
    """What was read of a file: all but its pixels."""

    file: File
    prefix: Prefix  # its tokens
    model: Model

    @property
    def block_tokens(self) -> float:
        """Tokens per block of 256x256 pixels."""
        return self.prefix.layout.block_tokens_of(self.prefix.length)

    @property
    def partial(self) -> bool:
        """Whether tokens are missing because the file is cut."""
        return not self.file.whole


@dataclass(frozen=True)
class Decoded:
    """An image, and how much of its file went into it."""

    image: Image.Image
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    partial: bool  # tokens were missing because the file is cut
    model: str  # its name


def read_tokens(file: File, code: AnyCode, allow_partial: bool = False, block_tokens: float | None = None) -> Prefix:
    """The tokens of a file, at most `block_tokens` per block, without torch.

    Raises TruncatedError for a cut file unless `allow_partial`, and FormatError for a damaged one: a file whose checksum is
    wrong is cut if it is shorter than its header says, or, where that says nothing, if its tokens run out. Raises UsageError
    where so few tokens are not an image."""
    layout = code.layout(file.width, file.height)
    if file.length > layout.tokens:
        msg = f"{file.length} tokens for an image that has {layout.tokens}: the file is damaged"
        raise FormatError(msg)
    most = file.length if block_tokens is None else min(file.length, layout.length_of(block_tokens))
    prefix = code.decode(layout, file.payload, most if file.whole else file.length, partial=not file.payload_whole)
    if not file.whole:
        _check_cut(file, code, prefix, allow_partial)
        if prefix.length > most:
            prefix = code.decode(layout, file.payload, most, partial=not file.payload_whole)
    _check_enough(file, code, prefix)
    return prefix


def _check_cut(file: File, code: AnyCode, prefix: Prefix, allow_partial: bool) -> None:
    """Raises FormatError where a file whose checksum is wrong is not cut but damaged, TruncatedError unless `allow_partial`."""
    if file.surplus and _ends_before(file, code, prefix.layout):
        msg = f"the file is damaged: {file.surplus} byte{'s' * (file.surplus > 1)} after its end; get it again"
        raise FormatError(msg)
    if file.missing == 0 or (file.missing is None and prefix.length == file.length):
        msg = "the checksum is wrong: the file is damaged, get it again"
        raise FormatError(msg)
    if not allow_partial:
        there = f"{prefix.length} of {file.length} tokens are there"
        if prefix.length == file.length:
            there = "its image is there, but not all that follows it"
        msg = f"the file is cut short: {there}"
        raise TruncatedError(msg, ("allow_partial",))


def _check_enough(file: File, code: AnyCode, prefix: Prefix) -> None:
    """Raises an error where tail tokens cannot be dropped, and no block has all of its tokens."""
    block_tokens = prefix.layout.block_tokens_of(prefix.length)
    if code.tail_drop or block_tokens > code.block_tokens - 1:
        return
    if prefix.length == file.length:
        raise FormatError(all_or_nothing(code, block_tokens) + ": the file is damaged")
    if not file.whole:
        msg = f"the file is cut short: {prefix.length} of {file.length} tokens are there, too few for a single block"
        raise TruncatedError(msg)
    raise UsageError(all_or_nothing(code, block_tokens))


def all_or_nothing(code: AnyCode, block_tokens: float) -> str:
    """What is said where fewer tokens are asked for than a model without tail token drop decodes."""
    return f"this model codes a block with all of its {code.block_tokens} tokens or not at all, not with {block_tokens:.4g}"


def _ends_before(file: File, code: AnyCode, layout: Layout) -> bool:
    """Whether the payload without its surplus holds all tokens, by what they cost; a cut one is far shorter than they cost."""
    payload = file.payload[: len(file.payload) - file.surplus]
    try:
        prefix = code.decode(layout, payload, file.length)
    except FormatError:
        return False
    bits = code.sequence(prefix).bits()[: file.length].sum()
    return bool(bits <= 8 * len(payload) + SLACK)
