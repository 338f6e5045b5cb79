"""Images of any size: padding, tiles, and unknown tokens."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch

from bitstream.digit_tokens import grid_code
from codec.grid.tokenizer import GridTokenizer, _tiles
from codec.system.context import network_context
from tests.helpers.grid import NAMES, random_network, tiny


def grid_tokenizer(name: str, tile: int | None = None) -> GridTokenizer:
    config = tiny(name)
    return GridTokenizer(random_network(config), grid_code(config.levels, config.cell), tile)


def smooth_image(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return noise.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_keep_their_size(name):
    tokenizer, (height, width) = grid_tokenizer(name), (1, 1) if name == "open-magvit2-f8" else (9, 17)
    (sequence,) = tokenizer.tokenize([smooth_image(height, width)])
    prefix = sequence.first(sequence.layout.tokens)
    assert prefix.known.shape == (-(-height // 8), -(-width // 8))
    (pixels,) = tokenizer.detokenize([prefix])
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)


def test_the_right_and_bottom_edges_are_repeated():
    tokenizer = grid_tokenizer("maskbit-12")
    image = smooth_image(13, 21)
    padded = np.pad(image, ((0, 3), (0, 3), (0, 0)), "edge")
    digits = [sequence.first(6).digits for sequence in tokenizer.tokenize([image, padded])]
    assert np.array_equal(*digits)


def test_unknown_tokens_are_filled_from_the_nearest_known_ones():
    tokenizer = grid_tokenizer("ibq-1024")
    (sequence,) = tokenizer.tokenize([smooth_image(16, 32)])
    one, none = sequence.first(1), sequence.first(0)
    assert len(np.unique(one.digits)) > 1 or one.known.sum() == 1
    repeated = type(one)(one.layout, np.full_like(one.digits, one.digits[0, 0, 0]), one.layout.tokens)
    assert np.array_equal(*tokenizer.detokenize([one, repeated]))
    assert np.unique(tokenizer.detokenize([none])[0]).tolist() == [128]


@pytest.mark.parametrize(("length", "tile", "scale"), [(40, 40, 8), (41, 40, 1), (100, 16, 8), (333, 24, 3)])
def test_tiles_cover_an_axis_and_their_weights_add_up_to_one(length, tile, scale):
    total, longest = torch.zeros(length * scale), 0
    for cells, weights in _tiles(length, tile, scale):
        total[cells.start * scale : cells.stop * scale] += weights
        longest = max(longest, cells.stop - cells.start)
    assert torch.allclose(total, torch.ones(length * scale))
    assert longest <= tile


def test_edges_of_tiles_inside_the_image_do_not_count():
    tiles = _tiles(64, 32, 8)
    for (_, weights), first in zip(tiles, (True, *[False] * len(tiles)), strict=False):
        assert weights[0] == float(first)


@pytest.mark.parametrize(("name", "height", "width"), [("maskbit-12", 240, 40), ("open-magvit2-f8", 40, 240)])
def test_a_tiled_image_is_close_to_a_whole_one(name, height, width):
    image = smooth_image(height, width)
    whole, tiled = grid_tokenizer(name, 240), grid_tokenizer(name, 160)
    (sequence,) = whole.tokenize([image])
    prefix = sequence.first(sequence.layout.tokens)
    digits = tiled.tokenize([image])[0].first(sequence.layout.tokens).digits
    assert (digits == prefix.digits).mean() > 0.9
    expected, pixels = (tokenizer.detokenize([prefix])[0].astype(float) for tokenizer in (whole, tiled))
    assert 0 < np.square(pixels - expected).mean() < 0.1 * expected.var()


def test_progress_adds_up_to_one_pass():
    reported = defaultdict(float)
    for tile in (None, 128):  # one tile, and two of them
        tokenizer = grid_tokenizer("maskbit-12", tile)

        def listener(share: float, tile: int | None = tile) -> None:
            reported[tile] += share

        with network_context(listener=listener):
            tokenizer.tokenize([smooth_image(8, 200)])
    assert reported == {None: pytest.approx(1), 128: pytest.approx(1)}
