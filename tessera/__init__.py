"""Tessera, a learned image codec: images to small files and back.

    data = tessera.encode("photo.jpg", quality=50)
    image = tessera.decode(data)
    with tessera.Codec(device="cuda") as c:
        blobs = c.encode_batch(images, target_bpp=0.04)

This is `codec` under the project's name. An installation has everything inside this package (setup.py says how).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec import Codec, FormatError, ImageError, ModelError, TesseraError, TruncatedError, __version__, decode, encode

__all__ = [
    "Codec", "FormatError", "ImageError", "ModelError", "TesseraError", "TruncatedError", "__version__", "decode", "encode",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        import codec

        return getattr(codec, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
