"""ONNX Runtime and torch: the same images and tokens, but for the last bit of a float."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PHOTO, ROOT

from codec.codec import Codec
from codec.errors import UsageError
from codec.models.registry import open_model
from codec.parallel.pipeline import Limits, encode_all
from codec.pyramid import network, rounding
from codec.pyramid.runtime.graph_templates import graph_templates_path, read_graph_templates
from codec.system import device as devices
from codec.system.device import pick_device, pick_runtime

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def both() -> tuple[Codec, Codec]:
    return Codec(device="cpu", runtime="onnx"), Codec(device="cpu", runtime="torch")


def digits(sequence) -> np.ndarray:
    return np.concatenate([level.ravel() for level in sequence.first(sequence.layout.tokens).digits])


def test_the_same_file_gives_the_same_image(both):
    for path in sorted(GOLDEN.glob("*.tsr")):
        drawn = [np.asarray(codec.decode(path)).astype(int) for codec in both]
        assert drawn[0].shape == drawn[1].shape
        assert np.abs(drawn[0] - drawn[1]).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (600, 400), (257, 513)])
def test_the_same_image_gives_the_same_tokens(both, photo, size):
    made = [digits(codec.sequence(photo.resize(size))) for codec in both]
    assert np.any(made[0])
    assert (made[0] != made[1]).sum() <= 1 + 1e-4 * made[0].size


@pytest.mark.parametrize("budget", [40, 600, 4000])
def test_budgets_are_exact_in_both(both, photo, budget):
    sizes = [len(codec.encode(photo, target_size=budget)) for codec in both]
    assert all(budget - 40 < size <= budget for size in sizes)


def test_rounding_is_the_same_digit_for_digit():
    rng = np.random.default_rng(0)
    raw = rng.laplace(0, 1.2, (16, 64, 64)).astype(np.float32)
    raw[0, 0, :6] = (0.5, -0.5, 1.5, -2.5, 0.0, 99.0)  # halves, and what is past the limit
    bits = rng.random((64, 9)).astype(np.float32).cumsum(1)
    classes = rng.integers(0, 64, raw.shape).astype(np.uint8)
    for worth in (0.08, 0.12, 1.0):
        mine = rounding.choose_digits(raw, classes, bits, 8, worth)
        under = torch.from_numpy(classes).long()
        theirs = network.choose_digits(torch.from_numpy(raw), under, torch.from_numpy(bits), 8, worth)
        assert np.array_equal(mine, theirs.to(torch.int8).numpy())
        assert len(np.unique(mine)) == 17


def test_graphs_have_no_weights_and_take_those_of_the_model():
    model = open_model()
    skeletons = read_graph_templates(graph_templates_path(model.path), model.config)
    taken = {name for graph in ("encoder", "decoder.features", "decoder.pixels") for name in skeletons.weights[graph]}
    for index, level in enumerate(model.config.levels):
        for graph in ("predict", f"analyse-{level.side}-{level.digits}", f"update-{level.side}-{level.digits}"):
            taken |= {f"levels.{index}.{name}" for name in skeletons.weights[graph]}
    with model.arrays() as file:
        stored = {name for name in file.keys() if not name.startswith("prior.") and ".prior." not in name}  # noqa: SIM118
    assert taken == stored  # the float prior is for training alone
    assert graph_templates_path(model.path).stat().st_size < 100_000


def test_many_at_once_are_as_each_alone(both, photo):
    images = {str(side): photo.resize((side, side)) for side in (40, 90, 256, 300)}

    def load(name: str) -> bytes:
        import io

        stream = io.BytesIO()
        images[name].save(stream, "PNG")
        return stream.getvalue()

    made: dict[str, bytes] = {}
    codec = Codec(device="cpu", runtime="onnx")
    outcomes = list(
        encode_all(list(images), lambda: codec, load, lambda name, file: made.update({name: file.data}), limits=Limits(2))
    )
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert made == {name: both[0].encode(image) for name, image in images.items()}


def test_the_runtime_is_picked_by_device_and_what_a_model_offers(monkeypatch):
    every, one = ("onnx", "torch"), ("torch",)
    assert pick_runtime("auto", "cpu", every, "") == "onnx"
    assert pick_runtime("auto", "cuda", every, "") == "torch"
    assert pick_runtime("auto", "cpu", one, "") == "torch"
    assert pick_runtime("torch", "cpu", every, "") == "torch"
    with pytest.raises(UsageError, match="ONNX Runtime computes on the processor here, not on cuda:1"):
        pick_runtime("onnx", "cuda:1", every, "")
    with pytest.raises(UsageError, match="runtime onnx cannot do it: it has no graphs"):
        pick_runtime("onnx", "cpu", one, "it has no graphs")
    with pytest.raises(UsageError, match="unknown runtime 'jax': use auto, onnx, torch"):
        Codec(runtime="jax")


def test_without_a_driver_auto_does_not_ask_torch(monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu_driver", lambda: False)
    monkeypatch.setattr(devices, "_cuda_devices", lambda: pytest.fail("torch was asked"))
    assert pick_device() == "cpu"
    monkeypatch.setattr(devices, "_has_gpu_driver", lambda: True)
    monkeypatch.setattr(devices, "_cuda_devices", lambda: 1)
    assert pick_device() == "cuda"


def test_effort_is_torch_s_work(photo):
    small = photo.resize((90, 60))
    auto, forced = Codec(device="cpu"), Codec(device="cpu", runtime="torch")
    assert auto.encode(small, effort=4, tokens=200) == forced.encode(small, effort=4, tokens=200)


def test_coding_on_a_processor_does_not_import_torch():
    code = (
        "import sys, codec; c = codec.Codec(device=sys.argv[1]); c.decode(c.encode(sys.argv[2], tokens=9)); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "cpu", str(PHOTO)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
