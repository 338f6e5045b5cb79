"""The names of a command's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bitstream.container import read_file
from tests.helpers.commands import files_below, run


def test_a_second_name_is_the_output(folder):
    assert run("encode", "photo.jpg", "out.tsr").exit_code == 0
    assert run("decode", "out.tsr", "again.webp").exit_code == 0
    assert run("decode", "-", "piped.png", data=Path("out.tsr").read_bytes()).exit_code == 0
    assert files_below(folder) == {"photo.jpg", "out.tsr", "again.webp", "piped.png"}
    with Image.open("again.webp") as decoded:
        assert (decoded.format, decoded.size) == ("WEBP", (48, 32))


def test_two_images_are_two_inputs(folder, photo):
    photo.crop((0, 0, 20, 20)).save("b.png")
    assert run("encode", "photo.jpg", "b.png").exit_code == 0
    assert files_below(folder) == {"photo.jpg", "b.png", "photo.tsr", "b.tsr"}


@pytest.mark.parametrize("output", ["out/", "out/deeper/", "there"])
def test_an_output_that_is_a_folder_gets_the_file(folder, output):
    Path("there").mkdir()
    name = output.rstrip("/")
    assert run("encode", "photo.jpg", "-o", output).exit_code == 0
    assert run("decode", f"{name}/photo.tsr", "--output", f"{name}/").exit_code == 0
    Path(output).mkdir(exist_ok=True)
    assert run("tokens", f"{name}/photo.tsr", "-o", output).exit_code == 0
    assert files_below(folder) == {"photo.jpg", *(f"{name}/photo.{ending}" for ending in ("tsr", "png", "npz"))}


def test_an_output_with_the_ending_of_an_input_needs_f(folder):
    assert run("encode", "photo.jpg", "-o", "x.webp").exit_code == 2
    assert files_below(folder) == {"photo.jpg"}
    assert run("encode", "photo.jpg", "-o", "x.webp", "-f").exit_code == 0
    assert read_file(Path("x.webp").read_bytes()).complete
    assert run("decode", "x.webp", "-o", "y.tsr", "--format", "png").exit_code == 2


def test_devices_are_written_to_and_not_replaced(folder):
    assert run("encode", "photo.jpg", "-o", "/dev/full").exit_code == 1
    assert run("encode", "photo.jpg", "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()
