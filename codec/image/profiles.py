"""Colour spaces that a file names by a number, so that their profiles take no bytes (FORMAT.md, section 1). No torch.

A profile is recognised by its effect on colours, not by its name or bytes: there are dozens of profiles for each space. The
decoder returns our own profile of the same space (ICC.1:2010, version 4.3).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageCms

SRGB = 0
INTENTS = (ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Intent.PERCEPTUAL)  # a profile may have a table for each intent
SMALLEST_Y, SMALLEST_GAMUT = 1e-5, 1e-3  # chromaticity y, and determinant of primaries, of usable colours
TOLERANCE = 1  # maximum difference, of 255, from rounding
D50 = (0.9642, 1.0, 0.8249)  # XYZ
D65 = (0.3127, 0.3290)  # x and y
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# Bradford's adaptation of D65 to D50, in the ICC's rounding
ADAPTATION = (1.04788, 0.02292, -0.05022, 0.02959, 0.99048, -0.01707, -0.00925, 0.01508, 0.75168)
Primaries: TypeAlias = tuple[tuple[float, float, float], ...]  # XYZ of red, green and blue, adapted to D50; () for greyscale
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # the ICC's parametric curve of type 3


@dataclass(frozen=True)
class Space:
    """A colour space of a matrix/TRC profile."""

    name: str
    curve: tuple[float, ...]  # an exponent, or five parameters
    primaries: Primaries = ()
    white_d65: bool = True

    @property
    def mode(self) -> str:
        """The mode of images in this space."""
        return "RGB" if self.primaries else "L"


SRGB_PRIMARIES = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)
P3_PRIMARIES = (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)
ADOBE_PRIMARIES = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
PROPHOTO_PRIMARIES = (0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)
SPACES = {
    SRGB: Space("sRGB", SRGB_CURVE, SRGB_PRIMARIES),
    1: Space("Display P3", SRGB_CURVE, P3_PRIMARIES),
    2: Space("Adobe RGB (1998)", (563 / 256,), ADOBE_PRIMARIES),
    3: Space("ProPhoto RGB", (1.8,), PROPHOTO_PRIMARIES, white_d65=False),
    4: Space("Grey gamma 2.2", (2.2,)),
}
GREYS = {SRGB: Space("sRGB grey", SRGB_CURVE), 4: SPACES[4]}


def primaries_of(white: Sequence[float], *points: Sequence[float]) -> Primaries:
    """Primaries from the chromaticities (x, y) of white, red, green and blue, adapted to D50 as Bradford does.

    Raises ValueError if they span no colours."""
    x, y = np.array((white, *points), float).T
    xyz = np.stack([x, y, 1 - x - y], 1) / np.maximum(y, SMALLEST_Y)[:, None]
    if abs(np.linalg.det(xyz[1:])) < SMALLEST_GAMUT:
        msg = "its primaries span no colours"
        raise ValueError(msg)
    columns = xyz[1:].T * np.linalg.solve(xyz[1:].T, xyz[0])
    gains = (BRADFORD @ D50) / (BRADFORD @ xyz[0])
    red, green, blue = (np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD @ columns).T.tolist()
    return tuple(red), tuple(green), tuple(blue)


@lru_cache
def profile_of(number: int) -> bytes | None:
    """The profile of a space; None for sRGB, the space of images without a profile."""
    return None if number == SRGB else make_profile(SPACES[number])


@lru_cache(32)  # a folder of photos has few profiles
def recognise(profile: bytes, mode: str) -> int | None:
    """The number of the space that a profile for images of mode RGB or L describes; None if it has no number."""
    if mode == "L":
        candidates, colours = GREYS, Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        candidates = {number: space for number, space in SPACES.items() if space.mode == mode}
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))  # 729 from the RGB cube
    for number, space in candidates.items():
        try:
            if all(_equivalent(profile, make_profile(space), colours, intent) for intent in INTENTS):
                return number
        except (ImageCms.PyCMSError, OSError, ValueError):  # the profile cannot be used
            return None
    return None


def _equivalent(profile: bytes, other: bytes, colours: Image.Image, intent: ImageCms.Intent) -> bool:
    """Whether two profiles give numbers the same meaning. Greys are compared in sRGB, since grey profiles have no inverse."""
    if colours.mode == "RGB":
        converted, expected = _convert(profile, other, colours, intent), np.asarray(colours)
    else:
        srgb = make_profile(SPACES[SRGB])
        converted, expected = _convert(profile, srgb, colours, intent), _convert(other, srgb, colours, intent)
    return int(np.abs(converted.astype(int) - expected).max()) <= TOLERANCE


def _convert(source: bytes, target: bytes, colours: Image.Image, intent: ImageCms.Intent) -> np.ndarray:
    profiles = [ImageCms.ImageCmsProfile(io.BytesIO(content)) for content in (source, target)]
    transform = ImageCms.buildTransform(profiles[0], profiles[1], colours.mode, "RGB", intent)
    return np.asarray(ImageCms.applyTransform(colours, transform))


def make_profile(space: Space) -> bytes:
    """The ICC profile of a space."""
    tags = {b"desc": _text(space.name), b"cprt": _text("No copyright, use freely"), b"wtpt": b"XYZ " + _fixed(0, *D50)}
    if space.white_d65:
        tags[b"chad"] = b"sf32" + _fixed(0, *ADAPTATION)
    curve = b"para" + struct.pack(">IHH", 0, 3 if len(space.curve) > 1 else 0, 0) + _fixed(*space.curve)
    tags |= {name: b"XYZ " + _fixed(0, *xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), space.primaries, strict=False)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if space.primaries else (b"kTRC",), curve)
    offsets: dict[bytes, int] = {}  # offset by content, which equal tags share
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        if content not in offsets:
            offsets[content] = start + len(body)
            body += content + bytes(-len(content) % 4)
        table += name + struct.pack(">2I", offsets[content], len(content))
    colour_space = b"RGB " if space.primaries else b"GRAY"
    header = struct.pack(">I4x4s4s4s4s", start + len(body), b"\x04\x30\0\0", b"mntr", colour_space, b"XYZ ")
    header += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*D50)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def _fixed(*values: float) -> bytes:
    """Numbers in the ICC type s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def _text(text: str) -> bytes:
    """Text in the ICC type multiLocalizedUnicode, in one language."""
    content = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">3I2s2sII", 0, 1, 12, b"en", b"US", len(content), 28) + content
