"""`tessera models fetch lpips`, from a local server: what is published is checked, kept, and used everywhere afterwards."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from codec.metrics import download as fetch
from codec.metrics.lpips import read_weights

SHAPES = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}  # of AlexNet's convolutions


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Silence."""


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Nothing: a client may stop reading."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with files as PyTorch and the authors of LPIPS publish them, with other numbers; and its server's address."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    alexnet = {"classifier.6.bias": torch.zeros(1000)}
    for index, (out, channels, side) in SHAPES.items():
        alexnet |= {f"features.{index}.weight": torch.randn(out, channels, side, side) / 20}
        alexnet |= {f"features.{index}.bias": torch.zeros(out)}
    torch.save(alexnet, folder / "alexnet.pth")
    linear = {f"lin{stage}.model.1.weight": torch.rand(1, SHAPES[index][0], 1, 1) for stage, index in enumerate(SHAPES)}
    torch.save(linear, folder / "alex.pth")
    with Server(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def sources(published, tmp_path, monkeypatch):
    """The same, in the place of those on the web; and no weights anywhere else."""
    folder, address = published
    for name, file in (("ALEXNET", "alexnet.pth"), ("LINEAR", "alex.pth")):
        data = (folder / file).read_bytes()
        monkeypatch.setattr(fetch, name, fetch.Source(f"{address}/{file}", hashlib.sha256(data).hexdigest(), len(data)))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "data" / "tessera" / "lpips_alex.npz"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_was_fetched_is_used_everywhere(sources, published, photo, tmp_path):
    photo.crop((0, 0, 64, 64)).save(tmp_path / "a.png")
    before = run("encode", tmp_path / "a.png", "--target-lpips", "0.5")
    assert before.exit_code == 1
    assert "run `tessera models fetch lpips`, or give an .npz" in before.stderr
    said = run("models", "fetch", "lpips", "--json")
    assert said.exit_code == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["status"], told["output"], told["bytes"]) == ("done", str(sources), sources.stat().st_size)
    alexnet = torch.load(published[0] / "alexnet.pth", weights_only=True)
    with np.load(sources) as arrays:
        assert np.array_equal(arrays["features.10.weight"], alexnet["features.10.weight"])
        assert len(arrays.files) == 15
    assert read_weights()["lin4.weight"].shape == (256,)
    after = run("encode", tmp_path / "a.png", "--target-lpips", "0.5", "--json")
    assert after.exit_code == 0, after.stderr
    assert json.loads(after.stdout)["measured"] <= 0.5
    assert [path.name for path in sources.parent.iterdir()] == [sources.name]


def test_what_is_there_is_not_fetched_again(sources, monkeypatch):
    assert run("models", "fetch", "lpips").exit_code == 0
    monkeypatch.setattr(fetch, "ALEXNET", replace(fetch.ALEXNET, url="http://127.0.0.1:9/none"))
    assert run("models", "fetch", "lpips").exit_code == 0
    sources.write_bytes(b"damaged")
    assert run("models", "fetch", "lpips").exit_code == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "0" * 64}, r"has SHA-256 \w{16}, not 0{16}: it was cut or altered on its way, try again"),
        ({"size": 100}, r"has SHA-256 "),
        ({"url": "http://127.0.0.1:9/none"}, r"cannot be fetched \(.*refused.*\): try again, or give the weights as a file"),
        ({"url": "file:///none/alex.pth"}, r"cannot be fetched \(.*No such file"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(sources, monkeypatch, change, said):
    monkeypatch.setattr(fetch, "ALEXNET", replace(fetch.ALEXNET, **change))
    result = run("models", "fetch", "lpips")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert re.search(said, result.stderr), result.stderr
    assert not sources.exists()


def test_files_of_the_web_are_named_in_full():
    for source in (fetch.ALEXNET, fetch.LINEAR):
        assert source.url.startswith("https://")
        assert len(source.sha256) == 64
