"""Tessera, a learned image codec: images to small files and back.

    data = tessera.encode("photo.jpg", quality=50)
    image = tessera.decode(data)
    with tessera.Codec(device="cuda") as codec:  # keeps the model in memory
        outcomes = list(codec.encode_all(paths, target_bpp=0.04))

Importing this is cheap: networks are loaded when the first image is coded. `import tessera.pillow` lets Pillow open and save
.tsr files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec import Codec, __version__, decode, encode
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

__all__ = [
    "Codec", "DeviceError", "FileError", "FormatError", "ImageError", "ModelError", "TargetError", "TesseraError",
    "TruncatedError", "UsageError", "__version__", "decode", "encode",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        import codec

        return getattr(codec, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
