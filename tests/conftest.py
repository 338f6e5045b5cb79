"""What tests share: the bundled photo, the bundled model, and a small prior that needs no model file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import browser
from PIL import Image

from bitstream.entropy_model import IntegerLayer, LevelEntropyModel
from bitstream.pyramid_tokens import EVEN, ODD, Level, PyramidCode, PyramidLayout, grids_before, in_part
from codec.codec import Codec

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
HAS_TORCH = find_spec("torch") is not None
PHOTO = ROOT / "docs" / "photo.webp"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without torch, files with no test for that are not even read."""
    if not HAS_TORCH and collection_path.suffix == ".py" and "mark.light" not in collection_path.read_text():
        return True
    return None


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path_factory):
    """The weights that a developer has fetched are not there for tests, and none are downloaded."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))

    def refuse(url: str, *_: object, **__: object) -> None:
        msg = "no network in tests"
        raise OSError(msg)

    if HAS_TORCH:
        monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study."""
    from made_up import decoded, made_up, original

    from benchmarks.report import write_report

    path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(made_up(), path, original, decoded)
    return path


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(device="cpu")


@pytest.fixture(scope="session")
def small_code() -> PyramidCode:
    """Four levels with made-up integers, the same in every run."""
    levels = (Level(1, 2, 3), Level(2, 3, 5), Level(8, 2, 2), Level(16, 4, 1))
    return PyramidCode(levels, tuple(_made_up(levels, index, (3, 1, 1)) for index in range(len(levels))))


@pytest.fixture(scope="session")
def halves_code() -> PyramidCode:
    """Levels of which two are halves of a checkerboard each, and layers of two kinds, with made-up integers."""
    halves = (Level(8, 2, 2, EVEN), Level(8, 2, 2, ODD), Level(16, 4, 1, EVEN), Level(16, 4, 1, ODD))
    levels = (Level(1, 2, 3), Level(4, 3, 5), *halves)
    return PyramidCode(levels, tuple(_made_up(levels, index, (3, 3, 1)) for index in range(len(levels))))


@pytest.fixture(scope="session", params=["small_code", "halves_code"])
def made_up_code(request: pytest.FixtureRequest) -> PyramidCode:
    return request.getfixturevalue(request.param)


def _made_up(levels: tuple[Level, ...], index: int, kernels: tuple[int, ...]) -> LevelEntropyModel:
    def numbers(*shape: int, low: int, high: int, salt: int) -> np.ndarray:
        at = np.arange(int(np.prod(shape)), dtype=np.int64)
        return (low + (at * 7919 + salt * 104729 + index * 1299709) * 31 % 65537 % (high - low + 1)).reshape(shape)

    level, width, classes = levels[index], 6, 5
    inputs = max(1, sum(levels[grid[0]].digits for grid in grids_before(levels, index)))
    first, second, last = kernels
    weights = (
        numbers(width, inputs, first, first, low=-900, high=1200, salt=1),
        numbers(width, width, second, second, low=-700, high=900, salt=3),
        numbers(level.digits, width, last, last, low=-60, high=80, salt=5),
    )
    biases = (
        numbers(width, low=-500, high=4000, salt=2),
        numbers(width, low=-500, high=4000, salt=4),
        numbers(level.digits, low=0, high=9000, salt=6),
    )
    shifts = (2, 9, 12)
    layers = tuple(IntegerLayer(w.astype(np.int16), b, s) for w, b, s in zip(weights, biases, shifts, strict=True))
    from codec.pyramid.integer_model import tables_from  # torch is not there in every run

    spread = np.arange(classes)[:, None] + 0.7
    tables, costs = tables_from(1 / (1 + np.square(np.arange(-level.limit, level.limit + 1)) / spread))
    return LevelEntropyModel(layers, tables, costs)


def random_digits(code: PyramidCode, layout: PyramidLayout, seed: int) -> tuple[np.ndarray, ...]:
    """Digits of all tokens, many of them zero, now and then at the limit."""
    rng = np.random.default_rng(seed)
    digits = []
    for level, grid in zip(code.levels, layout.grids, strict=True):
        drawn = np.round(rng.laplace(0, 0.6, (level.digits, *grid))) + (rng.random((level.digits, *grid)) < 0.01) * level.limit
        digits.append(drawn.clip(-level.limit, level.limit).astype(np.int8) * in_part(level.part, *grid))
    return tuple(digits)
