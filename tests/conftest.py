"""What tests share: the bundled photo, the bundled model, and a small prior that needs no model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitstream.layout import Layout, Level
from bitstream.prior import IntegerLayer, LevelPrior, Prior
from codec.api import Codec
from codec.integer import tables_from

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
PHOTO = ROOT / "docs" / "photo.webp"


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path_factory):
    """The weights that a developer has fetched are not there for tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(device="cpu")


@pytest.fixture(scope="session")
def small_prior() -> Prior:
    """Four levels with made-up integers, the same in every run."""
    levels = (Level(1, 2, 3, 0.25), Level(2, 3, 5, 0.25), Level(8, 2, 2, 0.5), Level(16, 4, 1, 0.75))
    return Prior(levels, tuple(_made_up(levels, index) for index in range(len(levels))))


def _made_up(levels: tuple[Level, ...], index: int) -> LevelPrior:
    def numbers(*shape: int, low: int, high: int, salt: int) -> np.ndarray:
        at = np.arange(int(np.prod(shape)), dtype=np.int64)
        return (low + (at * 7919 + salt * 104729 + index * 1299709) * 31 % 65537 % (high - low + 1)).reshape(shape)

    level, inputs, width, classes = levels[index], max(1, sum(o.digits for o in levels[max(0, index - 3) : index])), 6, 5
    weights = (
        numbers(width, inputs, 3, 3, low=-900, high=1200, salt=1),
        numbers(width, width, 1, 1, low=-700, high=900, salt=3),
        numbers(level.digits, width, 1, 1, low=-60, high=80, salt=5),
    )
    biases = (
        numbers(width, low=-500, high=4000, salt=2),
        numbers(width, low=-500, high=4000, salt=4),
        numbers(level.digits, low=0, high=9000, salt=6),
    )
    shifts = (2, 9, 12)
    layers = tuple(IntegerLayer(w.astype(np.int16), b, s) for w, b, s in zip(weights, biases, shifts, strict=True))
    spread = np.arange(classes)[:, None] + 0.7
    tables, costs = tables_from(1 / (1 + np.square(np.arange(-level.limit, level.limit + 1)) / spread))
    return LevelPrior(layers, tables, costs)


def random_digits(prior: Prior, layout: Layout, seed: int) -> tuple[np.ndarray, ...]:
    """Digits of all tokens, many of them zero, now and then at the limit."""
    rng = np.random.default_rng(seed)
    digits = []
    for level, grid in zip(prior.levels, layout.grids, strict=True):
        drawn = np.round(rng.laplace(0, 0.6, (level.digits, *grid))) + (rng.random((level.digits, *grid)) < 0.01) * level.limit
        digits.append(drawn.clip(-level.limit, level.limit).astype(np.int8))
    return tuple(digits)
