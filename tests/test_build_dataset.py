"""Building a training set: `benchmarks/tools/build_dataset.py`."""

from __future__ import annotations

import io
import re
import tarfile

import numpy as np
from PIL import Image

from benchmarks.tools.build_dataset import build_dataset, main
from codec.training.photos import is_held_out


def texture(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Blurred noise, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def images(path) -> list[Image.Image]:
    with tarfile.open(path) as archive:
        return [Image.open(io.BytesIO(archive.extractfile(member).read())).convert("RGB") for member in archive]


def test_photographs_are_shrunk_to_at_least_the_minimum(tmp_path):
    originals = tmp_path / "originals"
    originals.mkdir()
    for seed in range(4):
        texture(seed).save(originals / f"{seed}.png")
    texture(4, 500, 310).save(originals / "4.png")  # nine tenths of it would be too small
    texture(5, 400, 300).save(originals / "5.png")  # too small
    (originals / "notes.txt").write_text("no image")
    assert build_dataset([originals], tmp_path / "out.tar", []) == (5, 0, 2)
    sizes = [image.size for image in images(tmp_path / "out.tar")]
    assert len(sizes) == 5 and sizes[4] == (490, 304)
    assert all(304 <= height <= 432 and abs(width / height - 4 / 3) < 0.01 for width, height in sizes[:4])
    assert len(set(sizes[:4])) > 1  # of several sizes
    first = np.asarray(images(tmp_path / "out.tar")[0], float)
    assert np.abs(first - np.asarray(texture(0).resize(sizes[0]), float)).mean() < 2


def test_photographs_that_resemble_an_evaluation_image_are_left_out(tmp_path, capsys):
    """So are other sizes or JPEGs of it, and repeated photographs. In tar files only held-out photographs count."""
    names = [f"{number}.jpg" for number in range(1000)]
    held, trained = next(n for n in names if is_held_out(n)), next(n for n in names if not is_held_out(n))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name, seed in ((held, 1), (trained, 2)):
            stream = io.BytesIO()
            texture(seed, 320, 240).save(stream, "jpeg", quality=40)
            member = tarfile.TarInfo(name)
            member.size = len(stream.getvalue())
            archive.addfile(member, io.BytesIO(stream.getvalue()))
    for folder, seeds in (("evaluation", (3,)), ("originals", (1, 2, 3, 4))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            texture(seed).save(tmp_path / folder / f"{seed}.png")
    texture(4, 700, 525).save(tmp_path / "originals/5.jpg")
    without = [str(tmp_path / "photos.tar"), str(tmp_path / "evaluation")]
    assert main([str(tmp_path / "out.tar"), str(tmp_path / "originals"), "--without", *without]) == 0
    assert re.findall(r"\b\d+\b", capsys.readouterr().out.replace(str(tmp_path), "")) == ["2", "3", "0"]
    left = [np.asarray(image, float) for image in images(tmp_path / "out.tar")]
    for image, seed in zip(left, (2, 4), strict=True):
        assert np.abs(image - np.asarray(texture(seed).resize(image.shape[1::-1]), float)).mean() < 2
