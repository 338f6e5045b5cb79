"""`tessera models export` and `tessera models graphs`: graphs compute the same as torch, on canvases of any size."""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from onnx import TensorProto

from bitstream.block_order import BLOCK_CELLS
from bitstream.pyramid_tokens import ANCHOR, NON_ANCHOR, Level, PyramidLayout, complete_prefix
from codec.codec import Codec
from codec.errors import ModelError
from codec.models.base import Model
from codec.models.registry import open_model
from codec.pyramid import tiles
from codec.pyramid.config import NetworkConfig
from codec.pyramid.integer_model import measure_tables
from codec.pyramid.model import as_pyramid, save_pyramid
from codec.pyramid.network import Network
from codec.pyramid.runtime import onnx_export
from codec.pyramid.runtime.torch_backend import TorchBackend
from codec.pyramid.tiles import decode_pixels, encode_pixels
from codec.pyramid.tokenizer import dequantize, pad_to_canvas
from tests.helpers.browser import browser, opened, served
from tests.helpers.commands import run
from tests.helpers.tokens import random_digits
from tests.helpers.viewer import alike, drawn, make_site

CPU = torch.device("cpu")
# A coarse level and a checkerboard.
CONFIG = NetworkConfig(
    levels=(Level(2, 4, 8), Level(16, 4, 4, ANCHOR), Level(16, 4, 4, NON_ANCHOR)),
    steps=(0.25,) * 3, bit_worth=(0.1,) * 3, channels=8, predicted_channels=6, encoder_width8=8, encoder_width16=8,
    encoder_depth=1, decoder_width32=8, decoder_width16=8, decoder_width8=8, decoder_width4=8, decoder_depth16=1,
    decoder_depth32=1, decoder_depth8=1, texture_widths=(8, 8, 8),
    predictor_width=8, prior_width=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(photo, tmp_path_factory) -> Model:
    """A small model with random weights, none of them zero."""
    torch.manual_seed(0)
    network = Network(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2).copy_(parameter.half())
    square = torch.from_numpy(np.array(photo.crop((0, 0, 320, 320))))[None]
    code = measure_tables(network.eval(), square, rounds=1)
    return save_pyramid(tmp_path_factory.mktemp("model") / "small.safetensors", network, code, {})


def run_export(model: Model, folder: Path, *options: str) -> Result:
    return run("models", "export", model.path, "-o", folder, *options)


@pytest.fixture(scope="module")
def graphs(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    result = run_export(model, folder)
    assert result.exit_code == 0, result.stderr
    return folder


def compute(folder: Path, name: str, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {port.name: value for port, value in zip(session.get_inputs(), inputs, strict=True)})


def same(array: np.ndarray, expected: torch.Tensor) -> bool:
    return np.abs(array - expected.numpy()).max() <= 1e-4 * max(1, float(expected.abs().max()))


def test_there_is_a_graph_for_each_step(graphs):
    steps = [f"level-{index}.{step}" for index, step in product(range(3), ("predict", "analyse", "update"))]
    assert {path.name for path in graphs.iterdir()} == {"model.safetensors"} | {
        f"{name}.onnx" for name in (*steps, "encoder", "decoder.features", "decoder.pixels", "decoder.textured")
    }


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 520)])
def test_encoding_computes_the_same_as_torch(graphs, model, photo, width, height):
    pixels = np.asarray(photo.resize((width, height)))
    layout = PyramidLayout(model.config.levels, width, height)
    latents = encode_pixels(TorchBackend(model.network(CPU)), [layout], [pixels])
    rows, columns = (256 * count for count in layout.blocks)
    canvas = np.pad(pixels, ((0, rows - height), (0, columns - width), (0, 0)), "edge").transpose(2, 0, 1)[None]
    assert same(compute(graphs, "encoder", canvas.astype(np.float32) / 127.5 - 1)[0], latents)
    network = model.network(CPU)
    for index, level in enumerate(network.levels):
        with torch.inference_mode():
            assert same(compute(graphs, f"level-{index}.analyse", latents.numpy())[0], level.analyse(latents))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 520)])
def test_decoding_computes_the_same_as_torch(graphs, model, width, height):
    layout = PyramidLayout(model.config.levels, width, height)
    digits = random_digits(model.code, layout, seed=1)
    known = tuple(layout.masks[index] for index in range(len(layout.levels)))
    backend = TorchBackend(model.network(CPU))
    latents, seen = dequantize(backend, [complete_prefix(layout, digits)])
    expected = decode_pixels(backend, [layout], latents, seen)[0]
    rows, columns = (BLOCK_CELLS * count for count in layout.blocks)
    x, k = np.zeros((1, CONFIG.channels, rows, columns), np.float32), np.zeros((1, 1, rows, columns), np.float32)
    for index in range(len(layout.levels)):
        sent, keep = (pad_to_canvas([grid], [layout], index) for grid in (digits[index], known[index][None]))
        x, k = compute(graphs, f"level-{index}.update", x, k, compute(graphs, f"level-{index}.predict", x, k)[0], sent, keep)
    assert same(x, latents)
    assert same(k, seen)
    pixels = compute(graphs, "decoder.pixels", x, compute(graphs, "decoder.features", x, k)[0])[0][0].transpose(1, 2, 0)[
        :height, :width
    ]
    assert len(np.unique(expected)) > 1 or width == 1
    assert np.abs(np.clip(pixels * 127.5 + 127.5, 0, 255) - expected).max() <= 1


@pytest.mark.parametrize("tile", [None, 32, 96])
def test_tiles_decode_to_the_same_pixels(model, tile, monkeypatch):
    """For images with canvases of one size, in small tiles of pixels inside larger ones of features."""
    monkeypatch.setattr(tiles, "PIXEL_TILE", 144)
    network = model.network(CPU)
    layouts = [PyramidLayout(model.config.levels, *size) for size in ((520, 300), (770, 500), (600, 511))]
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(3, CONFIG.channels, 32, 64, generator=random)
    known = (torch.rand(3, 1, 32, 64, generator=random) > 0.5).float()
    with torch.inference_mode():
        untiled = ((network.decoder(latents, known) + 1) * 127.5).clamp(0, 255)
    images = tiles.decode_pixels(TorchBackend(network), layouts, latents, known, tile)
    for layout, image, expected in zip(layouts, images, untiled, strict=True):
        assert image.shape == (layout.height, layout.width, 3)
        assert np.abs(image - expected[:, : layout.height, : layout.width].permute(1, 2, 0).numpy()).max() < 0.51


def test_the_viewer_draws_the_same_as_torch(graphs, model, photo, tmp_path):
    """A model with a checkerboard, in JavaScript."""
    make_site(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "index.json").write_text(json.dumps({model.stream_id.hex(): "small"}))
    (tmp_path / "models" / model.stream_id.hex()).symlink_to(graphs)
    codec = Codec(model=str(model.path), device="cpu")
    data = codec.encode(photo.crop((0, 0, 300, 90)), quality=100).data
    sizes = (len(data) // 2, len(data) * 3 // 4, len(data))
    with browser() as chromium, served(tmp_path) as address, opened(chromium, f"{address}test.html") as page:
        images = drawn(page, data, *sizes)
    for size, image in zip(sizes, images, strict=True):
        assert alike(image, codec.decode(data[:size], allow_partial=True).image)
    assert not np.array_equal(images[0], images[-1])


def test_weights_are_half_floats(graphs):
    for path in graphs.glob("*.onnx"):
        graph = onnx.load(path).graph
        assert sum(weight.data_type == TensorProto.FLOAT16 for weight in graph.initializer) > 0
        assert all(np.prod(weight.dims) <= 4 for weight in graph.initializer if weight.data_type == TensorProto.FLOAT)
        assert b".py" not in path.read_bytes()  # no paths of the machine that wrote it


def test_the_entropy_model_is_exported_as_a_model_without_a_network(graphs, model):
    exported = open_model(graphs / "model.safetensors")
    assert exported.stream_id == model.stream_id
    for level, expected in zip(exported.code.entropy_models, model.code.entropy_models, strict=True):
        assert np.array_equal(level.frequencies, expected.frequencies)
    assert exported.metadata["reach"] == {"encoder": 3, "decoder": 12, "pixels": 4}
    for name, digest in exported.metadata["graphs"].items():
        assert hashlib.sha256((graphs / name).read_bytes()).hexdigest() == digest
    assert len(exported.metadata["graphs"]) == 13


def test_the_decoder_alone(model, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "trace", lambda graph: onnx.load(graphs / f"{graph.name}.onnx"))  # tracing is slow
    result = run_export(model, tmp_path / "graphs", "--decoder-only", "--json")
    assert result.exit_code == 0, result.stderr
    files = list((tmp_path / "graphs").iterdir())
    assert len(files) == 10
    assert not any("encoder" in path.name or "analyse" in path.name for path in files)
    assert json.loads(result.stdout)["bytes"] == sum(path.stat().st_size for path in files)


def test_a_graph_that_computes_other_values_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    result = run_export(model, tmp_path / "graphs")
    assert result.exit_code == 1
    assert "encoder" in result.stderr


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run_export(model, tmp_path / "graphs")
    assert result.exit_code == 1
    assert "onnxruntime" in result.stderr
    assert not (tmp_path / "graphs").exists()


def test_other_families_are_refused():
    with pytest.raises(ModelError, match="titok-l"):
        as_pyramid(SimpleNamespace(path="titok-l.safetensors", kind="tessera-titok-1"))


def test_a_folder_with_something_in_it_is_left_alone(model, tmp_path):
    (tmp_path / "kept").write_text("kept")
    result = run_export(model, tmp_path)
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    result = run_export(model, tmp_path / "kept" / "graphs")
    assert result.exit_code == 1
    assert (tmp_path / "kept").read_text() == "kept"


def test_graph_templates_code_as_torch_does(model, photo, tmp_path):
    """Also for the two levels of a checkerboard, which share graphs."""
    path = tmp_path / "small.safetensors"
    path.write_bytes(model.path.read_bytes())
    result = run("models", "graphs", path, "--json")
    assert result.exit_code == 0, result.stderr
    written = json.loads(result.stdout)
    assert written["output"] == str(tmp_path / "small.graphs.zip")
    assert written["bytes"] == (tmp_path / "small.graphs.zip").stat().st_size < 50_000
    both = [Codec(str(path), "cpu", runtime=runtime) for runtime in ("onnx", "torch")]
    image = photo.resize((300, 270))
    sequences = [codec.tokenize([image])[0] for codec in both]
    digits = [np.concatenate([level.ravel() for level in sequence.symbols]) for sequence in sequences]
    assert np.any(digits[0])
    assert (digits[0] != digits[1]).sum() <= 2
    data = both[1].encode(image, tokens=20).data
    for options in ({}, {"detail": 0.0}, {"detail": 0.4, "seed": 9}):
        drawn = [np.asarray(codec.decode(data, **options).image).astype(int) for codec in both]
        assert np.abs(drawn[0] - drawn[1]).max() <= 1
