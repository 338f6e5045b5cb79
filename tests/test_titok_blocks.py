"""Images of any size as blocks of one size, and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.codebook_tokens import CodebookLayout, CodebookPrefix, complete_prefix, uniform_code
from bitstream.range_coder import encode_tokens
from codec.networks.block_tokenizer import BlockTokenizer
from codec.networks.mosaic import Mosaic, block_starts, cut
from codec.titok.config import TitokConfig
from codec.titok.network import Titok

TINY = TitokConfig(6, True, 16, 1, 2, side=64, codebook=64, pixel_codebook=20, pixel_code=8, pixel_width=32)


def make_network(tail_drop: bool = True) -> Titok:
    torch.manual_seed(3)
    network = Titok(replace(TINY, tail_drop=tail_drop)).requires_grad_(False).eval()
    network.pixel_decoder.conv_out.weight *= 0.1
    network.pixel_decoder.conv_out.bias.copy_(0.1 * network.pixel_decoder.conv_out.bias + 0.5)
    return network


def assemble(blocks, height, width, side):
    mosaic = Mosaic(height, width, side)
    for index, block in reversed(list(enumerate(blocks))):
        mosaic.add(index, block)
    return mosaic.pixels


@given(st.integers(1, 5000))
def test_an_image_is_covered_by_as_few_blocks_as_possible(length):
    starts = block_starts(length, 256)
    assert len(starts) == max(1, -(-length // 256))
    assert starts[0] == 0
    assert max(length, 256) == starts[-1] + 256
    assert all(0 < b - a <= 256 for a, b in pairwise(starts))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32))
def test_weights_of_blocks_add_up_to_one(height, width, seed):
    """Equal blocks give a flat image; different ones give no value outside their range."""
    count = len(block_starts(height, 64)) * len(block_starts(width, 64))
    flat = assemble([np.full((3, 64, 64), 0.3, np.float32)] * count, height, width, 64)
    assert flat.shape == (3, height, width)
    assert np.abs(flat - 0.3).max() < 1e-6
    values = np.random.default_rng(seed).random((count, 1, 1, 1), np.float32)
    mixed = assemble(values * np.ones((3, 64, 64), np.float32), height, width, 64)
    assert mixed.min() > values.min() - 1e-6
    assert mixed.max() < values.max() + 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 64), (64, 64), (50, 100), (75, 180), (128, 64), (192, 128)])
def test_a_mosaic_inverts_cut(height, width):
    """It is exact outside of seams, and everywhere if neighbours overlap by the blended band."""
    image = np.random.default_rng(0).random((3, height, width)).astype(np.float32)
    blocks = list(cut(image, 64))
    assert all(block.shape == (3, 64, 64) for block in blocks)
    assembled = assemble(blocks, height, width, 64)
    exact = np.abs(assembled - image).max(0) < 1e-5
    for axis, length in enumerate((height, width)):
        for a, b in pairwise(block_starts(length, 64)):
            if a + 64 - b < 4:  # two pixels to each side
                assert not exact.take(range(b - 2, b + 2), axis).all()
                exact[(slice(None),) * axis + (slice(b - 2, b + 2),)] = True
    assert exact.all()


def test_a_seam_between_different_blocks_is_a_ramp():
    seam = assemble([np.full((3, 64, 64), value, np.float32) for value in (0.2, 0.8)], 64, 128, 64)[0, 0]
    assert np.abs(np.diff(seam)).max() < 0.16
    assert (seam[:62] == np.float32(0.2)).all()
    assert np.abs(seam[66:] - 0.8).max() < 1e-6


def test_blocks_continue_as_their_mirror_image():
    """Blocks that are black along both sides of a seam stay black there."""
    left = np.ones((3, 64, 64), np.float32)
    left[:, :, 62:] = 0
    seam = assemble([left, left[:, :, ::-1].copy()], 64, 128, 64)[0, 0]
    assert (seam[62:66] == 0).all()
    assert (seam[:62] == 1).all()
    left[:, :, 62] = 1
    ramp = assemble([left, 0 * left], 64, 128, 64)[0, 0, 62:66]
    assert np.allclose(ramp, [0.875, 0, 0, 0.125])  # weights of the left block 1.5 pixels before and after the seam


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 64, (1, 1)), (30, 65, (1, 2)), (200, 130, (4, 3))])
def test_an_image_is_coded_as_its_blocks_are(height, width, grid, monkeypatch):
    monkeypatch.setattr(BlockTokenizer, "call_pixels", 5 * TINY.side**2)
    network, code = make_network(), uniform_code(6, 64, 64)
    image = np.random.default_rng(1).random((3, height, width)).astype(np.float32)
    indices = BlockTokenizer(network, code).tokenize_image(image)
    assert indices.shape == (6, *grid)
    separate = [network.tokenize(torch.from_numpy(block.copy())[None])[0].numpy() for block in cut(image, 64)]
    assert np.array_equal(indices.reshape(6, -1).T, separate)
    layout = code.layout(width, height)
    payload = encode_tokens(code.sequence(complete_prefix(layout, indices)), indices.size)
    decoded = BlockTokenizer(network, code).detokenize_image(code.decode(layout, payload, indices.size))
    expected = network.detokenize(torch.from_numpy(np.array(separate))).numpy()
    assert np.abs(decoded - assemble(expected, height, width, 64)).max() < 1e-5


def test_each_block_decodes_from_its_known_tokens():
    """In a truncated file, some blocks have one token more than others."""
    network = make_network()
    indices = np.random.default_rng(2).integers(0, 64, (6, 1, 2)).astype(np.int32)
    tokens = CodebookPrefix(CodebookLayout(128, 64, 64, 6), indices, 7)
    assert tokens.block_lengths.tolist() == [[4, 3]]
    decoded = BlockTokenizer(network, uniform_code(6, 64, 64)).detokenize_image(tokens)
    for column, length in enumerate((4, 3)):
        alone = network.detokenize(torch.from_numpy(indices[:length, 0, column])[None].long())[0].numpy()
        inside = slice(64 * column + 2, 64 * column + 62)
        assert np.abs(decoded[:, :, inside] - alone[:, :, 2:62]).max() < 1e-5


@pytest.mark.parametrize(("tail_drop", "length"), [(True, 1), (False, 11)])
def test_blocks_without_enough_tokens_get_the_colour_of_the_others(tail_drop, length):
    indices = np.random.default_rng(2).integers(0, 64, (6, 1, 2)).astype(np.int32)
    tokenizer, layout = BlockTokenizer(make_network(tail_drop), uniform_code(6, 64, 64)), CodebookLayout(128, 64, 64, 6)
    decoded = tokenizer.detokenize_image(CodebookPrefix(layout, indices, length))
    assert decoded[:, :, :62].std() > 0.001
    blank = decoded[:, :, 66:]
    assert np.abs(blank - blank[:, :1, :1]).max() < 1e-6
    assert np.abs(blank.mean((1, 2)) - decoded[:, :, :60].mean((1, 2))).max() < 0.05
    grey = tokenizer.detokenize_image(CodebookPrefix(layout, indices, 0))
    assert np.abs(grey - 0.5).max() < 1e-6
