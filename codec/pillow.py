"""Pillow plugin: after `import tessera.pillow`, Pillow opens and saves .tsr files.

    image = Image.open("photo.tsr")             # reads the header and the metadata
    image.load()                                # decodes the pixels; or load(tokens=...), load(detail=...)
    image.save("small.tsr", quality=40)         # or tokens=, target_size=, target_bpp=, target_psnr=, ...

`load` takes the options of `tessera.decode`, and `save` those of `tessera.encode`, with `icc_profile` and `exif` as in Pillow's
own plugins: the profile is kept unless another one or None is passed; EXIF is written only if passed. `save` ignores options
with other names, as usual in Pillow. The import needs no torch.
"""

from __future__ import annotations

import io
from typing import IO, Any

from PIL import Image, ImageFile

from bitstream.container import MAGIC, File, read_file
from codec import decode, encode
from codec.errors import TesseraError
from codec.image.metadata import ALPHA, from_sections
from codec.image.source import mode_of
from codec.limits import check_size
from codec.options import MAX_PIXELS, EncodeOptions, definitions
from codec.system.inputs import folder_of

FORMAT = "TSR"
OPTIONS = definitions(EncodeOptions).keys() - {"keep_exif"} | {"model"}


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


class TesseraImageFile(ImageFile.ImageFile):
    """A .tsr file. `load` decodes it, and a cut file only if `ImageFile.LOAD_TRUNCATED_IMAGES` is set."""

    format = FORMAT
    format_description = "Tessera learned image"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        if not _accept(data):
            msg = "not a .tsr file"
            raise SyntaxError(msg)  # makes Pillow try the next plugin
        try:
            file = read_file(data)
            sections = tuple(section for section in file.sections if section[0] != ALPHA)
            extras = from_sections(sections, file.width, file.height, file.space)
        except TesseraError as error:
            raise OSError(str(error)) from error
        self._size = file.width, file.height
        self._mode = mode_of(file.greyness, transparent=len(sections) < len(file.sections))
        self.info.update(extras.info)
        self._complete = file.complete
        self._file: File | None = file

    def verify(self) -> None:
        """Raises OSError if the checksum is wrong."""
        if not self._complete:
            msg = "the checksum is wrong: the file is cut or damaged"
            raise OSError(msg)
        super().verify()

    def load(self, **options: Any) -> Image.core.PixelAccess | None:
        if self._file is not None:
            try:
                # Pillow itself refuses twice its limit, but does not count blocks.
                limit = MAX_PIXELS if Image.MAX_IMAGE_PIXELS is None else min(MAX_PIXELS, 2 * Image.MAX_IMAGE_PIXELS)
                check_size(*self.size, limit)
                folder = folder_of(self.filename or None)  # the reference may be there
                defaults = {"allow_partial": ImageFile.LOAD_TRUNCATED_IMAGES, "reference": folder}
                image = decode(self._file, **(defaults | options))
            except TesseraError as error:
                raise OSError(str(error)) from error
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self._file, self.fp = None, io.BytesIO(image.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Its presence makes `ImageFile.Parser` wait for the complete file."""


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    arguments = im.encoderinfo
    options = {name: value for name, value in arguments.items() if name in OPTIONS}
    exif = arguments.get("exif")
    info = im.info | {
        "icc_profile": arguments.get("icc_profile", im.info.get("icc_profile")),
        "exif": exif.tobytes() if isinstance(exif, Image.Exif) else exif or im.info.get("exif"),  # turns the image upright
        "xmp": None,
    }
    image = im.copy()
    image.info = {name: value for name, value in info.items() if value is not None}
    try:
        data = encode(image, keep_exif=bool(exif), **options)
    except TesseraError as error:
        raise (ValueError if error.usage else OSError)(str(error)) from error
    fp.write(data)  # one write after encoding: if encoding fails, nothing is written


Image.register_open(FORMAT, TesseraImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".tsr")
Image.register_mime(FORMAT, "image/x-tessera")
