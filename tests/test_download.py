"""`tessera models fetch lpips`, from a server on this machine: files are verified, kept, and used by other commands."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from codec.metrics import download
from codec.metrics.lpips import read_weights
from tests.helpers.commands import records, run
from tests.helpers.weights import ALEXNET_KERNELS, ALEXNET_WIDTHS


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Counts requests, and ignores clients that stop reading."""

    requests = 0

    def process_request(self, *arguments: object) -> None:
        self.requests += 1
        super().process_request(*arguments)  # type: ignore[arg-type]

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with files as PyTorch and the authors of LPIPS publish them, with other numbers; and its server."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    alexnet, inputs = {"classifier.6.bias": torch.zeros(1000)}, 3
    for (index, side), width in zip(ALEXNET_KERNELS.items(), ALEXNET_WIDTHS, strict=True):
        alexnet[f"features.{index}.weight"] = torch.randn(width, inputs, side, side) / 20
        alexnet[f"features.{index}.bias"] = torch.zeros(width)
        inputs = width
    torch.save(alexnet, folder / "alexnet.pth")
    linear = {f"lin{stage}.model.1.weight": torch.rand(1, width, 1, 1) for stage, width in enumerate(ALEXNET_WIDTHS)}
    torch.save(linear, folder / "alex.pth")
    with Server(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, server
        server.shutdown()


@pytest.fixture
def destination(published, tmp_path, monkeypatch):
    """The file that the download writes; the published files are those of the local server."""
    folder, server = published
    for name, file in (("ALEXNET", "alexnet.pth"), ("LINEAR", "alex.pth")):
        data = (folder / file).read_bytes()
        url = f"http://127.0.0.1:{server.server_port}/{file}"
        monkeypatch.setattr(download, name, download.Download(url, hashlib.sha256(data).hexdigest(), len(data)))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "data" / "tessera" / "lpips_alex.npz"


def test_a_download_keeps_the_published_numbers(destination, published):
    outcome = run("models", "fetch", "lpips", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    (record,) = records(outcome)
    assert (record["status"], record["output"], record["bytes"]) == ("done", str(destination), destination.stat().st_size)
    alexnet = torch.load(published[0] / "alexnet.pth", weights_only=True)
    with np.load(destination) as arrays:
        assert np.array_equal(arrays["features.10.weight"], alexnet["features.10.weight"])
        assert len(arrays.files) == 15
    assert read_weights()["lin4.weight"].shape == (256,)
    assert list(destination.parent.iterdir()) == [destination]


def test_lpips_is_a_target_once_its_weights_are_there(destination, photo, tmp_path):
    photo.crop((0, 0, 64, 64)).save(tmp_path / "a.png")
    encode = ("encode", tmp_path / "a.png", "--target-lpips", "0.5", "--json")
    assert run(*encode).exit_code == 1
    assert run("models", "fetch", "lpips").exit_code == 0
    outcome = run(*encode)
    assert outcome.exit_code == 0, outcome.stderr
    assert records(outcome)[0]["measured"] <= 0.5


def test_complete_weights_are_not_downloaded_again(destination, published):
    assert run("models", "fetch", "lpips").exit_code == 0
    requests = published[1].requests
    assert run("models", "fetch", "lpips").exit_code == 0
    assert published[1].requests == requests
    destination.write_bytes(b"damaged")
    assert run("models", "fetch", "lpips").exit_code == 0
    assert published[1].requests == requests + 2
    read_weights()


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"size": 100},
        {"url": "http://127.0.0.1:9/none"},
        {"url": "file:///none/alex.pth"},
    ],
    ids=["another digest", "a longer file", "no server", "no file"],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(destination, monkeypatch, change):
    monkeypatch.setattr(download, "ALEXNET", replace(download.ALEXNET, **change))
    outcome = run("models", "fetch", "lpips")
    assert outcome.exit_code == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert download.ALEXNET.url in outcome.stderr
    assert not destination.exists()
