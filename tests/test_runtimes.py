"""ONNX Runtime and torch give the same images and tokens, up to the rounding of floats."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.codec import Codec
from codec.errors import ModelError, UsageError
from codec.models.registry import open_model
from codec.pyramid import network
from codec.pyramid.runtime.graph_templates import GraphTemplates, graph_shape, graph_templates_path, read_graph_templates
from codec.pyramid.runtime.onnx_backend import OnnxBackend
from codec.system import device as devices
from codec.system.device import pick_device, pick_runtime
from tests.helpers import PHOTO, ROOT

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def both() -> tuple[Codec, Codec]:
    return Codec(device="cpu", runtime="onnx"), Codec(device="cpu", runtime="torch")


def digits(sequence) -> np.ndarray:
    return np.concatenate([level.ravel() for level in sequence.first(sequence.layout.tokens).digits])


def test_the_same_file_gives_the_same_image(both):
    for path in sorted(GOLDEN.glob("*.tsr")):
        drawn = [np.asarray(codec.decode(path).image).astype(int) for codec in both]
        assert drawn[0].shape == drawn[1].shape
        assert np.abs(drawn[0] - drawn[1]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (600, 400), (257, 513)])
def test_the_same_image_gives_the_same_tokens(both, photo, size):
    symbols = [digits(codec.tokenize([photo.resize(size)])[0]) for codec in both]
    assert np.any(symbols[0])
    assert (symbols[0] != symbols[1]).sum() <= 1 + 1e-4 * symbols[0].size


@pytest.mark.parametrize("budget", [40, 600, 4000])
def test_budgets_are_exact_in_both(both, photo, budget):
    sizes = [len(codec.encode(photo, target_size=budget).data) for codec in both]
    assert all(budget - 40 < size <= budget for size in sizes)


def test_rounding_is_the_same_digit_for_digit():
    backend = OnnxBackend(open_model().config, {}, GraphTemplates({}, {}))
    rng = np.random.default_rng(0)
    raw = rng.laplace(0, 1.2, (16, 64, 64)).astype(np.float32)
    raw[0, 0, :6] = (0.5, -0.5, 1.5, -2.5, 0.0, 99.0)  # ties, and a digit past the limit
    bits = rng.random((64, 9)).astype(np.float32).cumsum(1)
    contexts = rng.integers(0, 64, raw.shape).astype(np.uint8)
    for rdo_lambda in (0.08, 0.12, 1.0):
        chosen = backend.choose(raw, contexts, bits, 8, rdo_lambda)
        tensors = torch.from_numpy(raw), torch.from_numpy(contexts).long(), torch.from_numpy(bits)
        assert np.array_equal(chosen, network.choose_digits(*tensors, 8, rdo_lambda).to(torch.int8).numpy())
        assert len(np.unique(chosen)) == 17


def test_graph_templates_have_no_weights_and_take_those_of_the_model():
    model = open_model()
    templates = read_graph_templates(graph_templates_path(model.path), model.config)
    taken = {name for graph in ("encoder", "decoder.features", "decoder.textured") for name in templates.weight_names[graph]}
    for index, level in enumerate(model.config.levels):
        for graph in ("predict", f"analyse-{level.side}-{level.digits}", f"update-{level.side}-{level.digits}"):
            taken |= {f"levels.{index}.{name}" for name in templates.weight_names[graph]}
    with model.arrays() as file:
        stored = {name for name in file.keys() if not name.startswith("prior.") and ".prior." not in name}  # noqa: SIM118
    assert taken == stored  # the float entropy model is for training alone
    assert graph_templates_path(model.path).stat().st_size < 100_000


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_graph_templates_unpack_to_a_limit(tmp_path, packing):
    """Large entries, small entries that state a large size, many large entries, and an entry that unpacks to more than it
    states."""
    path, config = tmp_path / "bomb.graphs.zip", open_model().config
    names = ("index.json", "predict.onnx", "encoder.onnx")
    index = json.dumps({"network": graph_shape(config), "weights": {"predict": [], "encoder": []}}).encode()
    size = 40_000_000
    for contents, stated in (
        ((index + b" " * size, b"", b""), size + len(index)),
        ((index, bytes(size), b""), size),
        ((index, bytes(size), b""), 1000),
        ((index, bytes(9_000_000), bytes(9_000_000)), 9_000_000),
    ):
        with zipfile.ZipFile(path, "w", packing) as file:
            for name, content in zip(names, contents, strict=True):
                file.writestr(name, content)
        largest = max(map(len, contents)).to_bytes(4, "little")
        path.write_bytes(path.read_bytes().replace(largest, stated.to_bytes(4, "little")))
        tracemalloc.start()
        with pytest.raises(ModelError):
            read_graph_templates(path, config)
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
        tracemalloc.stop()


def test_threads_share_a_codec(both, photo):
    images = [photo.resize((side, side)) for side in (40, 90, 256, 300)]
    shared = Codec(device="cpu", runtime="onnx")  # no session is open yet
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda image: shared.encode(image).data, images))
    assert files == [both[0].encode(image).data for image in images]


def test_the_runtime_depends_on_the_device_and_the_model(monkeypatch):
    every, one = ("onnx", "torch"), ("torch",)
    assert pick_runtime("auto", "cpu", every, "") == "onnx"
    assert pick_runtime("auto", "cuda", every, "") == "torch"
    assert pick_runtime("auto", "cpu", one, "") == "torch"
    assert pick_runtime("torch", "cpu", every, "") == "torch"
    for device, supported in (("cuda:1", every), ("cpu", one)):
        with pytest.raises(UsageError, match="the reason" if supported == one else device) as caught:
            pick_runtime("onnx", device, supported, "the reason")
        assert caught.value.advice == ("runtime",)
    with pytest.raises(UsageError, match="jax"):
        Codec(runtime="jax")


def test_without_a_driver_auto_does_not_ask_torch(monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu_driver", lambda: False)
    monkeypatch.setattr(devices, "_count_cuda_devices", lambda: pytest.fail("torch was asked"))
    assert pick_device() == "cpu"
    monkeypatch.setattr(devices, "_has_gpu_driver", lambda: True)
    monkeypatch.setattr(devices, "_count_cuda_devices", lambda: 1)
    assert pick_device() == "cuda"


def test_refinement_uses_torch(photo):
    small = photo.resize((90, 60))
    auto, forced = Codec(device="cpu"), Codec(device="cpu", runtime="torch")
    assert auto.encode(small, effort=4, tokens=200).data == forced.encode(small, effort=4, tokens=200).data


def test_coding_on_a_processor_does_not_import_torch():
    code = (
        "import sys, codec; c = codec.Codec(device=sys.argv[1]); c.decode(c.encode(sys.argv[2], tokens=9).data); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code, "cpu", str(PHOTO)], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
