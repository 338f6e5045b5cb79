"""Tokens of digits, in rows and on grids: their order and their bytes."""

from __future__ import annotations

import numpy as np
import pytest

from bitstream.digit_tokens import complete_prefix, digit_code, fill_unknown, grid_code
from bitstream.range_coder import encode_tokens

UNIFORM = [
    digit_code((8, 8, 8, 5, 5, 5), 7),
    digit_code((600,), 5),
    grid_code((2,) * 10, 16),
    grid_code((3000,), 8),
    grid_code((8, 5), 16),
]


def random_digits(code, layout, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, count, layout.shape) for count in code.levels]).astype(np.int32)


@pytest.mark.parametrize("code", UNIFORM)
def test_every_part_of_a_payload_decodes_to_the_first_tokens(code):
    layout = code.layout(150, 90) if code.cell else code.layout(700, 500)
    digits = random_digits(code, layout, 0)
    sequence = code.sequence(complete_prefix(layout, digits))
    payload = encode_tokens(sequence, layout.tokens)
    before = 0
    for size in range(len(payload)):
        prefix = code.decode(layout, payload[:size], layout.tokens, partial=True)
        assert before <= prefix.length < layout.tokens
        assert prefix.known.sum() == prefix.length
        assert np.array_equal(prefix.digits, digits * prefix.known)
        assert np.array_equal(sequence.first(prefix.length).digits, prefix.digits)
        assert sequence.bits()[: prefix.length + 1].sum() > 8 * size - 48, "a token that the bytes determine was not read"
        before = prefix.length
    assert np.array_equal(code.decode(layout, payload, layout.tokens).digits, digits)


@pytest.mark.parametrize("length", [1, 5, 40, 200])
def test_unknown_cells_copy_the_nearest_known_one(length):
    code = grid_code((9,), 16)
    layout = code.layout(16 * 19, 16 * 13)
    digits = random_digits(code, layout, 1)
    prefix = code.sequence(complete_prefix(layout, digits)).first(length)
    filled = fill_unknown(prefix.digits, prefix.known)
    rows, columns = np.nonzero(prefix.known)
    for y, x in np.ndindex(layout.shape):
        nearest = (np.square(rows - y) + np.square(columns - x)).argmin()
        assert filled[0, y, x] == digits[0, rows[nearest], columns[nearest]]
