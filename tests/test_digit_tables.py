"""Coding tables for digits, measured on photos: they find what tokens depend on, and every digit can still be coded."""

from __future__ import annotations

import numpy as np
import pytest

from bitstream.digit_tokens import complete_prefix, digit_code, grid_code
from bitstream.range_coder import encode_tokens
from codec.errors import ImageError
from codec.models.digit_tables import measure_digits, ranks_of

CODEBOOK = np.random.default_rng(5).normal(size=(1024, 4)).astype(np.float32)


def smooth(rng, levels, shape):
    """Digits (D, rows, columns) of grids, close to those around them."""
    waves = rng.random((len(levels), 2)) * 0.4
    y, x = np.ogrid[: shape[0], : shape[1]]
    values = [np.sin(a * y + b * x + rng.random() * 6) + rng.normal(0, 0.1, shape) for a, b in waves]
    return np.stack([((v / 2 + 0.5).clip(0, 0.999) * n).astype(np.int32) for v, n in zip(values, levels, strict=True)])


def photos_of(code, draw, count, seed):
    rng = np.random.default_rng(seed)
    layout = code.layout(*((24 * code.cell, 20 * code.cell) if code.cell else (3 * code.side, 2 * code.side)))
    return [complete_prefix(layout, draw(rng, code.levels, layout.shape)) for _ in range(count)]


def uniform(rng, levels, shape):
    return np.stack([rng.integers(0, count, shape) for count in levels]).astype(np.int32)


def chained(rng, levels, shape):
    """Each digit repeats the one before it, but for every tenth."""
    digits = uniform(rng, levels, shape)
    for index in range(1, len(levels)):
        digits[index] = np.where(rng.random(shape) < 0.9, digits[index - 1] % levels[index], digits[index])
    return digits


def by_position(rng, levels, shape):
    """Each position has few values of its own."""
    steps = rng.geometric(0.5, (len(levels), *shape)) - 1
    return ((np.arange(shape[0])[:, None, None] * 3 + steps) % np.array(levels)[:, None, None, None]).astype(np.int32)


def repeating(rng, levels, shape):
    """Each token repeats the token before it in its block, but for every tenth."""
    digits = uniform(rng, levels, shape)
    for position in range(1, shape[0]):
        digits[:, position] = np.where(rng.random(shape[1:]) < 0.9, digits[:, position - 1], digits[:, position])
    return digits


def cost(code, photos):
    """Bits per token."""
    return np.concatenate([code.sequence(photo).bits() for photo in photos]).mean()


FSQ = (8, 8, 5)
CASES = {
    "even rows": (digit_code(FSQ, 6), uniform, 1.02),
    "even grids": (grid_code((2,) * 5, 16), uniform, 1.02),
    "positions": (digit_code(FSQ, 6), by_position, 0.8),
    "repeating rows": (digit_code((5, 5), 6), repeating, 0.55),
    "repeating indices": (digit_code((1024,), 6), repeating, 0.7),
    "chained digits": (digit_code(FSQ, 6), chained, 0.7),
    "smooth bits": (grid_code((2,) * 5, 16), smooth, 0.5),
    "smooth digits": (grid_code(FSQ, 8), smooth, 0.6),
    "smooth indices": (grid_code((1024,), 16), smooth, 0.8),
}


@pytest.mark.parametrize(("code", "draw", "share"), CASES.values(), ids=CASES.keys())
def test_the_measured_cost_is_that_of_new_photos(code, draw, share):
    measurement = measure_digits(code, photos_of(code, draw, 60, 0))
    fresh = photos_of(code, draw, 30, 1)
    bits = cost(measurement.code, fresh)
    assert bits < share * cost(code, fresh)
    assert measurement.bits == pytest.approx(bits, rel=0.1)
    payload = encode_tokens(measurement.code.sequence(fresh[0]), fresh[0].length)
    decoded = measurement.code.decode(fresh[0].layout, payload, fresh[0].length)
    assert np.array_equal(decoded.digits, fresh[0].digits)


@pytest.mark.parametrize("name", ["smooth digits", "repeating indices", "smooth indices"])
def test_digits_that_were_never_counted_can_be_coded(name):
    code, draw, _ = CASES[name]
    measured = measure_digits(code, photos_of(code, draw, 4, 0)).code
    odd = photos_of(code, uniform, 1, 9)[0]
    payload = encode_tokens(measured.sequence(odd), odd.length)
    assert np.array_equal(measured.decode(odd.layout, payload, odd.length).digits, odd.digits)


def test_a_refinement_that_does_not_pay_is_left_out():
    code, draw, _ = CASES["even grids"]
    assert len(measure_digits(code, photos_of(code, draw, 20, 0)).code.tables) == 5
    code, draw, _ = CASES["smooth bits"]
    measured = measure_digits(code, photos_of(code, draw, 20, 0)).code
    assert len(measured.tables) > 5
    assert not measured.picks[:, :, 2].any(), "digits of a token are independent, and read together"


def test_similar_vectors_have_close_ranks():
    ranks = ranks_of(CODEBOOK, 32)
    assert np.array_equal(np.sort(ranks), np.arange(1024))
    spread = [CODEBOOK[ranks // size == 0].var(0).sum() for size in (1024, 512, 128, 32)]
    assert spread == sorted(spread, reverse=True)
    assert np.array_equal(np.sort(ranks_of(CODEBOOK[:700], 32)), np.arange(700))
    assert np.array_equal(np.sort(ranks_of(np.zeros((100, 3), np.float32), 16)), np.arange(100))


def test_ranks_by_similarity_save_bits():
    """Values that are neighbours in the codebook follow each other."""
    code = digit_code((1024,), 6)
    order = np.argsort(CODEBOOK[:, 0])

    def similar(rng, levels, shape):
        places = (rng.integers(0, 1024, shape[1:]) + rng.integers(-40, 41, shape)).clip(0, 1023)
        return order[places][None].astype(np.int32)

    photos, fresh = photos_of(code, similar, 300, 0), photos_of(code, similar, 50, 1)
    stretched = CODEBOOK * np.array([5, 1, 1, 1], np.float32)
    assert cost(measure_digits(code, photos, stretched).code, fresh) < cost(measure_digits(code, photos).code, fresh) - 0.3


def test_a_single_photo_is_refused():
    code, draw, _ = CASES["smooth digits"]
    with pytest.raises(ImageError):
        measure_digits(code, photos_of(code, draw, 1, 0))
