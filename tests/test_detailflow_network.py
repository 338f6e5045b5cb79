"""Every part of the network of DetailFlow agrees with a computation in NumPy from the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codec.detailflow.config import DetailFlowConfig
from codec.detailflow.network import from_patches, resize_positions, to_patches
from codec.errors import ModelError, TesseraError
from tests.helpers.detailflow import TINY, published_tensors, seeded
from tests.helpers.reference_detailflow import Reference


@pytest.fixture(scope="module")
def network():
    return seeded()


@pytest.fixture(scope="module")
def reference(network):
    tensors = {name: value.numpy() for name, value in published_tensors(network).items()}
    return Reference(tensors, TINY.patch, TINY.heads, TINY.decoder_heads, TINY.group)


@pytest.fixture(scope="module")
def blocks():
    return np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)


def close(output: torch.Tensor, expected: np.ndarray) -> bool:
    assert output.shape == expected.shape
    assert expected.std() > 0.01
    return np.abs(output.numpy() - expected).max() < 1e-4


def test_a_layer(network, reference):
    x = np.random.default_rng(1).normal(size=(19, 32))
    output = network.decoder.layers[1](torch.from_numpy(x).float()[None])[0]
    assert close(output, reference.layer("decoder.visual_model.encoder.layers.1", x, 4, [list(range(19))] * 19))


def test_vectors_before_quantization(network, reference, blocks):
    output = network.quant_conv(network.encoder(2 * torch.from_numpy(blocks) - 1))
    for vectors, block in zip(output, blocks, strict=True):
        assert close(vectors, reference.vectors(block.astype(np.float64), TINY.block_tokens))


@pytest.mark.parametrize("count", [1, 3, 4, 8, 12])
def test_the_first_tokens_do_not_depend_on_later_ones(network, reference, blocks, count):
    """An encoder that has only the first latents finds the same tokens: groups see earlier groups alone."""
    vectors = reference.vectors(blocks[0].astype(np.float64), count)
    assert np.array_equal(network.tokenize(torch.from_numpy(blocks[:1]))[0, :count].numpy(), reference.indices(vectors))


def test_indices_are_identical(network, reference, blocks):
    output = network.tokenize(torch.from_numpy(blocks)).numpy()
    for indices, block in zip(output, blocks, strict=True):
        expected = reference.indices(reference.vectors(block.astype(np.float64), TINY.block_tokens))
        assert np.array_equal(indices, expected)
    assert len(np.unique(output)) > 16
    assert (output[0] != output[1]).mean() > 0.3


def test_the_quantizer_chooses_the_code_of_the_smallest_angle(network, reference):
    vectors = np.random.default_rng(2).normal(size=(300, 8)) * np.linspace(0.1, 9, 300)[:, None]
    indices = network.quantize.nearest(torch.from_numpy(vectors).float()).numpy()
    assert np.array_equal(indices, reference.indices(vectors))
    assert close(network.quantize.lookup(torch.from_numpy(indices)), reference.codebook()[indices])


@pytest.mark.parametrize("grid", [1, 2, 3, 4])
def test_positions_are_resized_with_antialiasing(network, reference, grid):
    assert close(resize_positions(network.decoder.position_embedding.weight, grid), reference.positions(grid))


@pytest.mark.parametrize(("length", "grid"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 3), (12, 4), (16, 4)])
def test_pixels_agree_at_every_trained_length(network, reference, length, grid):
    assert TINY.trained_length(length) == length
    assert TINY.grid_of(length) == grid
    indices = np.random.default_rng(length).integers(0, TINY.codebook, (2, length))
    output = network.detokenize(torch.from_numpy(indices))
    for block, part in zip(output, indices, strict=True):
        expected = reference.pixels(part, grid, TINY.side)
        assert ((expected > 0) & (expected < 1)).mean() > 0.5
        assert close(block, expected)


def test_other_lengths_are_rounded_down(network):
    indices = torch.randint(0, TINY.codebook, (1, 16), generator=torch.Generator().manual_seed(0))
    for length, trained in ((5, 4), (7, 4), (11, 8), (15, 12)):
        assert torch.equal(network.detokenize(indices[:, :length]), network.detokenize(indices[:, :trained]))
    for wrong in (indices[:, :0], torch.cat([indices, indices], 1)):
        with pytest.raises(TesseraError):
            network.detokenize(wrong)


def test_sides_of_the_published_networks():
    """Pixels along the side of the decoded image, by the number of tokens."""
    config = DetailFlowConfig(128)
    sides = {1: 16, 8: 32, 16: 48, 32: 96, 64: 176, 96: 224, 112: 256, 128: 256}
    assert {length: 16 * config.grid_of(length) for length in sides} == sides
    for tokens in (128, 256, 512):
        config = DetailFlowConfig(tokens)
        grids = [config.grid_of(length) for length in range(1, tokens + 1)]
        assert grids == sorted(grids)
        assert (grids[0], grids[-1]) == (1, 16)
        assert [length for length in range(1, 33) if config.trained_length(length) == length] == [*range(1, 9), 16, 24, 32]
    assert [DetailFlowConfig(tokens).name for tokens in (128, 256, 512)] == ["detailflow-16", "detailflow-32", "detailflow-64"]


def test_patches_are_read_by_row_column_and_channel():
    pixels = torch.arange(3 * 6 * 6).reshape(1, 3, 6, 6)
    patches = to_patches(pixels, 3)
    assert patches.shape == (1, 4, 27)
    assert patches[0, 1, :6].tolist() == [3, 39, 75, 4, 40, 76]  # second patch: top left pixel, then its right neighbour
    assert torch.equal(from_patches(patches, 3), pixels)


def test_blocks_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match=r"\(3, 64, 32\)"):
        network.tokenize(torch.zeros(1, 3, 64, 32))


def test_a_configuration_is_restored_from_plain_data():
    assert DetailFlowConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(TypeError, match="side"):
        DetailFlowConfig.from_dict({name: value for name, value in TINY.to_dict().items() if name != "side"})


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 10**9}, {"width": "24"}, {"side": 250}, {"heads": 5}, {"group": 5},
        {"block_tokens": 1, "group": 1}, {"power": float("nan")}, {"power": 1}, {"decoder_layers": 65},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(ModelError):
        DetailFlowConfig.from_dict(TINY.to_dict() | change)
