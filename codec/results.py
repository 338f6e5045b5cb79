"""What coding returns, and the tokens of a file. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from bitstream.container import File
from bitstream.sequence import AnyCode, Layout, Prefix
from codec.errors import FormatError, TruncatedError, UsageError
from codec.models.base import Model

SLACK = 64  # bits: trailing zero bytes are not stored


@dataclass(frozen=True)
class Encoded:
    """An encoded image: the bytes of its file, and what they came to."""

    data: bytes
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    quality: float  # 0..100, for this number of tokens
    model: str  # its name
    reached: bool = True  # whether a target of PSNR or LPIPS was reached
    measured: float | None = None  # PSNR in dB or LPIPS, if that was the target
    notes: tuple[str, ...] = ()  # for people, such as 'first of 12 frames'

    @property
    def bpp(self) -> float:
        """Bits per pixel of the complete file."""
        return 8 * len(self.data) / (self.file.width * self.file.height)


@dataclass(frozen=True)
class Stored:
    """What a file holds: all but its pixels, which need the network."""

    file: File
    prefix: Prefix  # its tokens
    model: Model

    @property
    def block_tokens(self) -> float:
        """Tokens per block of 256x256 pixels."""
        return self.prefix.layout.block_tokens_of(self.prefix.length)

    @property
    def partial(self) -> bool:
        """Whether the file is cut."""
        return not self.file.complete


@dataclass(frozen=True)
class Decoded:
    """A decoded image, and how much of its file it was decoded from."""

    image: Image.Image  # L, LA, RGB or RGBA, with profile, EXIF and XMP in its `info`
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    partial: bool  # whether the file is cut
    model: str  # its name


@dataclass(frozen=True)
class DecodedFile:
    """A decoded image as the bytes of an image file."""

    data: bytes
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    partial: bool  # whether the file is cut
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
    prefix = code.decode(layout, file.payload, most if file.complete else file.length, partial=not file.payload_complete)
    if not file.complete:
        _check_cut(file, code, prefix, allow_partial)
        if prefix.length > most:
            prefix = code.decode(layout, file.payload, most, partial=not file.payload_complete)
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
        raise FormatError(incomplete_block(code, block_tokens) + ": the file is damaged")
    if not file.complete:
        msg = f"the file is cut short: {prefix.length} of {file.length} tokens are there, too few for a single block"
        raise TruncatedError(msg)
    raise UsageError(incomplete_block(code, block_tokens))


def incomplete_block(code: AnyCode, block_tokens: float) -> str:
    """The message for fewer tokens than a model without tail token drop can decode."""
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
