"""Pillow plugin: once this is imported, Pillow opens and saves .tsr files.

    import codec.pillow
    image = Image.open("photo.tsr")             # reads what the file says of itself
    image.load()                                # decodes the image; this imports torch
    image.save("small.tsr", quality=40)         # or tokens=, target_size=, target_bpp=, target_psnr=, ...

Options of `save` are those of `codec.encode`, and `icc_profile` and `exif` as in Pillow's own plugins: the profile is kept
unless another or None is passed, EXIF is written only if passed. Options with other names are ignored, as Pillow does.
Importing this is cheap: it needs no torch.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageFile

from bitstream.container import MAGIC, read_file
from codec.errors import TesseraError
from codec.image.metadata import ALPHA, from_sections
from codec.image.opening import check_size
from codec.image.source import mode_of
from codec.options import EncodeOptions, definitions

if TYPE_CHECKING:
    from codec.codec import Codec

FORMAT = "TSR"
OPTIONS = definitions(EncodeOptions).keys() - {"keep_exif"}


class TesseraImageFile(ImageFile.ImageFile):
    """A .tsr file. `load` decodes it; a cut one too, where `ImageFile.LOAD_TRUNCATED_IMAGES` is set."""

    format = FORMAT
    format_description = "Tessera learned image"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        if not _accept(data):
            msg = "not a .tsr file"
            raise SyntaxError(msg)  # what Pillow takes for 'try the next plugin'
        try:
            file = read_file(data)
            notes = tuple(section for section in file.sections if section[0] != ALPHA)
            extras = from_sections(notes, file.width, file.height, file.space)
        except TesseraError as error:
            raise OSError(str(error)) from error
        self._size = file.width, file.height
        self._mode = mode_of(file.greyness, len(notes) < len(file.sections))
        self.info.update(extras.info)
        self._whole = file.complete
        self._bytes: bytes | None = data

    def verify(self) -> None:
        """Raises OSError where the checksum is wrong."""
        if not self._whole:
            msg = "the checksum is wrong: the file is cut or damaged"
            raise OSError(msg)
        super().verify()

    def load(self) -> Image.core.PixelAccess | None:
        if self._bytes is not None:
            try:
                if Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses twice as many, and knows nothing of blocks
                    check_size(*self.size, 2 * Image.MAX_IMAGE_PIXELS)
                decoded = _shared().decode(self._bytes, allow_partial=ImageFile.LOAD_TRUNCATED_IMAGES).image
            except TesseraError as error:
                raise OSError(str(error)) from error
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self._bytes, self.fp = None, io.BytesIO(decoded.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Tells `ImageFile.Parser`, by being there, that a part of a file is not enough."""


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _shared(model: str | None = None) -> Codec:
    from codec import _shared

    return _shared(model)


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    given = im.encoderinfo
    options = {name: value for name, value in given.items() if name in OPTIONS}
    exif = given.get("exif")
    passed = {
        "icc_profile": given.get("icc_profile", im.info.get("icc_profile")),
        "exif": exif.tobytes() if isinstance(exif, Image.Exif) else exif or im.info.get("exif"),
        "xmp": None,
    }
    image = im.copy()
    image.info = {name: value for name, value in (im.info | passed).items() if value is not None}
    try:
        made = _shared(given.get("model")).encode(image, keep_exif=bool(exif), **options).data
    except TesseraError as error:
        raise (ValueError if error.usage else OSError)(str(error)) from error
    fp.write(made)  # all at once: an encoding that fails leaves nothing half-written


Image.register_open(FORMAT, TesseraImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".tsr")
Image.register_mime(FORMAT, "image/x-tessera")
