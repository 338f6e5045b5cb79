"""Reading .tsr files: `read_tsr` parses a file, `read_tokens` decodes its tokens. No network, no torch."""

from __future__ import annotations

from typing import BinaryIO

from bitstream.container import HEADER_MAX, MAGIC, File, read_file, read_header
from bitstream.sequence import AnyCode, Layout, Prefix
from codec.errors import FormatError, TesseraError, TruncatedError, UsageError
from codec.limits import check_size
from codec.options import MAX_PIXELS
from codec.system.inputs import FileInput, open_file

SLACK = 64  # bits: trailing zero bytes are not stored


def read_tsr(file: FileInput, max_pixels: int = MAX_PIXELS) -> File:
    """Parses a .tsr file. Reads at most one byte more than its header allows.

    Raises FileError if the file cannot be read, FormatError if it is damaged, ImageError if the image is too large."""
    with open_file(file, "a .tsr file: give its bytes, its path, or a file opened with 'rb'") as stream:
        head = stream.read(HEADER_MAX)
        if not head.startswith(MAGIC):
            _refuse(head, stream)
        header = read_header(head)
        check_size(header.width, header.height, max_pixels)
        return read_file(head + stream.read(max(0, header.max_file_bytes + 1 - len(head))), header)


def _refuse(head: bytes, stream: BinaryIO) -> None:
    """Raises FormatError. The message depends on the file's first bytes."""
    from codec.image.opening import HEAD, check_head

    try:
        check_head(head + stream.read(HEAD))
    except TesseraError as error:
        msg = "not a .tsr file" if head else "the file is empty"
        raise FormatError(msg) from error
    msg = "an image, not a .tsr file"
    raise FormatError(msg, ("encode",))


def read_tokens(file: File, code: AnyCode, allow_partial: bool = False, block_tokens: float | None = None) -> Prefix:
    """The tokens of a file, at most `block_tokens` per block, without torch.

    Raises TruncatedError for a cut file unless `allow_partial`, and FormatError for a damaged one: a file whose checksum is
    wrong is cut if it is shorter than its header states. If the header states no size, the file is cut if its tokens run out.
    Raises UsageError if there are too few tokens to decode."""
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
    """Given a file with a wrong checksum, raises FormatError if it is damaged rather than cut, and TruncatedError if it is cut,
    unless `allow_partial`."""
    if file.surplus and _ends_before(file, code, prefix.layout):
        msg = f"the file is damaged: {file.surplus} byte{'s' * (file.surplus > 1)} after its end; get it again"
        raise FormatError(msg)
    if file.missing == 0 or (file.missing is None and prefix.length == file.length):
        msg = "the checksum is wrong: the file is damaged, get it again"
        raise FormatError(msg)
    if not allow_partial:
        extent = f"{prefix.length} of {file.length} tokens are present"
        if prefix.length == file.length:
            extent = "all tokens are present, but transparency, profile or metadata is missing"
        msg = f"the file is cut short: {extent}"
        raise TruncatedError(msg, ("allow_partial",))


def _check_enough(file: File, code: AnyCode, prefix: Prefix) -> None:
    """Raises an error if the model cannot decode truncated blocks and no block is complete."""
    block_tokens = prefix.layout.block_tokens_of(prefix.length)
    if code.tail_drop or block_tokens > code.block_tokens - 1:
        return
    if prefix.length == file.length:
        raise FormatError(incomplete_block(code, block_tokens) + ": the file is damaged")
    if not file.complete:
        msg = f"the file is cut short: {prefix.length} of {file.length} tokens are present, too few for a single block"
        raise TruncatedError(msg)
    raise UsageError(incomplete_block(code, block_tokens))


def incomplete_block(code: AnyCode, block_tokens: float) -> str:
    """The message for fewer tokens than a model without tail token drop can decode."""
    return f"this model codes a block with all of its {code.block_tokens} tokens or not at all, not with {block_tokens:.4g}"


def _ends_before(file: File, code: AnyCode, layout: Layout) -> bool:
    """Whether the payload, without the surplus bytes, is long enough for all tokens. A cut payload is far shorter."""
    payload = file.payload[: len(file.payload) - file.surplus]
    try:
        prefix = code.decode(layout, payload, file.length)
    except FormatError:
        return False
    bits = code.sequence(prefix).bits()[: file.length].sum()
    return bool(bits <= 8 * len(payload) + SLACK)
