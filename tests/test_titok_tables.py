"""Coding tables measured on photos: cheaper than uniform ones if indices are uneven, and every index can be coded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bitstream.codebook_tokens import complete_prefix, uniform_code
from bitstream.range_coder import encode_tokens
from codec.errors import ImageError
from codec.models.coding_tables import CLASSES, classes_of, measure_code
from codec.titok.config import TitokConfig
from codec.titok.model import TitokModel
from codec.titok.network import Titok

VALUES = 64
CODEBOOK = np.random.default_rng(5).normal(size=(VALUES, 12)).astype(np.float32)


def uniform(rng, blocks, positions):
    return rng.integers(0, VALUES, (blocks, positions)).astype(np.int32)


def uneven(rng, blocks, positions):
    """Each position prefers other indices."""
    steps = rng.geometric(0.2, (blocks, positions)) - 1
    return ((np.arange(positions) * 11 + steps) % VALUES).astype(np.int32)


def chained(rng, blocks, positions):
    """From the second position on, the class of the previous index chooses one of CLASSES ranges."""
    indices = uniform(rng, blocks, positions)
    for position in range(1, positions):
        start = classes_of(CODEBOOK)[indices[:, position - 1]].astype(np.int32) * (VALUES // CLASSES)
        indices[:, position] = (start + rng.integers(0, VALUES // CLASSES, blocks)) % VALUES
    return indices


def sequence_of(code, indices):
    return code.sequence(complete_prefix(code.layout(code.side * indices.shape[2], code.side * indices.shape[1]), indices))


def cost(code, indices) -> float:
    """Bits per token of blocks (blocks, N)."""
    return float(sequence_of(code, indices.T[:, :, None]).bits().mean())


def measured(indices):
    """The measurement of blocks of a photo each."""
    return measure_code(uniform_code(6, VALUES), indices, np.arange(len(indices)), CODEBOOK)


def test_blocks_of_one_photo_are_never_both_counted_and_held_out():
    """Four equal blocks of each photo, as if they overlapped whole: they say nothing about other photos."""
    rng = np.random.default_rng(0)
    blocks, photos = np.repeat(uniform(rng, 500, 6), 4, 0), np.repeat(np.arange(500), 4)
    measurement = measure_code(uniform_code(6, VALUES), blocks, photos, CODEBOOK)
    bits = cost(measurement.code, uniform(rng, 2000, 6))
    assert abs(measurement.bits - bits) < 0.1
    assert measurement.bits > 5.95  # of 6, those of uniform indices
    with pytest.raises(ImageError):
        measure_code(uniform_code(6, VALUES), blocks, np.zeros(len(blocks), np.int64), CODEBOOK)


@pytest.mark.parametrize(
    ("source", "max_bits", "conditioned"),
    [(uniform, 6.15, range(0, 2)), (uneven, 4.2, range(0, 3)), (chained, 4.0, range(5, 6))],
)
def test_the_measured_cost_is_that_of_new_blocks(source, max_bits, conditioned):
    rng = np.random.default_rng(0)
    measurement = measured(source(rng, 2000, 6))
    bits = cost(measurement.code, source(rng, 2000, 6))
    assert bits < max_bits
    assert abs(bits - measurement.bits) < 0.1
    assert measurement.conditioned in conditioned


def test_tables_of_few_blocks_are_close_to_uniform():
    rng = np.random.default_rng(1)
    measurement = measured(uniform(rng, 5, 6))
    assert cost(measurement.code, uniform(rng, 500, 6)) < 6.4


@pytest.mark.parametrize("source", [uneven, chained])
def test_indices_that_were_never_counted_can_be_coded(source):
    rng = np.random.default_rng(2)
    code = measured(source(rng, 300, 6) // 2).code
    indices = np.full((6, 2, 2), VALUES - 1, np.int32)
    payload = encode_tokens(sequence_of(code, indices), indices.size)
    assert np.array_equal(code.decode(code.layout(512, 512), payload, indices.size).indices, indices)


def test_classes_divide_the_codebook():
    sizes = np.bincount(classes_of(CODEBOOK), minlength=CLASSES)
    assert len(sizes) == CLASSES
    assert sizes.min() > 0
    assert np.array_equal(classes_of(CODEBOOK), classes_of(CODEBOOK * np.linspace(1, 9, VALUES, dtype=np.float32)[:, None]))


def test_too_few_blocks_are_refused():
    with pytest.raises(ImageError):
        measured(np.zeros((3, 6), np.int32))


def test_calibration_replaces_the_tables_alone(tmp_path):
    """A random network uses few of its indices, so tables save much."""
    torch.manual_seed(4)
    config = TitokConfig(6, True, 16, 1, 2, side=32, codebook=VALUES, pixel_codebook=20, pixel_code=8, pixel_width=32)
    weights = {name: value.half().numpy() for name, value in Titok(config).state_dict().items()}
    before = TitokModel.save(tmp_path / "m.safetensors", config, weights, uniform_code(6, VALUES, 32), {"source": "x"})
    images = [np.random.default_rng(i).integers(0, 256, (40, 100, 3)).astype(np.uint8) for i in range(8)]
    calibration = before.calibrate(images, "cpu")
    after = calibration.model
    assert calibration.bits < 4 < calibration.bits_before == 6
    assert cost(after.code, np.zeros((1, 6), np.int32)) > 0
    assert after.metadata["fingerprint"] != before.metadata["fingerprint"]
    assert after.metadata["card"] == {"source": "x", "calibrated_on_photos": 8}
    with safe_open(after.path, "numpy") as file:
        assert all(np.array_equal(file.get_tensor(name), value) for name, value in weights.items())
