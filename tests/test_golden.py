"""Stored files keep their tokens, bytes and images, and the reference decoder reads the same tokens."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from PIL import ExifTags, Image
from safetensors.numpy import load_file

from bitstream.container import read_file
from codec.models.registry import model_for, open_model
from codec.reading import read_tokens
from codec.token_arrays import npz_to_file
from tests.helpers import GOLDEN
from tests.helpers import reference_decoder as reference

NAMES = sorted(path.stem for path in GOLDEN.glob("*.tsr"))
pytestmark = pytest.mark.light


def stored(name: str) -> tuple[bytes, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return (GOLDEN / f"{name}.tsr").read_bytes(), dict(arrays)


def test_there_are_golden_files():
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_tokens_have_not_changed(name):
    data, arrays = stored(name)
    file = read_file(data)
    assert file.complete
    tokens = read_tokens(file, model_for(file.stream_id).code)
    for index, (digits, known) in enumerate(zip(tokens.digits, tokens.known, strict=True)):
        assert np.array_equal(digits, arrays[f"digits_{index}"])
        assert np.array_equal(known, arrays[f"known_{index}"])


@pytest.mark.parametrize("name", NAMES)
def test_bytes_have_not_changed(name):
    data, _ = stored(name)
    assert npz_to_file((GOLDEN / f"{name}.npz").read_bytes())[0] == data


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wide-bytes"])
def test_a_second_decoder_agrees(name):
    data, arrays = stored(name)
    model = open_model()
    digits = reference.decode(data, [asdict(level) for level in model.config.levels], load_file(model.path))
    for index, level in enumerate(digits):
        assert np.array_equal(level, arrays[f"digits_{index}"])


@pytest.mark.parametrize("name", NAMES)
def test_images_have_not_changed(name, codec):
    data, _ = stored(name)
    expected = np.asarray(Image.open(GOLDEN / f"{name}.png")).astype(int)
    decoded = np.asarray(codec.decode(data).image).astype(int)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 1


def test_sections_have_not_changed(codec):
    data = (GOLDEN / "sections" / "cut-out.tsr").read_bytes()
    expected = Image.open(GOLDEN / "sections" / "cut-out.png")
    decoded = codec.decode(data).image
    assert decoded.mode == expected.mode == "RGBA"
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).max() <= 1
    assert np.array_equal(decoded.getchannel("A"), expected.getchannel("A"))
    assert decoded.info["icc_profile"] == expected.info["icc_profile"]
    assert decoded.getexif()[ExifTags.Base.ImageDescription] == "a cut-out"
    assert decoded.info["xmp"] == b"<x:xmpmeta/>"


def test_the_bundled_model_matches_its_digest():
    open_model().check()


def test_golden_images_look_like_the_photo(photo):
    """They were not made with a broken model."""
    image = np.asarray(Image.open(GOLDEN / "block-preview.png")).astype(float)
    original = np.asarray(photo.crop((200, 80, 456, 336))).astype(float)
    assert 10 * np.log10(255**2 / np.square(image - original).mean()) > 18
    assert (GOLDEN / "block-preview.tsr").stat().st_size < 1000
