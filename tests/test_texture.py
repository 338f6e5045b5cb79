"""Texture: detail from noise, on top of the decoded image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitstream.block_order import CELL
from codec.codec import Codec
from codec.errors import UsageError
from codec.pyramid.integer_model import measure_tables
from codec.pyramid.model import PyramidModel, save_pyramid
from codec.pyramid.network import Network
from codec.pyramid.noise import SCALES, texture_noise
from codec.pyramid.training import DECODER, TEXTURE, PyramidTrainer, PyramidTraining, karhunen_loeve
from tests.helpers.commands import run
from tests.helpers.networks import CPU, TINY

LEVELS = 5
TEXTURED = replace(
    TINY, levels=TINY.levels[:LEVELS], steps=TINY.steps[:LEVELS], bit_worth=TINY.bit_worth[:LEVELS], texture_widths=(8, 8, 8)
)


@pytest.fixture(scope="module")
def squares(photo) -> torch.Tensor:
    return torch.from_numpy(np.array(photo.crop((0, 0, 320, 320)))[None])


def write_model(path, squares, config=TEXTURED) -> PyramidModel:
    """A KLT codec whose decoder, and texture if it has any, are random."""
    torch.manual_seed(0)
    network = Network(config)
    network.start_from_klt(*karhunen_loeve(squares, config.channels, np.random.default_rng(0), crops=8))
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    network = network.half().float().eval()
    return save_pyramid(path, network, measure_tables(network, squares, rounds=1), {})


@pytest.fixture(scope="module")
def model(tmp_path_factory, squares) -> PyramidModel:
    return write_model(tmp_path_factory.mktemp("texture") / "textured.safetensors", squares)


@pytest.fixture(scope="module")
def data(model, photo) -> bytes:
    return Codec(str(model.path), device="cpu").encode(photo, quality=20).data


def decoded(model, data, tile=None, **options) -> np.ndarray:
    with Codec(str(model.path), device="cpu", tile=tile) as codec:
        return np.asarray(codec.decode(data, **options).image).astype(int)


def test_noise_is_a_hash_of_the_position():
    """The arithmetic, in plain integers."""

    def mixed(state: int, index: int) -> int:
        x = (state + index * 0x9E3779B9) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    noise = texture_noise(7, slice(2, 4), slice(0, 3))
    for index, scale in enumerate((*SCALES, 2)):
        row, column = 2 * CELL // scale + 1, 5
        word = mixed(mixed(mixed(7, index), row), column).to_bytes(4, "little")
        found = noise[index][0]
        if index < len(SCALES):
            assert bytes(found[:, 1, column]) == word
        else:  # the bytes of a word are a square of 2x2 pixels
            assert bytes(found[0, 2:4, 2 * column : 2 * column + 2].ravel()) == word


def test_noise_looks_random():
    for noise in texture_noise(0, slice(0, 16), slice(0, 16)):
        counts = np.bincount(noise.ravel(), minlength=256)
        assert abs(noise.mean() - 127.5) < 4
        assert counts.min() > 0
        values = noise[0].astype(float) - noise.mean()
        spectrum = np.abs(np.fft.fft2(values)) ** 2
        assert spectrum.max() < 30 * spectrum.mean()  # no frequency stands out


def test_detail_scales_the_texture(model, data):
    plain, half, full = (decoded(model, data, detail=detail) for detail in (0.0, 0.5, 1.0))
    inside = (full > 0) & (full < 255) & (plain > 0) & (plain < 255)  # not clipped
    assert np.abs(full - plain)[inside].max() > 8
    assert np.abs(2 * half - plain - full)[inside].max() <= 2
    assert np.array_equal(decoded(model, data), full)  # the model's default


def test_seeds_change_the_texture_alone(model, data):
    first, again, other = (decoded(model, data, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(decoded(model, data, detail=0.0, seed=0), decoded(model, data, detail=0.0, seed=1))


def test_tiles_have_no_seams(model, data):
    difference = decoded(model, data) - decoded(model, data, tile=160)
    assert np.abs(difference).max() <= 1


def test_the_receptive_field_is_not_larger_than_stated(model):
    decoder = model.network("cpu").decoder
    cells, middle = 16, 8
    noise = [torch.from_numpy(noise) for noise in texture_noise(0, slice(0, cells), slice(0, cells))]
    inputs = [torch.randn(1, channels, cells, cells) for channels in (TEXTURED.channels, TEXTURED.decoder_width16)]
    before = decoder.textured(*inputs, 1.0, *noise)
    for array in inputs:
        array[:, :, middle, middle] += 10
    changed = (decoder.textured(*inputs, 1.0, *noise) != before).any(1)[0].nonzero() // CELL
    assert int((changed - middle).abs().max()) <= TEXTURED.pixel_radius


def test_models_without_texture_refuse_the_option(squares, photo, tmp_path):
    plain = write_model(tmp_path / "plain.safetensors", squares, replace(TEXTURED, texture_widths=()))
    with Codec(str(plain.path), device="cpu") as codec:
        data = codec.encode(photo, target_size=500).data
        for options in ({"detail": 0.5}, {"seed": 1}):
            with pytest.raises(UsageError):
                codec.decode(data, **options)


def test_the_command_takes_detail_and_seed(model, data, tmp_path):
    source = tmp_path / "a.tsr"
    source.write_bytes(data)
    outputs = []
    for name, options in (("a", ()), ("b", ("--detail", "0")), ("c", ("--seed", "3"))):
        output = tmp_path / f"{name}.png"
        outcome = run("decode", source, "-o", output, "--model", model.path, "--device", "cpu", *options)
        assert outcome.exit_code == 0, outcome.output
        outputs.append(output.read_bytes())
    assert len(set(outputs)) == len(outputs)
    assert run("decode", source, "-o", tmp_path / "d.png", "--model", model.path, "--detail", "1.5").exit_code == 2


def trained(part: str, model: PyramidModel, squares: torch.Tensor, **recipe) -> PyramidTrainer:
    config = PyramidTraining(part=part, steps=3, batch=2, **recipe)
    trainer = PyramidTrainer.from_model(str(model.path), config, CPU)
    for _ in range(3):
        trainer.train_step(squares, None)
    return trainer


@pytest.mark.parametrize("part", [DECODER, TEXTURE])
def test_training_a_part_changes_nothing_else(part, model, squares, tmp_path):
    trainer = trained(part, model, squares)
    before = model.network("cpu").state_dict()
    for name, weight in trainer.network.state_dict().items():
        own = TEXTURE if name.startswith("decoder.texture.") else DECODER if name.startswith("decoder.") else None
        if own == part and weight.is_floating_point():
            assert not torch.equal(weight, before[name]), name
        elif "decoder.linear" not in name:  # projected after each step
            assert torch.equal(weight, before[name]), name
    written = trainer.write_model(tmp_path / "part.safetensors", squares, {})
    assert written.fingerprint == model.fingerprint


def test_texture_can_be_added_to_a_model(squares, tmp_path):
    plain = write_model(tmp_path / "plain.safetensors", squares, replace(TEXTURED, texture_widths=()))
    network = plain.network("cpu")
    network.levels[0].expand.bias.data[0] = -0.0  # its sign is part of the stream id
    plain = save_pyramid(tmp_path / "plain.safetensors", network, plain.code, {})
    trainer = trained(TEXTURE, plain, squares)
    written = trainer.write_model(tmp_path / "added.safetensors", squares, {})
    assert written.fingerprint == plain.fingerprint
    assert written.decode_options
    assert not plain.decode_options


def test_a_part_needs_a_model_to_start_from(squares):
    with pytest.raises(UsageError):
        PyramidTrainer.from_scratch(squares, PyramidTraining(part=TEXTURE), CPU)
    with pytest.raises(UsageError):
        PyramidTraining(part="nothing")
