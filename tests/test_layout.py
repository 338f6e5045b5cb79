from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstream.block_order import spread
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
def test_counts_only_tokens_that_touch_the_image(width, height, counts):
    layout = PyramidLayout(LEVELS, width, height)
    assert layout.counts == counts
    assert layout.tokens == sum(counts)
    assert layout.block_tokens == 1365


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0, 1365))
def test_lengths_and_tokens_a_block_invert(width, height, tokens):
    layout = PyramidLayout(LEVELS, width, height)
    length = layout.length_of(tokens)
    assert 0 <= length <= layout.tokens
    assert layout.length_of(layout.block_tokens_of(length)) == length
    assert sum(layout.split(length)) == length
    assert layout.block_tokens_of(length) >= tokens - 1e-6


@given(st.integers(1, 40), st.integers(1, 40))
def test_spread_is_a_permutation(rows, columns):
    assert sorted(spread(rows, columns)) == list(range(rows * columns))


def test_spread_covers_evenly():
    first = np.argsort(spread(16, 16))[:16]
    assert {(int(place) // 16 // 4, int(place) % 16 // 4) for place in first} == {(y, x) for y in range(4) for x in range(4)}
    assert np.argsort(spread(2, 3)).tolist() == [0, 2, 1, 3, 5, 4]
