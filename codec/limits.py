"""The limit on the size of images, the same for image files, .tsr files and arrays of tokens."""

from __future__ import annotations

from bitstream.block_order import BLOCK
from codec.errors import ImageError
from codec.options import MAX_PIXELS

# An image that is one pixel high is computed in blocks of 256 pixels: 65535x1 costs as much as 16.8 million pixels. Its blocks
# may cost four times its own pixels, or a thirtieth of max_pixels, or as much as that example.
NARROW_FACTOR = 4
NARROW_COST = 1 << 24


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError if an image has more pixels than allowed, or is so narrow that its blocks have far more."""
    if width * height > max_pixels:
        msg = f"{width}x{height} is {width * height:,} pixels, more than {max_pixels:,}"
        raise ImageError(msg, ("max_pixels",))
    blocks = -(-width // BLOCK) * -(-height // BLOCK)
    cost = blocks * BLOCK**2
    allowed = max(NARROW_FACTOR * width * height, max_pixels // 30, min(NARROW_COST, NARROW_FACTOR * max_pixels))
    if blocks > 1 and cost > allowed:
        msg = f"{width}x{height} is too narrow: decoding it costs as much as {cost:,} pixels; the limit is {allowed:,}"
        raise ImageError(msg, ("max_pixels",))
