"""What the library takes: paths, open files, bytes of every kind, grey and RGBA arrays; all else is an error of ours."""

from __future__ import annotations

import inspect
import io
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import codec as library
from codec.codec import Codec
from codec.errors import FormatError, ImageError, TesseraError
from codec.rate_control import DEFAULT_EFFORT, Target
from codec.results import EncodeOptions, ImageOptions
from tests.helpers import ROOT


@pytest.fixture
def path(photo, tmp_path) -> Path:
    photo.crop((0, 0, 60, 50)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_image_is_given_by_its_path_or_as_a_file(photo, path):
    expected = library.encode(photo.crop((0, 0, 60, 50)))
    with path.open("rb") as file:
        for given in (str(path), path, file, io.BytesIO(path.read_bytes())):
            assert library.encode(given) == expected


def test_a_file_is_decoded_from_any_bytes_its_path_or_as_a_file(codec, path):
    data = codec.encode(path)
    made = path.with_suffix(".tsr")
    made.write_bytes(data)
    expected = codec.decode(data)
    with made.open("rb") as file:
        for given in (bytearray(data), memoryview(data), made, str(made), file, io.BytesIO(data)):
            assert library.decode(given) == expected


@pytest.mark.parametrize("given", [None, 3, b"bytes", ["photo.png"], io.StringIO("text"), object()])
def test_what_is_no_image_is_an_error_of_ours(given):
    with pytest.raises(ImageError, match="is not an image: give a PIL image"):
        library.encode(given)


@pytest.mark.parametrize("given", [None, 3, [1, 2], np.zeros(3), io.StringIO("text")])
def test_what_is_no_file_is_an_error_of_ours(given):
    with pytest.raises(FormatError, match=r"is not a \.tsr file: give its bytes"):
        library.decode(given)


def test_errors_name_the_file(tmp_path, path):
    with pytest.raises(ImageError, match=r"none\.png: cannot be read \(No such file"):
        library.encode(tmp_path / "none.png")
    with pytest.raises(FormatError, match=r"none\.tsr: cannot be read \(No such file"):
        library.decode(str(tmp_path / "none.tsr"))
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.txt: not an image"):
        library.encode(text)
    with path.open("rb") as closed:
        pass
    for call in (library.encode, library.decode):
        with pytest.raises(TesseraError, match=r"photo\.png: cannot be read \(read of closed file\)"):
            call(closed)
        with pytest.raises(TesseraError, match="null byte"):
            call("photo\0.png")


def test_a_grey_array_is_the_grey_image(codec, photo):
    grey = photo.crop((0, 0, 60, 50)).convert("L")
    pixels = np.asarray(grey)
    assert codec.encode(pixels) == codec.encode(pixels[..., None]) == codec.encode(grey)


def test_an_rgba_array_is_the_image_with_transparency(codec, photo):
    image = photo.crop((0, 0, 60, 50))
    image.putalpha(128)
    data = codec.encode(np.asarray(image))
    assert data == codec.encode(image)
    assert np.array_equal(np.asarray(codec.decode(data))[..., 3], np.full((50, 60), 128))


@pytest.mark.parametrize("shape", [(5,), (5, 5, 2), (5, 5, 5), (0, 5), (5, 0, 3), (1, 5, 5, 3)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ImageError, match=r"an array of uint8 \(.*give uint8 \(height, width\)"):
        library.encode(np.zeros(shape, np.uint8))


def test_signatures_spell_out_all_options():
    options = [field.name for kind in (Target, ImageOptions) for field in fields(kind)] + ["effort"]
    named = inspect.signature(library.encode).parameters
    assert list(named) == ["image", "model", *options]
    assert list(EncodeOptions.__annotations__) == options
    defaults = {field.name: field.default for kind in (Target, ImageOptions) for field in fields(kind)}
    assert {name: named[name].default for name in options} == defaults | {"effort": DEFAULT_EFFORT}
    for function in (library.decode, Codec.decode, Codec.decode_batch):
        assert {"allow_partial", "tokens"} <= inspect.signature(function).parameters.keys()


def test_type_checkers_are_told_that_there_are_types():
    assert (ROOT / "codec" / "py.typed").exists()
    assert "py.typed" in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["codec"]
