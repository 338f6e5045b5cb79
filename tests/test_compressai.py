"""The codecs of compressai's zoo in the benchmark."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch.hub

from benchmarks import BenchError
from benchmarks.codecs.compressai import HEADER, ZOO, CompressaiCodec, from_hub, pack, unpack, weights_in
from benchmarks.codecs.registry import COMPRESSAI_NAMES, BenchCodecOptions, open_codec
from codec.errors import FormatError, ImageError

FACTORIZED, HYPERPRIOR = COMPRESSAI_NAMES[:2]
DOWNLOAD = torch.hub.download_url_to_file  # before a fixture replaces it


def learned(test):
    """Marks a test that needs compressai."""
    installed = pytest.mark.skipif(find_spec("compressai") is None, reason="compressai is not installed")
    return pytest.mark.learned(installed(test))


def test_the_zoo_has_the_codecs_that_a_benchmark_names():
    assert tuple(ZOO) == COMPRESSAI_NAMES
    assert [len(zoo.qualities) for zoo in ZOO.values()] == [8, 8, 8, 6]


@pytest.mark.parametrize("name", COMPRESSAI_NAMES)
@pytest.mark.parametrize("lengths", [(1, 1), (127, 3), (128, 9), (20_000, 40)])
def test_files_have_a_minimal_header_and_unpack_reverses_pack(name, lengths):
    strings = [bytes(range(1, 2)) * length for length in lengths[-ZOO[name].strings :]]
    data = pack(name, 5, 101, 65535, strings)
    assert unpack(name, data) == (5, 101, 65535, strings)
    extra = 0 if len(strings) == 1 else 1 + (lengths[0] > 127) + (lengths[0] > 16_383)
    assert len(data) == 5 + extra + sum(map(len, strings))


def test_headers_are_as_documented():
    assert pack(HYPERPRIOR, 3, 0x102, 0x304, [b"abc", b"d"]) == b"\x13\x01\x02\x03\x04\x03abcd"
    assert pack(FACTORIZED, 8, 1, 2, [b"abc"]) == b"\x08\x00\x01\x00\x02abc"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x13\0\1\0\1",  # no string
        b"\x03\0\1\0\1\1ab",  # of another codec
        b"\x13\0\0\0\1\1ab",  # no width
        b"\x13\0\1\0\0\1ab",  # no height
        b"\x10\0\1\0\1\1ab",  # quality 0
        b"\x19\0\1\0\1\1ab",  # quality 9
        b"\x13\0\1\0\1\2ab",  # nothing after the first string
        b"\x13\0\1\0\1\xff\xff\xff\xff\xff",  # endless length
    ],
)
def test_damaged_headers_are_refused(data):
    with pytest.raises(FormatError):
        CompressaiCodec(HYPERPRIOR).decode(data)


def test_images_that_are_too_large_are_refused():
    with pytest.raises(ImageError):
        pack("mbt2018-mean", 1, 65536, 1, [b"a", b"b"])
    with pytest.raises(ImageError):
        unpack(FACTORIZED, pack(FACTORIZED, 1, 60000, 60000, [b"a"]))


def test_weights_are_found_by_either_name(tmp_path):
    for file in (
        "bmshj2018-factorized-2.pth.tar",
        "bmshj2018-factorized-prior-2-87279a02.pth.tar",
        "bmshj2018-factorized-prior-3-5c6f152b.pth.tar",
        "bmshj2018-factorized-ms-ssim-4-4f91b847.pth.tar",
        "bmshj2018-factorized-9.pth.tar",
        "cheng2020_attn-mse-6-730501f2.pth.tar",
    ):
        (tmp_path / file).write_bytes(b"")
    found = weights_in(tmp_path, FACTORIZED)
    assert {quality: path.name for quality, path in found.items()} == {
        2: "bmshj2018-factorized-2.pth.tar",
        3: "bmshj2018-factorized-prior-3-5c6f152b.pth.tar",
    }
    assert CompressaiCodec(FACTORIZED, tmp_path).settings == (2, 3)
    assert list(weights_in(tmp_path, "cheng2020-attn")) == [6]
    assert CompressaiCodec("cheng2020-attn").settings == (1, 2, 3, 4, 5, 6)


def test_missing_packages_and_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.codecs.compressai.find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install '\.\[bench\]'"):
        open_codec(FACTORIZED, BenchCodecOptions())
    monkeypatch.setattr("benchmarks.codecs.compressai.find_spec", lambda name: object())
    with pytest.raises(BenchError, match=r"mbt2018-mean-1.pth.tar"):
        open_codec("mbt2018-mean", BenchCodecOptions(compressai_weights=str(tmp_path / "none")))
    (tmp_path / "mbt2018-mean-4.pth.tar").write_bytes(b"")
    with pytest.raises(BenchError, match="quality 2"):
        CompressaiCodec("mbt2018-mean", tmp_path).encode(np.zeros((8, 8, 3), np.uint8), 2)


def test_a_refused_download_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("benchmarks.codecs.compressai.HUB", "http://127.0.0.1:9/v1")  # a port without a server
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(BenchError, match=r"http.*-2-87279a02\.pth\.tar .* --compressai-weights"):
        from_hub(FACTORIZED, 2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Hub(http.server.BaseHTTPRequestHandler):
    """A server on which every file is 'abc'."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_is_kept_if_its_digest_is_correct(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "download_url_to_file", DOWNLOAD)  # instead of the refusal of the fixture
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr("benchmarks.codecs.compressai.HUB", f"http://127.0.0.1:{hub.server_port}")
        try:
            with pytest.raises(BenchError):
                from_hub(FACTORIZED, 1)
            monkeypatch.setitem(ZOO, FACTORIZED, replace(ZOO[FACTORIZED], digests=("ba7816bf",)))  # of abc
            path = from_hub(FACTORIZED, 1)
        finally:
            hub.shutdown()
    assert path.read_bytes() == b"abc"
    assert from_hub(FACTORIZED, 1) == path  # from the cache: the server has ended
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


# The tests below need compressai. Weights are random and small, and scaled so that there is something to code. Results are
# compared with those of compressai called directly, in another process.
MAKE = """
import sys
import numpy as np, torch
import torch.nn.functional as F
from compressai.zoo.image import model_architectures, model_urls

folder = sys.argv[1]
sizes = {"bmshj2018-factorized": (8, 12), "bmshj2018-hyperprior": (8, 12), "mbt2018-mean": (8, 12), "cheng2020-attn": (8,)}
x = torch.from_numpy(np.load(folder + "/x.npy")).permute(2, 0, 1)[None].float() / 255
x = F.pad(x, (0, -x.shape[3] % 64, 0, -x.shape[2] % 64), mode="replicate")
for place, (name, arguments) in enumerate(sizes.items()):
    torch.manual_seed(place)
    network = model_architectures[name](*arguments).eval()
    last = [layer for layer in network.g_a if hasattr(layer, "weight") and layer.weight.ndim == 4][-1]
    last.weight.data *= 30
    plain = network.state_dict()
    network.update()
    state = network.state_dict()
    torch.save(state if place % 2 else {"state_dict": state}, f"{folder}/{name}-1.pth.tar")
    if place < 2:
        torch.save(plain, f"{folder}/{name}-2.pth.tar")  # without the coder's tables
    with torch.inference_mode():
        made = network.compress(x)
        decoded = network.decompress(**made)["x_hat"]
    strings = [np.frombuffer(string, np.uint8) for (string,) in made["strings"]]
    np.savez(f"{folder}/{name}.npz", *strings, x=(decoded[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
hub = {f"{name} {quality}": url for name in sizes for quality, url in model_urls[name]["mse"].items()}
open(folder + "/hub.txt", "w").write("\\n".join(f"{key} {url}" for key, url in hub.items()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photo) -> Path:
    path = tmp_path_factory.mktemp("weights")
    np.save(path / "x.npy", np.asarray(photo.crop((300, 150, 401, 220))))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE, str(path)], check=True, env=environment)
    return path


@pytest.fixture(scope="module")
def pixels(folder) -> np.ndarray:
    return np.load(folder / "x.npy")


@pytest.fixture(scope="module")
def factorized(folder):
    codec = CompressaiCodec(FACTORIZED, folder)
    yield codec
    codec.close()


@learned
@pytest.mark.parametrize("name", COMPRESSAI_NAMES)
def test_results_are_those_of_compressai(folder, pixels, name):
    codec = open_codec(name, BenchCodecOptions(compressai_weights=str(folder)))
    data = codec.encode(pixels, 1)
    assert codec.encode(pixels, 1) == data
    with np.load(folder / f"{name}.npz") as expected:
        strings = [expected[f"arr_{index}"].tobytes() for index in range(ZOO[name].strings)]
        assert unpack(name, data) == (1, 101, 70, strings)
        decoded = codec.decode(data)
        assert decoded.dtype == np.uint8
        assert decoded.shape == (70, 101, 3)
        assert np.array_equal(decoded, expected["x"][:70, :101])
        assert decoded.std() > 0
    codec.close()
    assert "compressai" not in sys.modules


@learned
@pytest.mark.parametrize("size", [(1, 1), (1, 130), (64, 128), (65, 63)])
def test_images_of_any_size_keep_their_size(factorized, pixels, size):
    small = np.resize(pixels, (*size, 3))
    assert factorized.decode(factorized.encode(small, 1)).shape == (*size, 3)


@learned
def test_tables_are_computed_if_the_weights_have_none(factorized, pixels):
    assert factorized.settings == (1, 2)
    assert factorized.encode(pixels, 2)[HEADER:] == factorized.encode(pixels, 1)[HEADER:]


@learned
def test_a_budget_is_met(factorized, pixels):
    size = len(factorized.encode(pixels, 1))
    file, none = factorized.fit(pixels, [size, size - 1])
    assert len(file.data) == size
    assert none is None


@learned
def test_the_description_changes_with_the_weights(factorized, folder, tmp_path):
    (tmp_path / "bmshj2018-factorized-1.pth.tar").write_bytes((folder / "bmshj2018-factorized-1.pth.tar").read_bytes())
    other = CompressaiCodec(FACTORIZED, tmp_path)
    assert factorized.description != other.description
    assert "compressai 1." in other.description
    assert "compressai's own weights" in CompressaiCodec(FACTORIZED).description


@learned
def test_a_crash_is_an_error_of_one_call(factorized, pixels):
    data = factorized.encode(pixels, 1)
    with pytest.raises(BenchError, match="crashed"):
        factorized._run(crash, 1)
    assert factorized.encode(pixels, 1) == data


def crash(name: str, path: Path) -> None:
    os.abort()


@learned
def test_damaged_strings_do_no_harm(factorized, pixels):
    """compressai's decoder reads past the end of its string: it returns arbitrary pixels or crashes."""
    data = factorized.encode(pixels, 1)
    huge = pack(FACTORIZED, 1, 4000, 4000, [b"\xff" * 8])
    for damaged in (huge, data[: HEADER + 4], data[:HEADER] + b"\xff" * 9):
        try:
            assert factorized.decode(damaged).shape[2] == 3
        except BenchError as error:
            assert "crashed" in str(error) or "failed with" in str(error)
    assert factorized.encode(pixels, 1) == data


@learned
@pytest.mark.parametrize("content", [b"no weights", b""])
def test_files_that_are_not_weights_are_refused_by_name(tmp_path, content):
    (tmp_path / "mbt2018-mean-1.pth.tar").write_bytes(content)
    with pytest.raises(BenchError, match=r"mbt2018-mean-1\.pth\.tar"):
        open_codec("mbt2018-mean", BenchCodecOptions(compressai_weights=str(tmp_path)))


@learned
def test_weights_of_another_codec_are_refused(tmp_path, folder):
    (tmp_path / "cheng2020-attn-1.pth.tar").write_bytes((folder / "mbt2018-mean-1.pth.tar").read_bytes())
    with pytest.raises(BenchError, match=r"cheng2020-attn-1\.pth\.tar"):
        open_codec("cheng2020-attn", BenchCodecOptions(compressai_weights=str(tmp_path)))


@learned
def test_names_of_files_at_the_hub_are_those_of_compressai(folder):
    from benchmarks.codecs.compressai import HUB

    ours = [f"{name} {q} {HUB}/{zoo.hub_name(q)}" for name, zoo in ZOO.items() for q in zoo.qualities]
    assert (folder / "hub.txt").read_text().splitlines() == ours
