"""Result types of encoding and decoding. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from bitstream.container import File
from bitstream.sequence import Prefix
from codec.models.base import Model

if TYPE_CHECKING:
    from codec.image.writing import ImageFormat


@dataclass(frozen=True)
class Encoded:
    """An encoded image, with its size, quality and model."""

    data: bytes
    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    quality: float | None  # 0..100, for this number of tokens; None if a reference gives them another meaning
    model: str  # its name
    reached: bool = True  # whether a PSNR or LPIPS target was reached
    measured: float | None = None  # PSNR in dB or LPIPS, if that was the target
    notes: tuple[str, ...] = ()  # remarks for the user, such as 'first of 12 frames'

    @property
    def bpp(self) -> float:
        """Bits per pixel of the complete file."""
        return 8 * len(self.data) / (self.file.width * self.file.height)


@dataclass(frozen=True)
class Stored:
    """The content of a file before the network decodes its pixels."""

    file: File
    prefix: Prefix  # its tokens
    model: Model
    decode_options: Mapping[str, float] = field(default_factory=dict)  # those of `Model.decode_options` that are given
    folder: str | None = None  # folder of the file, if known
    reference: Any = None  # the `reference` option of `DecodeOptions`

    @property
    def block_tokens(self) -> float:
        """Tokens per block of 256x256 pixels."""
        return self.prefix.layout.block_tokens_of(self.prefix.length)

    @property
    def partial(self) -> bool:
        """Whether the file is cut."""
        return not self.file.complete


@dataclass(frozen=True)
class _Content:
    """How much of a file an image was decoded from."""

    file: File
    block_tokens: float  # tokens per block of 256x256 pixels
    model: str  # its name

    @property
    def partial(self) -> bool:
        """Whether the file is cut."""
        return not self.file.complete


@dataclass(frozen=True)
class Decoded(_Content):
    """A decoded image."""

    image: Image.Image  # L, LA, RGB or RGBA, with profile, EXIF and XMP in its `info`

    def as_file(self, format: ImageFormat, background: str | None = None) -> DecodedFile:
        """The image as a file, composited on `background` if one is given. Raises ImageError."""
        from codec.image.writing import dropped_metadata, write_image

        data = write_image(self.image, format, background)
        return DecodedFile(self.file, self.block_tokens, self.model, data, dropped_metadata(self.image, format))


@dataclass(frozen=True)
class DecodedFile(_Content):
    """A decoded image as the bytes of an image file."""

    data: bytes
    notes: tuple[str, ...] = ()  # remarks for the user, such as metadata that the format does not keep
