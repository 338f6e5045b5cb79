"""The library's inputs: paths, open files, bytes, images, arrays and options. Wrong ones raise errors of Tessera."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import tessera
from codec.errors import FileError, ImageError, TesseraError, UsageError


@pytest.fixture
def path(photo, tmp_path) -> Path:
    photo.crop((0, 0, 60, 50)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_image_is_a_path_an_open_file_or_bytes(photo, path):
    expected = tessera.encode(photo.crop((0, 0, 60, 50)))
    data = path.read_bytes()
    with path.open("rb") as file:
        for image in (str(path), path, file, io.BytesIO(data), data):
            assert tessera.encode(image) == expected


def test_a_tsr_file_is_bytes_a_path_or_an_open_file(codec, path):
    data = codec.encode(path).data
    tsr = path.with_suffix(".tsr")
    tsr.write_bytes(data)
    expected = codec.decode(data).image
    with tsr.open("rb") as file:
        for source in (bytearray(data), memoryview(data), tsr, str(tsr), file, io.BytesIO(data)):
            assert tessera.decode(source) == expected


@pytest.mark.parametrize("image", [None, 3, b"bytes", ["photo.png"], io.StringIO("text"), object()])
def test_other_objects_are_not_images(image):
    with pytest.raises(TesseraError):
        tessera.encode(image)


@pytest.mark.parametrize("file", [None, 3, [1, 2], np.zeros(3), io.StringIO("text")])
def test_other_objects_are_not_tsr_files(file):
    with pytest.raises(TesseraError):
        tessera.decode(file)


def test_errors_name_the_file(tmp_path, path):
    for call in (tessera.encode, tessera.decode):
        with pytest.raises(FileError, match=r"none\.png: "):
            call(tmp_path / "none.png")
        with pytest.raises(TesseraError, match="null byte"):
            call("photo\0.png")
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.txt: "):
        tessera.encode(text)
    with path.open("rb") as closed:
        pass
    for call in (tessera.encode, tessera.decode):
        with pytest.raises(TesseraError, match=r"photo\.png: "):
            call(closed)


def test_permissions_are_named_only_if_they_are_the_reason(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for image in (tmp_path / "loop.png", "a" * 300 + ".png"):
        with pytest.raises(FileError) as caught:
            tessera.encode(image)
        assert "check its permissions" not in str(caught.value)


def test_a_grey_array_equals_the_grey_image(codec, photo):
    grey = photo.crop((0, 0, 60, 50)).convert("L")
    pixels = np.asarray(grey)
    assert codec.encode(pixels).data == codec.encode(pixels[..., None]).data == codec.encode(grey).data


def test_an_rgba_array_equals_the_transparent_image(codec, photo):
    image = photo.crop((0, 0, 60, 50))
    image.putalpha(128)
    data = codec.encode(np.asarray(image)).data
    assert data == codec.encode(image).data
    assert np.array_equal(np.asarray(codec.decode(data).image)[..., 3], np.full((50, 60), 128))


@pytest.mark.parametrize("shape", [(5,), (5, 5, 2), (5, 5, 5), (0, 5), (5, 0, 3), (1, 5, 5, 3)])
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ImageError):
        tessera.encode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 101},
        {"quality": float("nan")},
        {"tokens": 0},
        {"target_size": 0},
        {"target_bpp": 0},
        {"effort": 2},
        {"alpha_quality": -1},
        {"alpha_quality": 101},
        {"quality": 50, "target_size": 900},
        {"strip": True, "keep_exif": True},
    ],
)
def test_options_out_of_range_or_in_contradiction_are_refused(options):
    with pytest.raises(UsageError):
        tessera.encode(np.zeros((5, 5), np.uint8), **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError):
        tessera.encode(np.zeros((5, 5), np.uint8), qualty=50)
    with pytest.raises(TypeError):
        tessera.decode(b"", quality=50)
