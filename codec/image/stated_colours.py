"""The ICC profile of an opened image: embedded, or derived from colours that its file states in another form. No torch.

Sources: PNG third edition, section 11.3.2; ITU-T H.273 (codes of PNG, AVIF and HEIF); TIFF 6.0, section 20; Exif 2.32, section
4.6.5 and annex E (Adobe RGB); Windows' BITMAPV5HEADER; JPEG 2000 part 1, annex I.5.3. The colour space of a QOI
file is not read: Pillow and others write 'linear' for sRGB.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

from codec.errors import ImageError
from codec.image.profiles import D65, SPACES, SRGB, SRGB_CURVE, Primaries, Space, make_profile, primaries_of, profile_of

WITHOUT_TILES = ("HEIF", "JXL")  # their plugins decode by other means, and drop the file when they load
CODED = ("AVIF", "PNG")  # formats with codes of H.273; those of HEIF come from its plugin
HEAD = 1 << 20  # bytes searched for the boxes of AVIF and JPEG 2000
ADOBE_RGB = 2  # number of the space in `codec.image.profiles`; also its number in the EXIF of some cameras
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
SRGB_PRIMARIES = SPACES[SRGB].primaries
ILLUMINANT_C = 0.310, 0.316
CODED_PRIMARIES = {  # H.273, table 2: x and y of white, red, green and blue. Code 1 is BT.709, 2 is unspecified.
    1: SRGB_PRIMARIES,
    2: SRGB_PRIMARIES,
    4: primaries_of(ILLUMINANT_C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: primaries_of(D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: primaries_of(D65, (0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    7: primaries_of(D65, (0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    8: primaries_of(ILLUMINANT_C, (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: primaries_of(D65, (0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    11: primaries_of((0.314, 0.351), (0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    12: SPACES[1].primaries,
    22: primaries_of(D65, (0.63, 0.34), (0.295, 0.605), (0.155, 0.077)),
}
# Of H.273, table 3. Code 2 is unspecified. The curves of BT.709 and its relatives (1, 6, 7, 11, 12, 14 and 15) are those of
# cameras; displays, and so browsers, show such images with a curve close to that of sRGB (13).
CODED_CURVES = dict.fromkeys((1, 2, 6, 7, 11, 12, 13, 14, 15), SRGB_CURVE) | {4: (2.2,), 5: (2.8,), 8: (1.0,)}
HDR_CURVES = {16: "PQ", 18: "HLG"}
SRGB_GAMMA = 0.45455  # 1 / 2.2; in a PNG with the primaries of sRGB it stands for the curve of sRGB, as in libpng
SAME_GAMMA = 0.005
WHITE_POINT, PRIMARIES, TRANSFER = 318, 319, 301  # tags of a TIFF
GIF_PROFILE_MAX = 1 << 24  # bytes
GIF_PROFILE = b"!\xff\x0bICCRGBG1012"  # start of the extension with a profile (ICC.1:2010, annex B.6)


def colour_profile(image: Image.Image) -> tuple[bytes | None, bool, list[str]]:
    """The ICC profile of an image that is opened but not loaded, whether the file embeds it, and notes if the stated colours
    cannot be used. None stands for sRGB.

    Raises ImageError for HDR curves, which 8 bits cannot hold."""
    notes: list[str] = []
    embedded = image.info.get("icc_profile")
    if not embedded and (read := EMBEDDED.get(image.format or "")):
        embedded = read(image)
    if not embedded and TRANSFER in getattr(image, "tag_v2", {}):
        notes.append("the transfer curves in its tags were left out")  # few programs write or apply them
    if "icc_profile" in image.info and not embedded:
        notes.append("its colour profile is damaged and was left out")
    try:
        codes = _colour_codes(image) if image.format in CODED or "nclx_profile" in image.info else None
        if codes and (image.format == "PNG" or not embedded):  # a PNG's codes have priority over its profile
            return _coded_profile(image, *codes), False, notes
        return embedded or _stated_profile(image), bool(embedded), notes
    except ImageError:
        raise
    except Exception as error:  # like other damaged metadata
        notes.append(f"the colours that it states cannot be used ({error}) and were left out")
        return embedded, True, notes


def _bitmap_profile(image: Image.Image) -> bytes | None:
    """The profile of a bitmap of version 5."""
    header = file_bytes(image, 14, 124)
    if header[56:60] != b"DEBM" or len(header) != header[0]:
        return None
    offset, size = struct.unpack("<2I", header[112:120])
    return file_bytes(image, 14 + offset, size) or None


def _gif_profile(image: Image.Image) -> bytes | None:
    start = file_bytes(image, 0, HEAD).find(GIF_PROFILE)
    return _gif_blocks(file_bytes(image, start + len(GIF_PROFILE), GIF_PROFILE_MAX)) if start >= 0 else None


def _jpeg2000_profile(image: Image.Image) -> bytes | None:
    box = re.search(rb"(....)colr[\x02\x03]", file_bytes(image, 0, HEAD), re.DOTALL)
    return file_bytes(image, box.start() + 11, int.from_bytes(box[1], "big") - 11) or None if box else None


EMBEDDED = {"BMP": _bitmap_profile, "GIF": _gif_profile, "JPEG2000": _jpeg2000_profile}  # profiles that Pillow does not read


def _gif_blocks(data: bytes) -> bytes:
    """The content of a GIF's blocks, which have up to 255 bytes, until an empty one."""
    content, position = bytearray(), 0
    while size := int.from_bytes(data[position : position + 1]):
        content += data[position + 1 : position + 1 + size]
        position += 1 + size
    return bytes(content)


def _colour_codes(image: Image.Image) -> tuple[int, int, bool] | None:
    """The H.273 codes of primaries and curve, and whether the values have full range."""
    if image.format == "PNG":
        content = _png_chunk(image, b"cICP")
        return (content[0], content[1], content[3] != 0) if len(content) == 4 else None
    if nclx := image.info.get("nclx_profile"):  # from pillow-heif, which like libavif converts values to full range
        return nclx["color_primaries"], nclx["transfer_characteristics"], True
    head = file_bytes(image, 0, HEAD) if image.format == "AVIF" else b""
    box = re.search(rb"colrnclx(..)(..)", head, re.DOTALL)
    return (int.from_bytes(box[1], "big"), int.from_bytes(box[2], "big"), True) if box else None


def _coded_profile(image: Image.Image, primaries: int, curve: int, full_range: bool) -> bytes | None:
    if curve in HDR_CURVES:
        msg = f"its colours are HDR ({HDR_CURVES[curve]}), and a .tsr file holds 8 bits: convert it to SDR first, such as sRGB"
        raise ImageError(msg)
    if not full_range:
        msg = "its values have the range of video: convert it to full range first"
        raise ImageError(msg)
    if curve not in CODED_CURVES or primaries not in CODED_PRIMARIES:
        msg = f"H.273 codes {primaries} and {curve}"
        raise ValueError(msg)
    return _profile(image, CODED_CURVES[curve], CODED_PRIMARIES[primaries])


def _stated_profile(image: Image.Image) -> bytes | None:
    """The profile of colours that a file states in chunks, tags or header fields. Raises errors of many types."""
    if "srgb" in image.info:
        return None
    if image.format == "PNG" and {"gamma", "chromaticity"} & image.info.keys():
        points = image.info.get("chromaticity")
        primaries = primaries_of(*zip(points[::2], points[1::2], strict=True)) if points else SRGB_PRIMARIES
        gamma = image.info.get("gamma") or SRGB_GAMMA
        is_srgb = "gamma" not in image.info or (abs(gamma - SRGB_GAMMA) < SAME_GAMMA and _same(primaries, SRGB_PRIMARIES))
        return _profile(image, SRGB_CURVE if is_srgb else (1 / gamma,), primaries)
    if image.format == "BMP" and (header := file_bytes(image, 14, 108))[:1] >= b"\x6c" and header[56:60] == bytes(4):
        points = np.array(struct.unpack("<9I", header[60:96]), float).reshape(3, 3)
        if not points.sum(1).all():  # most writers leave them empty
            return None
        gamma = struct.unpack("<3I", header[96:108])[1] / 65536
        red, green, blue = (points / points.sum(1, keepdims=True))[:, :2].tolist()
        return _profile(image, (max(gamma, 1 / gamma),) if gamma else SRGB_CURVE, primaries_of(D65, red, green, blue))
    tags = getattr(image, "tag_v2", {})
    if len(points := tags.get(PRIMARIES, ())) == 6:
        white = tags.get(WHITE_POINT, D65)
        return _profile(image, SRGB_CURVE, primaries_of(white, points[:2], points[2:4], points[4:]))
    with suppress(Exception):  # damaged EXIF is noted when its orientation is read
        exif = Image.Exif()  # not `getexif`, which would raise an error only once
        exif.load(image.info.get("exif", b""))
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        if space == ADOBE_RGB or (space != 1 and exif.get_ifd(ExifTags.IFD.Interop).get(1, "").startswith("R03")):
            return None if image.mode in GREY_MODES else profile_of(ADOBE_RGB)
    return None


def _profile(image: Image.Image, curve: tuple[float, ...], primaries: Primaries = SRGB_PRIMARIES) -> bytes | None:
    if image.mode in GREY_MODES:
        primaries = ()
    if curve == SRGB_CURVE and (not primaries or _same(primaries, SRGB_PRIMARIES)):
        return None
    return make_profile(Space("stated colours", curve, primaries, white_d65=False))


def _same(primaries: Primaries, others: Primaries) -> bool:
    return bool(np.abs(np.subtract(primaries, others)).max() < 0.002)


def _png_chunk(image: Image.Image, name: bytes) -> bytes:
    """The content of a PNG's chunk in front of its pixels; empty if it has none."""
    position = 8
    while len(header := file_bytes(image, position, 8)) == 8 and header[4:] != b"IDAT":
        size = int.from_bytes(header[:4], "big")
        if header[4:] == name:
            return file_bytes(image, position + 8, size)
        position += 12 + size
    return b""


def file_bytes(image: Image.Image, offset: int, size: int) -> bytes:
    """Bytes of the file of an image, all of them if `size` is -1; none if the image is loaded, since the file may be closed or
    replaced by then."""
    file = getattr(image, "fp", None)
    if file is None or not (image.tile or image.format in WITHOUT_TILES):  # type: ignore[attr-defined]
        return b""
    position = file.tell()
    file.seek(offset)
    content: bytes = file.read(size)
    file.seek(position)
    return content
