"""Fixtures of all tests: the bundled photo and model, a browser, a report, and small entropy models that need no model file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from bitstream.pyramid_tokens import ANCHOR, NON_ANCHOR, Level, PyramidCode
from codec.codec import Codec
from tests.helpers import HAS_TORCH, PHOTO
from tests.helpers.browser import browser
from tests.helpers.tokens import made_up_entropy_model
from tests.helpers.weights import write_lpips_weights


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without torch, files that have no test for that case are not imported."""
    if not HAS_TORCH and collection_path.suffix == ".py" and "mark.light" not in collection_path.read_text():
        return True
    return None


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch, tmp_path_factory):
    """Tests see no weights that a developer has fetched, and download none."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "data"))

    def refuse(url: str, *_: object, **__: object) -> None:
        msg = "no network in tests"
        raise OSError(msg)

    if HAS_TORCH:
        monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub on loopback, of class `tests.helpers.hub.Hub`, and new caches."""
    from tests.helpers.hub import Hub, Server

    with Server(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            monkeypatch.delitem(sys.modules, name)  # it reads the environment when it is imported
        for name, value in {"repositories": {}, "altered": {}, "downloads": [], "ranges": True}.items():
            monkeypatch.setattr(Hub, name, value)
        monkeypatch.chdir(tmp_path)
        yield Hub
        server.shutdown()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up study."""
    from benchmarks.report import write_report
    from tests.helpers.study import decoded, made_up, original

    path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(made_up(), path, original, decoded)
    return path


@pytest.fixture(scope="session")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up weights, by which distances are about as large as by the published ones."""
    return write_lpips_weights(tmp_path_factory.mktemp("weights") / "lpips.npz")


@pytest.fixture
def folder(tmp_path, photo, monkeypatch) -> Path:
    """The current folder, with a photo."""
    photo.crop((40, 60, 88, 92)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.open(PHOTO).convert("RGB")


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(device="cpu")


@pytest.fixture(scope="session")
def small_code() -> PyramidCode:
    """Four levels."""
    levels = (Level(1, 2, 3), Level(2, 3, 5), Level(8, 2, 2), Level(16, 4, 1))
    return PyramidCode(levels, tuple(made_up_entropy_model(levels, index, (3, 1, 1)) for index in range(len(levels))))


@pytest.fixture(scope="session")
def checkerboard_code() -> PyramidCode:
    """Six levels, four of which are two checkerboards, with 3x3 kernels in two layers."""
    halves = (Level(8, 2, 2, ANCHOR), Level(8, 2, 2, NON_ANCHOR), Level(16, 4, 1, ANCHOR), Level(16, 4, 1, NON_ANCHOR))
    levels = (Level(1, 2, 3), Level(4, 3, 5), *halves)
    return PyramidCode(levels, tuple(made_up_entropy_model(levels, index, (3, 3, 1)) for index in range(len(levels))))


@pytest.fixture(scope="session", params=["small_code", "checkerboard_code"])
def made_up_code(request: pytest.FixtureRequest) -> PyramidCode:
    return request.getfixturevalue(request.param)
