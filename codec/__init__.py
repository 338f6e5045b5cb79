"""Tessera, a learned image codec: pictures to small files and back.

    data = codec.encode(image, quality=50)      # PIL.Image or uint8 array (H, W, 3) -> bytes
    image = codec.decode(data)                  # bytes -> PIL.Image
    with codec.Codec(device="cuda") as c:       # many pictures, one model in memory
        blobs = c.encode_batch(images, target_bpp=0.04)

Importing this is cheap: torch and all else come in when the first picture is coded.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from bitstream.errors import FormatError, ImageError, ModelError, TesseraError, TruncatedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from codec.api import Codec

__all__ = ["Codec", "FormatError", "ImageError", "ModelError", "TesseraError", "TruncatedError", "decode", "encode"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Codec":
        from codec.api import Codec

        return Codec
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


@cache
def _shared() -> Codec:
    from codec.api import Codec

    return Codec()


def encode(image: Image.Image | NDArray[np.uint8], **options: Any) -> bytes:
    """A picture, or pixels (H, W, 3) uint8 -> the bytes of a .tsr file.

    Options: at most one of `quality` (0..100, default 50), `tokens` (a block of 256x256 pixels), `target_size` (bytes),
    `target_bpp`, `target_psnr` (dB) and `target_lpips`; `background`, a colour to lay transparency on; `strip` and `keep_exif`,
    less or more of what the picture carries; `effort`, 0..9. Raises TesseraError and its children."""
    return _shared().encode(image, **options)


def decode(data: bytes, **options: Any) -> Image.Image:
    """The inverse of `encode`: RGB, or RGBA where the picture had transparency; profile, EXIF and XMP are in its `info`.

    Options: `allow_partial` for a cut file, `tokens`, at most so many a block. Raises TesseraError and its children."""
    return _shared().decode(data, **options)
