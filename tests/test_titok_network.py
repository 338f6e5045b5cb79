"""Every part of the network of TiTok and One-D-Piece agrees with a computation in NumPy from the same tensors."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from codec.errors import ModelError, TesseraError
from codec.titok.config import SECOND_GENERATION, TitokConfig, published_config
from codec.titok.network import Titok
from tests.helpers.reference_titok import Reference

TINY = TitokConfig(
    block_tokens=256, tail_drop=True, width=32, layers=2, heads=4, side=64, codebook=512, pixel_codebook=48, pixel_code=16,
    pixel_width=32,
)  # fmt: skip


def seeded(config: TitokConfig) -> Titok:
    """A network with random tensors, also in norms and biases, and pixels around mid-grey."""
    torch.manual_seed(7)
    network = Titok(config)
    for name, value in network.named_parameters():
        noise = torch.randn_like(value)
        if "norm" in name or ".ln_" in name:
            value.data = 1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
        elif name.endswith("bias"):
            value.data = 0.2 * noise
    last = network.decoder if config.direct else network.pixel_decoder
    last.conv_out.bias.data += 0.5
    last.conv_out.weight.data *= 0.2
    return network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def network():
    return seeded(TINY)


@pytest.fixture(scope="module")
def reference(network):
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    return Reference(tensors, (TINY.heads, TINY.heads), TINY.side, TINY.patch)


@pytest.fixture(scope="module")
def second():
    """A network of TiTok's second generation, and its reference."""
    config = replace(TINY, block_tokens=8, tail_drop=False, decoder_size=(48, 3, 2), **(SECOND_GENERATION | {"codebook": 512}))
    network = seeded(config)
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    return network, Reference(tensors, (TINY.heads, 2), TINY.side, TINY.patch)


@pytest.fixture(scope="module")
def blocks():
    return np.random.default_rng(0).random((2, 3, 64, 64)).astype(np.float32)


def close(output: torch.Tensor, expected: np.ndarray) -> bool:
    assert output.shape == expected.shape
    assert expected.std() > 0.01
    return np.abs(output.numpy() - expected).max() < 1e-4


def test_patch_embedding(network, reference, blocks):
    output = network.encoder.patch_embed(torch.from_numpy(blocks))[0].flatten(1).T
    assert close(output, reference.patches(blocks[0].astype(np.float64)))


def test_attention_block(network, reference):
    x = np.random.default_rng(1).normal(size=(19, 32))
    output = network.decoder.transformer[1](torch.from_numpy(x).float()[None])[0]
    assert close(output, reference.attention_block("decoder.transformer.1", x))


def test_encoder_with_the_published_reshape(network, reference, blocks):
    output = network.encoder(torch.from_numpy(blocks), network.latent_tokens)
    for vectors, block in zip(output, blocks, strict=True):
        assert close(vectors, reference.vectors(block.astype(np.float64)))


def test_quantizer_chooses_the_code_of_the_smallest_angle(network, reference):
    vectors = np.random.default_rng(2).normal(size=(300, 12)) * np.linspace(0.1, 9, 300)[:, None]
    indices = network.quantize.nearest(torch.from_numpy(vectors).float()).numpy()
    assert np.array_equal(indices, reference.indices(vectors))
    assert len(np.unique(indices)) > 100
    assert close(network.quantize.lookup(torch.from_numpy(indices)), reference.codebook()[indices])


def test_codes_are_nearest_to_themselves(network):
    indices = torch.arange(TINY.codebook)
    assert torch.equal(network.quantize.nearest(3 * network.quantize.lookup(indices)), indices)


def test_soft_lookup(network, reference):
    scores = 3 * np.random.default_rng(3).normal(size=(16, 48))
    output = network.pixel_quantize.mean(torch.from_numpy(scores.T.copy()).float().reshape(1, 48, 4, 4))[0]
    assert close(output, reference.soft_lookup(scores))


def test_pixel_decoder(network, reference):
    x = np.random.default_rng(4).normal(size=(16, 4, 4))
    assert close(network.pixel_decoder(torch.from_numpy(x).float()[None])[0], reference.pixel_decoder(x))


def test_indices_are_identical(network, reference, blocks):
    output = network.tokenize(torch.from_numpy(blocks)).numpy()
    for indices, block in zip(output, blocks, strict=True):
        assert np.array_equal(indices, reference.indices(reference.vectors(block.astype(np.float64))))
    assert len(np.unique(output)) > 100


@pytest.mark.parametrize("length", [1, 2, 17, 128, 256])
def test_pixels_agree_at_every_length(network, reference, length):
    indices = np.random.default_rng(length).integers(0, TINY.codebook, (2, length))
    output = network.detokenize(torch.from_numpy(indices))
    assert output.min() >= 0
    assert output.max() <= 1
    for block, part in zip(output, indices, strict=True):
        expected = reference.pixels(part)
        assert ((expected > 0) & (expected < 1)).mean() > 0.5
        assert close(block, expected.clip(0, 1))


def test_indices_of_the_second_generation_are_identical(second, blocks):
    network, reference = second
    output = network.tokenize(torch.from_numpy(blocks)).numpy()
    for indices, block in zip(output, blocks, strict=True):
        assert np.array_equal(indices, reference.indices(reference.vectors(block.astype(np.float64))))
    assert len(np.unique(output)) > 4


def test_the_second_generation_chooses_the_code_of_the_smallest_distance(second):
    """Vectors and codes have any length."""
    network, reference = second
    vectors = np.random.default_rng(2).normal(size=(300, 64)) * np.linspace(0.1, 3, 300)[:, None]
    indices = network.quantize.nearest(torch.from_numpy(vectors).float()).numpy()
    assert np.array_equal(indices, reference.indices(vectors))
    assert not np.array_equal(indices, np.argmax(vectors @ reference.codebook().T, 1))
    assert close(network.quantize.lookup(torch.from_numpy(indices)), reference.codebook()[indices])


def test_the_second_generation_decodes_to_pixels(second):
    network, reference = second
    indices = np.random.default_rng(0).integers(0, 512, (2, 8))
    for block, part in zip(network.detokenize(torch.from_numpy(indices)), indices, strict=True):
        expected = reference.pixels(part)
        assert ((expected > 0) & (expected < 1)).mean() > 0.5
        assert close(block, expected.clip(0, 1))
    with pytest.raises(TesseraError):
        network.detokenize(torch.from_numpy(indices[:, :7]))


def test_one_d_piece_decodes_any_length_and_titok_only_all_tokens():
    titok = TitokConfig(block_tokens=32, tail_drop=False, width=512, layers=8, heads=8)
    titok.check_length(32)
    with pytest.raises(TesseraError):
        titok.check_length(5)
    piece = published_config("large", 256, tail_drop=True)
    piece.check_length(1)
    piece.check_length(256)
    for wrong in (0, 257):
        with pytest.raises(TesseraError):
            piece.check_length(wrong)


def test_blocks_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match=r"\(3, 64, 32\)"):
        network.tokenize(torch.zeros(1, 3, 64, 32))


def test_a_configuration_is_restored_from_plain_data():
    assert TitokConfig.from_dict({**TINY.to_dict(), "pixel_multipliers": [1, 1, 2, 2, 4]}) == TINY
    second = published_config("base", 64, tail_drop=False, decoder="large")
    assert TitokConfig.from_dict(json.loads(json.dumps(second.to_dict()))) == second
    with pytest.raises(TypeError, match="side"):
        TitokConfig.from_dict({name: value for name, value in TINY.to_dict().items() if name != "side"})


def test_an_encoder_that_does_not_mix_tokens(network, blocks):
    """Its last layer is then linear in each token."""
    unmixed = seeded(replace(TINY, mixed=False))
    unmixed.load_state_dict(network.state_dict())
    normed: list[torch.Tensor] = []
    unmixed.encoder.ln_post.register_forward_hook(lambda _, inputs, output: normed.append(output))
    output = unmixed.encoder(torch.from_numpy(blocks), unmixed.latent_tokens)
    weight, bias = unmixed.encoder.conv_out.weight[:, :, 0, 0], unmixed.encoder.conv_out.bias
    assert close(output, (normed[0] @ weight.t() + bias).numpy())
    assert not torch.allclose(output, network.encoder(torch.from_numpy(blocks), network.latent_tokens), atol=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 10**9}, {"width": "512"}, {"tail_drop": 1}, {"mixed": None}, {"side": 250}, {"heads": 5},
        {"decoder_size": (32, 2, 5)}, {"decoder_size": (32, 65, 4)}, {"decoder_size": (32, 2)}, {"decoder_size": "abc"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(ModelError):
        TitokConfig.from_dict(TINY.to_dict() | change)


def test_an_unknown_size_is_refused():
    with pytest.raises(ModelError, match="huge"):
        published_config("huge", 256, tail_drop=True)
    with pytest.raises(ModelError, match="huge"):
        published_config("base", 64, tail_drop=False, decoder="huge")
