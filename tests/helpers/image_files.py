"""Image files of all kinds, made by hand where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from codec.image.metadata import Extras, from_sections
from codec.image.opening import open_image
from codec.image.source import Source, read_source

RAMP = np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) * 21  # 16-bit values, all different


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'


UPRIGHT = {  # by EXIF orientation: the pixels to show, from those in the file
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes, max_pixels: int = 500_000_000, **options) -> Source:
    return read_source(open_image(data, max_pixels), options, max_pixels)


def extras(source: Source) -> Extras:
    return from_sections(source.sections, source.width, source.height)


def difference(source: Source, expected: np.ndarray | Image.Image) -> np.ndarray:
    return np.abs(source.pixels.astype(int) - np.asarray(expected))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(width: int, depth: int, colour_type: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG file of packed rows, with these chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, len(rows), depth, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def png16(channels: int, values: np.ndarray, *, transparent: bytes = b"") -> bytes:
    """A PNG file of 16 bits per value, (H, W) or (H, W, channels), which Pillow does not write."""
    rows = [row.tobytes() for row in values.astype(">u2").reshape(len(values), -1)]
    chunks = [chunk(b"tRNS", transparent)] if transparent else []
    return png_file(values.shape[1], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *chunks)


def tiff_file(values: bytes, width: int, height: int, bits: int, photometric: int) -> bytes:
    """A TIFF file of packed grey values."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(values)}
    values += bytes(len(values) % 2)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + directory + bytes(4)


def pgm16(values: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8769)[0x927C] = b"notes of the camera"
    return exif


def parsed_exif(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(content)
    return exif


RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF>'


TIFF_XML = 'xmlns:{}="http://ns.adobe.com/tiff/1.0/"'


def with_gradient_alpha(small: Image.Image) -> tuple[Image.Image, np.ndarray]:
    alpha = np.asarray(Image.linear_gradient("L").resize(small.size))
    image = small.copy()
    image.putalpha(Image.fromarray(alpha))
    return image, alpha


def icon_of(content: bytes) -> bytes:
    """An ICO file whose directory says 16x16, whatever its content."""
    return struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def apple_icon_of(content: bytes) -> bytes:
    """An ICNS file that promises 16x16, whatever its content."""
    return struct.pack(">4sI4sI", b"icns", 16 + len(content), b"icp4", 8 + len(content)) + content


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
