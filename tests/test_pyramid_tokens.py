"""The token grids of the pyramid, and the order that covers a grid evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstream.block_order import z_order_ranks
from bitstream.pyramid_tokens import PyramidLayout
from codec.pyramid.config import NetworkConfig

LEVELS = NetworkConfig().levels


@pytest.mark.parametrize(
    ("width", "height", "counts"),
    [
        (1, 1, (1, 1, 1, 1, *[1, 0] * 5)),
        (256, 256, (1, 4, 16, 64, *[128, 128] * 5)),
        (768, 512, (6, 24, 96, 384, *[768, 768] * 5)),
        (17, 255, (1, 2, 4, 8, *[16, 16] * 5)),
        (257, 513, (6, 15, 45, 153, *[281, 280] * 5)),
    ],
)
def test_only_tokens_that_touch_the_image_count(width, height, counts):
    layout = PyramidLayout(LEVELS, width, height)
    assert layout.counts == counts
    assert layout.counts == tuple(mask.sum() for mask in layout.masks)
    assert layout.tokens == sum(counts)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 1365))
def test_lengths_and_tokens_per_block_are_inverses(width, height, tokens):
    layout = PyramidLayout(LEVELS, width, height)
    length = layout.length_of(tokens)
    assert 0 <= length <= layout.tokens
    assert layout.length_of(layout.block_tokens_of(length)) == length
    assert sum(layout.split(length)) == length
    assert layout.block_tokens_of(length) >= tokens - 1e-6


@given(st.integers(1, 40), st.integers(1, 40))
def test_z_order_is_a_permutation(rows, columns):
    assert sorted(z_order_ranks(rows, columns)) == list(range(rows * columns))


def test_z_order_covers_evenly():
    first = np.argsort(z_order_ranks(16, 16))[:16]
    quarters = {(int(position) // 16 // 4, int(position) % 16 // 4) for position in first}
    assert quarters == {(y, x) for y in range(4) for x in range(4)}
    assert np.argsort(z_order_ranks(2, 3)).tolist() == [0, 2, 1, 3, 5, 4]
