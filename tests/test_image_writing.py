"""Images are written in the formats of Pillow and its plugins. What the command makes of it is in test_cli.py."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from codec.errors import UsageError
from codec.image.writing import QUALITY, ImageFormat, image_format, write_image
from tests.helpers.profiles import red_and_green_swapped


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_formats_without_profiles_get_srgb(mode):
    image = Image.new(mode, (8, 8), (200, 60, 40, 128)[: len(mode)])
    image.info["icc_profile"] = profile = red_and_green_swapped()
    with Image.open(io.BytesIO(write_image(image, image_format(".png")))) as kept:
        assert (kept.getpixel((0, 0)), kept.info["icc_profile"]) == (image.getpixel((0, 0)), profile)
    with Image.open(io.BytesIO(write_image(image, ImageFormat("TGA", None)))) as converted:
        assert converted.mode == mode
        assert np.allclose(converted.getpixel((0, 0))[:3], (60, 200, 40), atol=3)


def test_every_default_quality_is_of_a_format_that_pillow_writes():
    Image.init()
    assert set(QUALITY) - {"JXL", "HEIF"} <= set(Image.SAVE)


def test_the_error_of_a_missing_plugin_names_it(monkeypatch):
    monkeypatch.setattr(Image, "SAVE", {name: save for name, save in Image.SAVE.items() if name != "JXL"})
    monkeypatch.setattr("codec.image.writing.load_plugin", lambda *_, **__: None)
    with pytest.raises(UsageError, match="pillow-jxl-plugin"):
        image_format(".jxl")
