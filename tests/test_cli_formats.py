"""What decode writes: formats, their quality, transparency and colours."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cli.formats
from cli.formats import Format, format_of, image_bytes
from cli.main import main
from tests.helpers.profiles import red_and_green_swapped


def run(*arguments) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path, photo, codec, monkeypatch) -> Path:
    """a.tsr, and clear.tsr with transparency."""
    crop = photo.crop((100, 100, 228, 196))
    (tmp_path / "a.tsr").write_bytes(codec.encode(crop, quality=75))
    crop.putalpha(Image.linear_gradient("L").resize(crop.size))
    (tmp_path / "clear.tsr").write_bytes(codec.encode(crop, quality=75))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "jxl"])
def test_lossy_formats_have_a_quality(folder, ending):
    if ending == "jxl":
        pytest.importorskip("pillow_jxl")
    sizes = {}
    for quality in (None, 30, 100):
        flags = [] if quality is None else ["--output-quality", quality]
        said = run("decode", "a.tsr", f"{quality}.{ending}", "-v", *flags)
        assert said.exit_code == 0, said.stderr
        shown = re.search(r"  128x96, (\w+) (quality (\d+)|lossless)  ", said.stderr)
        assert shown[1] == {"jpg": "JPEG"}.get(ending, ending.upper())
        assert shown[3] == str(quality or (80 if ending == "avif" else 90)) or (quality, shown[2]) == (100, "lossless")
        sizes[quality] = Path(f"{quality}.{ending}").stat().st_size
    assert sizes[30] < sizes[None] < sizes[100]
    assert run("decode", "a.tsr", "a.png").exit_code == 0
    assert sizes[None] < Path("a.png").stat().st_size / 2
    error = np.square(pixels(f"None.{ending}").astype(float) - pixels("a.png")).mean()
    assert 10 * np.log10(255**2 / error) > 35
    if ending in ("webp", "jxl"):
        assert np.array_equal(pixels(f"100.{ending}"), pixels("a.png"))
    assert ", " not in run("decode", "a.tsr", f"quiet.{ending}").stderr


@pytest.mark.parametrize("ending", ["png", "ppm", "bmp"])
def test_a_quality_for_a_lossless_format_is_refused(folder, ending):
    said = run("decode", "a.tsr", "--format", ending, "--output-quality", "80")
    assert said.exit_code == 2
    assert f"{ending.upper()} has no quality: leave it out" in said.stderr
    assert [path.name for path in folder.glob(f"*.{ending}")] == []


def test_a_format_whose_plugin_is_missing_names_it(folder, monkeypatch):
    monkeypatch.setattr(Image, "SAVE", {name: save for name, save in Image.SAVE.items() if name != "JXL"})
    monkeypatch.setattr("codec.image.reading._import_helper", lambda module: None)
    said = run("decode", "a.tsr", "a.jxl")
    assert said.exit_code == 2
    assert "images cannot be written as jxl: install pillow-jxl-plugin, or use png" in said.stderr


@pytest.mark.parametrize("ending", ["jpg", "ppm"])
def test_transparency_needs_a_background_where_the_format_has_none(folder, ending):
    said = run("decode", "clear.tsr", f"a.{ending}")
    assert said.exit_code == 1
    assert "has no transparency: use png or webp, or lay it on a colour with --background white\n" in said.stderr
    assert run("decode", "clear.tsr", f"a.{ending}", "--background", "#00ff00").exit_code == 0
    assert run("decode", "clear.tsr", "a.png", "--background", "#00ff00").exit_code == 0
    top, below = pixels(f"a.{ending}")[0, :, :].mean(0), pixels("a.png")
    assert np.allclose(top, (0, 255, 0), atol=3)
    assert np.abs(pixels(f"a.{ending}").astype(float) - below).mean() < (4 if ending == "jpg" else 0.1)
    with Image.open("a.png") as flat:
        assert flat.mode == "RGB"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_formats_without_profiles_get_srgb(mode):
    image = Image.new(mode, (8, 8), (200, 60, 40, 128)[: len(mode)])
    image.info["icc_profile"] = profile = red_and_green_swapped()
    with Image.open(io.BytesIO(image_bytes(image, format_of("a.png", None, None)))) as kept:
        assert (kept.getpixel((0, 0)), kept.info["icc_profile"]) == (image.getpixel((0, 0)), profile)
    with Image.open(io.BytesIO(image_bytes(image, Format("TGA", None)))) as converted:
        assert converted.mode == mode
        assert np.allclose(converted.getpixel((0, 0))[:3], (60, 200, 40), atol=3)


def test_every_default_is_a_quality_that_pillow_takes():
    Image.init()
    assert set(cli.formats.QUALITY) - {"JXL", "HEIF"} <= set(Image.SAVE)
