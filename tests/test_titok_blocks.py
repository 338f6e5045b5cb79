"""Images of any size through blocks of one size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.codebook_tokens import CodebookLayout, CodebookPrefix, complete_prefix, uniform_code
from bitstream.range_coder import encode_tokens
from codec.titok import tokenizer
from codec.titok.config import TitokConfig
from codec.titok.mosaic import Mosaic, block_starts, cut
from codec.titok.network import Titok
from codec.titok.tokenizer import detokenize_image, tokenize_image

TINY = TitokConfig(6, True, 16, 1, 2, side=64, codebook=64, pixel_codebook=20, pixel_code=8, pixel_width=32)


def network(tail_drop: bool = True) -> Titok:
    torch.manual_seed(3)
    made = Titok(TitokConfig(**{**TINY.to_dict(), "tail_drop": tail_drop})).requires_grad_(False).eval()
    for name, value in made.named_parameters():
        if name.startswith("pixel_decoder.conv_out"):
            value.data = 0.1 * value.data + (0.5 if name.endswith("bias") else 0)
    return made


def joined(parts, height, width, side):
    mosaic = Mosaic(height, width, side)
    for index, part in reversed(list(enumerate(parts))):
        mosaic.add(index, part)
    return mosaic.pixels


@given(st.integers(1, 5000))
def test_blocks_are_as_few_as_cover_the_image(length):
    begin = block_starts(length, 256)
    assert len(begin) == max(1, -(-length // 256))
    assert begin[0] == 0
    assert max(length, 256) == begin[-1] + 256
    assert all(0 < b - a <= 256 for a, b in pairwise(begin))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 2**32))
def test_flat_blocks_blend_between_their_values(height, width, seed):
    """All shares add up to 1: equal blocks give an even image, others nothing beyond their values."""
    count = len(block_starts(height, 64)) * len(block_starts(width, 64))
    even = joined([np.full((3, 64, 64), 0.3, np.float32)] * count, height, width, 64)
    assert even.shape == (3, height, width)
    assert np.abs(even - 0.3).max() < 1e-6
    values = np.random.default_rng(seed).random((count, 1, 1, 1), np.float32)
    mixed = joined(values * np.ones((3, 64, 64), np.float32), height, width, 64)
    assert mixed.min() > values.min() - 1e-6
    assert mixed.max() < values.max() + 1e-6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 64), (64, 64), (50, 100), (75, 180), (128, 64), (192, 128)])
def test_cut_and_put_together_again(height, width):
    """Exact away from seams, and everywhere if neighbours overlap by the band that is blended."""
    image = np.random.default_rng(0).random((3, height, width)).astype(np.float32)
    parts = list(cut(image, 64))
    assert all(part.shape == (3, 64, 64) for part in parts)
    again = joined(parts, height, width, 64)
    exact = np.abs(again - image).max(0) < 1e-5
    for axis, length in enumerate((height, width)):
        begin = block_starts(length, 64)
        for a, b in pairwise(begin):
            if a + 64 - b < 4:  # two pixels to each side
                assert not exact.take(range(b - 2, b + 2), axis).all()
                exact[(slice(None),) * axis + (slice(b - 2, b + 2),)] = True
    assert exact.all()


def test_no_step_is_left_between_neighbours_that_differ():
    seam = joined([np.full((3, 64, 64), value, np.float32) for value in (0.2, 0.8)], 64, 128, 64)[0, 0]
    assert np.abs(np.diff(seam)).max() < 0.16
    assert (seam[:62] == np.float32(0.2)).all()
    assert np.abs(seam[66:] - 0.8).max() < 1e-6


def test_blocks_go_on_as_their_mirror_image():
    """A grating that ends in black at one seam and begins there in the next block is not smeared: its mirror image is black."""
    left = np.ones((3, 64, 64), np.float32)
    left[:, :, 62:] = 0
    seam = joined([left, left[:, :, ::-1].copy()], 64, 128, 64)[0, 0]
    assert (seam[62:66] == 0).all()
    assert (seam[:62] == 1).all()
    left[:, :, 62] = 1
    quarters = joined([left, 0 * left], 64, 128, 64)[0, 0, 62:66]
    assert np.allclose(quarters, [0.875, 0, 0, 0.125])  # shares of the left block at 1.5 pixels before and behind the seam


@pytest.mark.parametrize(("height", "width", "grid"), [(64, 64, (1, 1)), (30, 65, (1, 2)), (200, 130, (4, 3))])
def test_a_image_through_tokens_and_bytes(height, width, grid, monkeypatch):
    monkeypatch.setattr(tokenizer, "CALL_PIXELS", 5 * TINY.side**2)
    net = network()
    image = np.random.default_rng(1).random((3, height, width)).astype(np.float32)
    indices = tokenize_image(net, image)
    assert indices.shape == (6, *grid)
    one_by_one = [net.tokenize(torch.from_numpy(block.copy())[None])[0].numpy() for block in cut(image, 64)]
    assert np.array_equal(indices.reshape(6, -1).T, one_by_one)
    code = uniform_code(6, 64, 64)
    layout = code.layout(width, height)
    payload = encode_tokens(code.sequence(complete_prefix(layout, indices)), indices.size)
    decoded = detokenize_image(net, code.decode(layout, payload, indices.size))
    whole = net.detokenize(torch.from_numpy(np.array(one_by_one))).numpy()
    assert np.abs(decoded - joined(whole, height, width, 64)).max() < 1e-5


def test_blocks_decode_the_tokens_they_have():
    """Of a cut file, some blocks have one token more than the others."""
    net = network()
    indices = np.random.default_rng(2).integers(0, 64, (6, 1, 2)).astype(np.int32)
    tokens = CodebookPrefix(CodebookLayout(128, 64, 64, 6), indices, 7)
    assert tokens.block_lengths.tolist() == [[4, 3]]
    decoded = detokenize_image(net, tokens)
    for column, length in enumerate((4, 3)):
        alone = net.detokenize(torch.from_numpy(indices[:length, 0, column])[None].long())[0].numpy()
        inside = slice(64 * column + 2, 64 * column + 62)
        assert np.abs(decoded[:, :, inside] - alone[:, :, 2:62]).max() < 1e-5


@pytest.mark.parametrize(("tail_drop", "length"), [(True, 1), (False, 11)])
def test_blocks_that_are_no_image_yet_take_the_colour_of_the_others(tail_drop, length):
    indices = np.random.default_rng(2).integers(0, 64, (6, 1, 2)).astype(np.int32)
    decoded = detokenize_image(network(tail_drop), CodebookPrefix(CodebookLayout(128, 64, 64, 6), indices, length))
    assert decoded[:, :, :62].std() > 0.001
    blank = decoded[:, :, 66:]
    assert np.abs(blank - blank[:, :1, :1]).max() < 1e-6
    assert np.abs(blank.mean((1, 2)) - decoded[:, :, :60].mean((1, 2))).max() < 0.05
    assert (
        np.abs(detokenize_image(network(tail_drop), CodebookPrefix(CodebookLayout(128, 64, 64, 6), indices, 0)) - 0.5).max()
        < 1e-6
    )
