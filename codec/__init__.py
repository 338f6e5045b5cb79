"""Tessera, a learned image codec: images to small files and back.

    data = codec.encode("photo.jpg", quality=50)    # a path, a file, a PIL.Image or a uint8 array (H, W, 3) -> bytes
    image = codec.decode(data)                      # bytes, a path or a file -> PIL.Image
    with codec.Codec(device="cuda") as c:           # many images, one model in memory
        blobs = c.encode_batch(images, target_bpp=0.04)

Importing this is cheap: everything else is loaded when the first image is coded.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from codec.errors import FormatError, ImageError, ModelError, TesseraError, TruncatedError

if TYPE_CHECKING:
    from PIL import Image

    from codec.codec import Codec
    from codec.image.arguments import Data, ImageInput

__all__ = ["Codec", "FormatError", "ImageError", "ModelError", "TesseraError", "TruncatedError", "decode", "encode"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Codec":
        from codec.codec import Codec

        return Codec
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


@cache
def _shared(model: str | None = None) -> Codec:
    from codec.codec import Codec

    return Codec(model)


def encode(
    image: ImageInput,
    *,
    model: str | None = None,
    quality: float | None = None,
    tokens: float | None = None,
    target_size: int | None = None,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
    target_lpips: float | None = None,
    background: str | None = None,
    strip: bool = False,
    keep_exif: bool = False,
    alpha_quality: int | None = None,
    effort: int = 3,
) -> bytes:
    """An image -> the bytes of a .tsr file.

    `image` is a PIL image, a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the path of a file, or a file opened for
    reading bytes. `model` is the name of a bundled or installed model, or the path of a model file; the bundled one if none is
    given. Give at most one of `quality` (0..100; 50 if none is given), `tokens` (per block of 256x256 pixels),
    `target_size` (bytes), `target_bpp` (bits per pixel), `target_psnr` (dB) and `target_lpips`. `background` is a colour to lay
    transparency on; otherwise it is kept at `alpha_quality` (0..100; 100 is lossless). `strip` drops the colour profile, and
    `keep_exif` keeps EXIF and XMP; `effort` is 3..9.

    Raises TesseraError and its children."""
    return _shared(model).encode(
        image, quality=quality, tokens=tokens, target_size=target_size, target_bpp=target_bpp, target_psnr=target_psnr,
        target_lpips=target_lpips, background=background, strip=strip, alpha_quality=alpha_quality,
        keep_exif=keep_exif, effort=effort,
    )  # fmt: skip


def decode(data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Image.Image:
    """The inverse of `encode`: L, LA, RGB or RGBA, as the image was; profile, EXIF and XMP are in its `info`.

    `data` is the bytes of a .tsr file (bytes, bytearray or memoryview), its path, or the file opened for reading bytes. A cut
    file is decoded as far as it goes with `allow_partial`; `tokens` is the most to use per block of 256x256 pixels.

    Raises TesseraError and its children."""
    return _shared().decode(data, allow_partial=allow_partial, tokens=tokens)
