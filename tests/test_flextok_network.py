"""Every part of the network of FlexTok agrees with a computation in NumPy from the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codec.errors import ModelError
from codec.flextok.config import FlextokConfig
from codec.flextok.network import codes_of, from_patches, nearest_digits, to_patches
from codec.flextok.noise import normal_noise, normal_quantiles
from codec.flextok.sampler import sample
from tests.helpers.flextok import TINY, published_tensors, seeded
from tests.helpers.reference_flextok import Reference


@pytest.fixture(scope="module")
def network():
    return seeded()


@pytest.fixture(scope="module")
def reference(network):
    tensors = {name: value.numpy() for name, value in published_tensors(network).items()}
    return Reference(tensors, TINY.levels, TINY.head, TINY.vae_groups)


@pytest.fixture(scope="module")
def blocks():
    return np.random.default_rng(0).random((2, 3, TINY.side, TINY.side)).astype(np.float32)


@pytest.fixture(scope="module")
def noise():
    return normal_noise(3, TINY.channels, np.arange(TINY.latents), np.arange(TINY.latents))


@pytest.fixture(scope="module")
def digits():
    return np.random.default_rng(1).integers(0, TINY.levels, (2, TINY.block_tokens, len(TINY.levels)))


def close(output: torch.Tensor, expected: np.ndarray) -> bool:
    assert output.shape == expected.shape
    assert expected.std() > 0.01
    return np.abs(output.numpy() - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_autoencoder(network, reference, blocks):
    latents = network.vae.encode(2 * torch.from_numpy(blocks) - 1)
    assert latents.shape == (2, TINY.channels, TINY.latents, TINY.latents)
    for output, block in zip(latents, blocks, strict=True):
        assert close(output, reference.latents(2 * block.astype(np.float64) - 1))
    for output, values in zip(network.vae.decode(latents), latents.numpy(), strict=True):
        assert close(output, reference.pixels(values.astype(np.float64)))


def test_encoder(network, reference, noise):
    output = network.encoder(torch.from_numpy(np.stack([noise, noise[::-1]])))
    assert close(output[0], reference.vectors(noise.astype(np.float64)))
    assert close(output[1], reference.vectors(noise[::-1].astype(np.float64)))


def test_digits_are_identical(network, reference, blocks):
    output = network.tokenize(torch.from_numpy(blocks)).numpy()
    for digits, block in zip(output, blocks, strict=True):
        latents = reference.latents(2 * block.astype(np.float64) - 1) * TINY.scale
        assert np.array_equal(digits, reference.digits(reference.vectors(latents)))
    assert all(len(np.unique(output[..., digit])) > 1 for digit in range(len(TINY.levels)))


def test_quantizer_uses_all_levels_and_no_others():
    levels = (8, 8, 8, 5, 5, 5)
    vectors = torch.linspace(-9, 9, 2001)[:, None].expand(-1, 6)
    digits = nearest_digits(vectors, levels)
    assert [digits[:, digit].unique().tolist() for digit in range(6)] == [list(range(level)) for level in levels]
    codes = codes_of(digits, levels)
    assert codes[:, 0].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    assert codes[:, 5].unique().tolist() == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize("known", [1, 8])
def test_velocity(network, reference, noise, digits, known):
    registers = network.decoder.registers(codes_of(torch.from_numpy(digits[:1]), TINY.levels).float(), torch.tensor([known]))
    output = network.decoder(torch.from_numpy(noise[None]), 0.35, registers)
    assert close(output[0], reference.velocity(noise.astype(np.float64), 0.35, digits[0], known, TINY.max_time))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_pixels_of_blocks_with_different_lengths(network, reference, noise, digits, guidance):
    """Unknown digits do not matter."""
    lengths, steps = np.array([3, 8]), 2
    arrays = (torch.from_numpy(array) for array in (digits, lengths, np.stack([noise, noise[::-1]])))
    calls: list[None] = []
    output = network.detokenize(*arrays, steps=steps, guidance=guidance, progress=lambda: calls.append(None))
    assert len(calls) == steps
    for index, start in enumerate((noise, noise[::-1])):
        changed = digits[index].copy()
        changed[lengths[index] :] = 0
        latents = reference.sample(start, changed, int(lengths[index]), steps, guidance, TINY.max_time)
        expected = reference.pixels(latents / TINY.scale) / 2 + 0.5
        assert ((expected > 0) & (expected < 1)).mean() > 0.5
        assert close(output[index], expected.clip(0, 1))


def test_patches_are_inverse():
    latents = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    patches = to_patches(latents, 2)
    assert patches[0, 1].tolist() == latents[0, :, :2, 2:4].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(from_patches(patches, 2), latents)


def test_the_sampler_follows_a_straight_flow_in_one_step():
    image, noise = torch.full((1, 4, 4, 4), 0.5), torch.randn(1, 4, 4, 4)
    for steps in (1, 7):
        assert torch.allclose(sample(lambda x, time: (noise - image, None), noise, steps, 1.0), image, atol=1e-6)


def test_noise_is_normal_and_depends_on_seed_and_position_alone():
    complete = normal_noise(0, 4, np.arange(64), np.arange(96))
    assert complete.shape == (4, 64, 96)
    assert abs(complete.mean()) < 0.02
    assert abs(complete.std() - 1) < 0.02
    assert np.array_equal(normal_noise(0, 4, np.arange(10, 42), np.arange(60, 92)), complete[:, 10:42, 60:92])
    for other in (normal_noise(1, 4, np.arange(64), np.arange(96)), complete[::-1], complete[:, ::-1]):
        assert abs(np.corrcoef(complete.ravel(), other.ravel())[0, 1]) < 0.02


FIRST_NOISE, LAST_NOISE = [-1.086181640625, 1.897216796875, 0.006591796875, 0.203369140625], [0.212890625]


def test_noise_never_changes():
    """Decoded images depend on these numbers."""
    assert normal_noise(0, 2, np.arange(1), np.arange(2)).ravel().tolist() == FIRST_NOISE
    assert normal_noise(2**32 - 1, 1, np.array([3000]), np.array([70000])).ravel().tolist() == LAST_NOISE
    quantiles = normal_quantiles()
    assert np.all(np.diff(quantiles) >= 0)
    assert np.array_equal(quantiles, -quantiles[::-1])


def test_blocks_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match=r"\(3, 32, 16\)"):
        network.tokenize(torch.zeros(1, 3, 32, 16))


def test_a_configuration_is_restored_from_plain_data():
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.to_dict().items()}
    assert FlextokConfig.from_dict(plain) == TINY
    with pytest.raises(TypeError, match="scale"):
        FlextokConfig.from_dict({name: value for name, value in plain.items() if name != "scale"})


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_layers": 10**9},
        {"decoder_width": "512"},
        {"scale": 0.0},
        {"max_time": float("nan")},
        {"side": 34},
        {"head": 5},
        {"levels": (8, 1)},
        {"vae_widths": (4, 8, 9)},
        {"vae_widths": ()},
        {"steps": 10**6},
        {"seed": -1},
        {"guidance": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(ModelError):
        FlextokConfig.from_dict(TINY.to_dict() | change)
