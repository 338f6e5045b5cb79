"""Programs for the numbers and images in this repository. They are not installed: run them from its root."""

from __future__ import annotations

from pathlib import Path

from benchmarks.records import Pixels
from benchmarks.study import read_pixels


def read_images(folder: Path, every: int = 1) -> list[Pixels]:
    """One of every `every` images of a folder, in order of name."""
    return [read_pixels(path) for path in sorted(folder.glob("*.*"))[::every]]
