"""Programs that make the numbers and images that this repository shows. They are not installed: run them from its root."""

from __future__ import annotations

from pathlib import Path

from benchmarks.records import Pixels
from benchmarks.study import read_pixels


def read_images(folder: Path, every: int = 1) -> list[Pixels]:
    """The images of a folder, in the order of their names; with `every`, one of that many."""
    return [read_pixels(path) for path in sorted(folder.glob("*.*"))[::every]]
