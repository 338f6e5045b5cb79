"""Colour profiles (ICC.1) whose effect can be seen, made by hand: they are small, and no system needs to have them."""

from __future__ import annotations

import itertools
import struct
from functools import cache

from PIL import Image, ImageCms


@cache
def srgb() -> bytes:
    """Cached, because the profile contains its creation time."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_and_green_swapped() -> bytes:
    """sRGB with the names of its red and green primaries exchanged in the table of tags."""
    profile = srgb()
    return profile.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)


def linear_grey() -> bytes:
    """Grey values that are amounts of light: much brighter than they look as sRGB."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8), b"wtpt": b"XYZ " + bytes(4) + D50})


def matrix(primaries: tuple[tuple[float, ...], ...], curve: bytes, name: bytes = b"test") -> bytes:
    """A profile of version 2 with one curve; of primaries (X, Y, Z) adapted to D50, or for grey where there are none."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + D50}
    for letter, point in zip(b"rgb", primaries, strict=False):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * part) for part in point))
    tags |= {bytes([letter]) + b"TRC": curve for letter in (b"rgb" if primaries else b"k")}
    return _profile(b"mntr", b"RGB " if primaries else b"GRAY", b"XYZ ", tags, name)


def gamma(exponent: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(256 * exponent)) + bytes(2)


def srgb_curve() -> bytes:
    """A table of 1024 points, as in most profiles."""
    values = (number / 1023 for number in range(1024))
    light = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values)
    return b"curv" + struct.pack(">II1024H", 0, 1024, *(round(65535 * value) for value in light))


def cyan_and_magenta_swapped() -> bytes:
    """Pillow's default CMYK conversion, with cyan and magenta exchanged."""
    table = b""
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        red, green, blue = (255 * (1 - ink) * (1 - k) for ink in (m, c, y))
        table += _lab((red, green, blue))
    straight = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i in (0, 4, 8) else 0 for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + straight * 4 + table + straight * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut, b"wtpt": b"XYZ " + bytes(4) + D50})


def _lab(rgb: tuple[int, ...]) -> bytes:
    """sRGB -> Lab in 8 bits each, a and b about 128, as a lut8 has them."""
    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*spaces, "RGB", "LAB")
    return bytes(ImageCms.applyTransform(Image.new("RGB", (1, 1), rgb), transform).getpixel((0, 0)))


D50 = struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes], title: bytes = b"test") -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(title) + 1) + title + bytes(79), **tags}
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", at + len(body), len(content))
        body += content
    head = struct.pack(">I4s4s4s4s4s", at + len(body), b"", b"\x02\x40\0\0", kind, space, connection)
    head += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + D50
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body
