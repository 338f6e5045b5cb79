"""The convolutional tokenizers against an independent computation, from tensors under their published names."""

from __future__ import annotations

import pytest
import torch

from codec.errors import ModelError
from codec.grid.config import PUBLISHED, GridConfig
from codec.grid.network import Grid, SignQuantizer, VectorQuantizer, code_style
from tests.helpers import reference_grid
from tests.helpers.grid import BY_NAME, NAMES, published_tensors, random_network, tiny

REFERENCES = dict(
    zip(NAMES, (reference_grid.maskbit, reference_grid.magvit2, reference_grid.ibq, reference_grid.llamagen), strict=True)
)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_pixels_are_those_of_an_independent_computation(name):
    network = random_network(tiny(name))
    pixels = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    digits = network.quantize(network.encode(pixels))
    decoded = network.decode(network.quantize.lookup(digits))
    expected_digits, expected = REFERENCES[name](published_tensors(network), pixels, 4)
    assert digits.shape == (1, len(network.config.levels), 5, 7)
    assert torch.equal(digits[0], expected_digits.long())
    assert len(digits.flatten(2).unique(dim=2)[0, 0]) > 5
    assert ((decoded > 0) & (decoded < 1)).float().mean() > 0.2
    assert decoded.std() > 0
    assert torch.allclose(decoded, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "cell", "levels"),
    [
        ("maskbit-10", 25.12, 29.34, 16, (2,) * 10),
        ("open-magvit2-f16", 49.75, 65.38, 16, (2,) * 18),
        ("open-magvit2-f8", 48.42, 63.60, 8, (2,) * 18),
        ("ibq-262144", 46.75, 59.90, 16, (262144,)),
        ("llamagen-ds8", 28.56, 41.42, 8, (16384,)),
    ],
)
def test_published_networks_have_the_published_numbers_of_parameters(name, encoder, decoder, cell, levels):
    config = BY_NAME[name]
    with torch.device("meta"):
        network = Grid(config)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (network.encoder, network.decoder)]
    assert millions == pytest.approx([encoder, decoder], abs=0.01)
    assert (config.cell, config.levels, config.block_tokens) == (cell, levels, (256 // cell) ** 2)


def test_sign_bits_are_ones_for_positive_numbers_only():
    latents = torch.tensor([0.5, 0.0, -0.5]).reshape(1, 3, 1, 1)
    bits = SignQuantizer()(latents)
    assert bits.flatten().tolist() == [1, 0, 0]
    assert SignQuantizer().lookup(bits).flatten().tolist() == [1.0, -1.0, -1.0]


def test_vectors_are_chosen_by_scalar_product_and_unit_vectors_by_direction():
    vectors = torch.tensor([[1.0, 0.0], [10.0, 10.0], [0.0, 1.0]])
    latents = torch.tensor([1.0, 0.1]).reshape(1, 2, 1, 1)
    chosen = []
    for unit in (False, True):
        quantizer = VectorQuantizer(3, 2, unit).requires_grad_(False)
        quantizer.embedding.weight.copy_(vectors)
        chosen.append(quantizer(latents).item())
        assert quantizer.lookup(torch.tensor([[[[1]]]])).norm().item() == pytest.approx(1 if unit else 200**0.5)
    assert chosen == [1, 0]


def test_an_image_of_one_cell_has_a_style():
    network = random_network(tiny("open-magvit2-f8"))
    codes = network.quantize.lookup(torch.ones(1, 18, 1, 1, dtype=torch.long))
    assert code_style(codes)[0, 1].tolist() == pytest.approx([1e-3] * 18)
    assert network.decode(codes).isfinite().all()


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: config.name)
def test_configurations_survive_their_plain_form(config):
    assert GridConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"quantizer": "soft"},
        {"code": 0},
        {"width": 100},
        {"codebook": 5},
        {"encoder_depth": 10**6},
        {"signed": 1},
        {"multipliers": []},
        {"latent": 11},
        {"name": ""},
    ],
)
def test_wrong_configurations_are_refused(change):
    with pytest.raises(ModelError):
        GridConfig.from_dict(PUBLISHED[0].to_dict() | change)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError):
        GridConfig.from_dict(PUBLISHED[0].to_dict() | {"surprise": 1})
