"""Tessera, a learned image codec: images to small files and back.

    data = codec.encode("photo.jpg", quality=50)        # a path, an open file, a PIL image or a uint8 array (H, W, 3) -> bytes
    image = codec.decode(data)                          # bytes, a path or an open file -> PIL image
    with codec.Codec(device="cuda") as c:               # one model in memory, for many images
        for outcome in c.encode_all(paths, target_bpp=0.04): ...

Importing this is cheap: everything else is imported when the first image is coded. Installed, this is `tessera`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Unpack

from codec.errors import (
    DeviceError,
    FileError,
    FormatError,
    ImageError,
    ModelError,
    TargetError,
    TesseraError,
    TruncatedError,
    UsageError,
)

if TYPE_CHECKING:
    from PIL import Image

    from bitstream.container import File
    from codec.codec import Codec
    from codec.image.opening import ImageInput
    from codec.options import DecodeOptions, EncodeOptions
    from codec.system.inputs import FileInput

__all__ = [
    "Codec", "DeviceError", "FileError", "FormatError", "ImageError", "ModelError", "TargetError", "TesseraError",
    "TruncatedError", "UsageError", "decode", "encode",
]  # fmt: skip
__version__ = "0.1.0"


def encode(image: ImageInput, *, model: str | None = None, **options: Unpack[EncodeOptions]) -> bytes:
    """Encodes an image to the bytes of a .tsr file, with the standard model or with `model`.

    `image` is a path, an open file or its bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). See
    `codec.options.EncodeOptions` for the options. Raises subclasses of TesseraError, as `Codec.encode` does."""
    return _shared(model).encode(image, **options).data


def decode(file: FileInput | File, **options: Unpack[DecodeOptions]) -> Image.Image:
    """The inverse of `encode`: L, LA, RGB or RGBA, as in the original, with profile, EXIF and XMP in its `info`.

    `file` is the bytes of a .tsr file, its path, the file open for reading, or its content as a `File`. See
    `codec.options.DecodeOptions` for the options. Raises subclasses of TesseraError, as `Codec.decode` does."""
    return _shared().decode(file, **options).image


@cache
def _shared(model: str | None = None) -> Codec:
    from codec.codec import Codec

    return Codec(model)


def __getattr__(name: str) -> Any:
    if name == "Codec":
        from codec.codec import Codec

        return Codec
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
