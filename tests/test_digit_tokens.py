"""Tokens of digits, in rows and on grids: their order and their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.container import File, read_file, write_file
from bitstream.digit_tokens import DigitCode, complete_prefix, digit_code, fill_unknown, grid_code
from bitstream.entropy_model import frequencies_of
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import encode_tokens, fit_tokens
from codec.errors import TruncatedError
from codec.reading import read_tokens
from tests.helpers import reference_decoder
from tests.helpers.digits import made_up_code, random_digits

FSQ = (8, 8, 8, 5, 5, 5)
CODES = {
    "uniform FSQ in rows": digit_code(FSQ, 7),
    "uniform codebook in rows": digit_code((600,), 5),
    "uniform bits on a grid": grid_code((2,) * 10, 16),
    "uniform codebook on a grid": grid_code((3000,), 8),
    "FSQ in rows": made_up_code(FSQ),
    "unchained FSQ in rows": made_up_code(FSQ, chained=False),
    "codebook in rows": made_up_code((700,)),
    "small codebook in rows": made_up_code((40,)),
    "bits on a grid": made_up_code((2,) * 9, 16),
    "FSQ on a grid": made_up_code(FSQ, 8, chained=False),
    "codebook on a grid": made_up_code((1024,), 16),
}


@pytest.fixture(scope="module", params=CODES.values(), ids=CODES.keys())
def code(request):
    return request.param


def layout_of(code, columns=10, rows=6):
    """A few cells, or two by three blocks and more."""
    side = code.cell or code.side // 4
    return code.layout(columns * side - 1, rows * side - 3)


def sequence_of(code, layout, seed):
    digits = random_digits(code, layout, seed)
    return digits, code.sequence(complete_prefix(layout, digits))


def assert_prefix(prefix, digits, length):
    """The known tokens have the digits that were sent; all others are 0."""
    assert prefix.length == prefix.known.sum() == length
    assert np.array_equal(prefix.digits, digits * prefix.known)


def test_every_part_of_a_payload_decodes_to_the_first_tokens(code):
    layout = layout_of(code)
    digits, sequence = sequence_of(code, layout, 0)
    payload, spent = encode_tokens(sequence, layout.tokens), sequence.bits().cumsum()
    before = 0
    for size in range(len(payload)):
        prefix = code.decode(layout, payload[:size], layout.tokens, partial=True)
        assert_prefix(prefix, digits, prefix.length)
        assert before <= prefix.length < layout.tokens
        assert np.array_equal(sequence.first(prefix.length).digits, prefix.digits)
        assert spent[prefix.length] > 8 * size - 48, "a token that the bytes determine was not read"
        before = prefix.length
    assert_prefix(code.decode(layout, payload, layout.tokens), digits, layout.tokens)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32), st.floats(0, 1))
def test_digits_to_bytes_to_digits(code, columns, rows, seed, share):
    layout = layout_of(code, columns, rows)
    digits, sequence = sequence_of(code, layout, seed)
    length = round(share * layout.tokens)
    payload = encode_tokens(sequence, length)
    assert_prefix(code.decode(layout, payload, length), digits, length)
    assert len(payload) <= sequence.bits()[:length].sum() / 8 + 4


def test_the_reference_decoder_agrees(code):
    layout = layout_of(code)
    digits, sequence = sequence_of(code, layout, 1)
    length = layout.tokens - 3
    data = write_file(File(layout.width, layout.height, b"\0\0", length, encode_tokens(sequence, length)))
    arrays = {name: getattr(code, name) for name in ("tables", "picks", "classes", "ranks")}
    read = reference_decoder.decode_digits(data, list(code.levels), arrays, code.cell or 0, code.side)
    assert len(read) == length
    assert {position: digits[:, *position].tolist() for position in read} == read
    assert set(read) == set(zip(*np.nonzero(sequence.first(length).known), strict=True))


def test_a_cut_file_is_read_up_to_the_cut(code):
    layout = layout_of(code)
    digits, sequence = sequence_of(code, layout, 2)
    data = write_file(File(layout.width, layout.height, b"\0\0", layout.tokens, encode_tokens(sequence, layout.tokens)))
    file = read_file(data[:-9])
    with pytest.raises(TruncatedError):
        read_tokens(file, code)
    prefix = read_tokens(file, code, allow_partial=True)
    assert 0 < prefix.length < layout.tokens
    assert_prefix(prefix, digits, prefix.length)
    with pytest.raises(FormatError):
        read_tokens(read_file(data[:-4] + bytes([data[-4] ^ 16]) + data[-3:]), code)


@pytest.mark.parametrize("budget", [0, 3, 20, 90])
def test_a_budget_is_filled_exactly(code, budget):
    _, sequence = sequence_of(code, layout_of(code), 3)
    length, payload = fit_tokens(sequence, budget)
    assert payload == encode_tokens(sequence, length)
    assert len(payload) <= budget
    assert length == len(sequence.symbols) or len(encode_tokens(sequence, length + 1)) > budget


def test_random_bytes_end_in_an_error_or_in_tokens(code):
    layout = layout_of(code, 3, 3)
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(30):
        payload = rng.bytes(layout.tokens * 2)
        partial = code.decode(layout, payload, layout.tokens, partial=True)
        try:
            prefix = code.decode(layout, payload, layout.tokens)
        except FormatError:
            assert partial.length < layout.tokens
            continue
        assert prefix.digits.min() >= 0
        assert (prefix.digits.reshape(len(code.levels), -1).max(1) < code.levels).all()
        read += 1
    assert read > 15 or code.classes.size, "tables that depend on other tokens may have values that no digit has"


def test_symbols_that_stand_for_no_digit_are_refused():
    """The tables have the same number of values for all symbols, of which some levels are fewer."""
    for levels, wrong in (((8, 5), [0, 5]), ((600,), [18, 24])):
        code = digit_code(levels, 3)
        layout = code.layout(256, 256)
        sequence = sequence_of(code, layout, 0)[1]
        sequence.symbols[1] = wrong
        payload = encode_tokens(sequence, 3)
        with pytest.raises(FormatError):
            code.decode(layout, payload, 3)
        assert code.decode(layout, payload, 3, partial=True).length == 1


@pytest.mark.parametrize(
    ("levels", "bits"), [(FSQ, np.log2(64000)), ((2,) * 18, 18), ((262144,), 18), ((1000,), np.log2(1024))]
)
def test_uniform_tables_cost_the_logarithm_of_the_levels(levels, bits):
    for code in (digit_code(levels, 16), grid_code(levels, 16)):
        layout = code.layout(300, 300)
        assert sequence_of(code, layout, 0)[1].bits().mean() == pytest.approx(bits, abs=0.1)


def test_chunks_give_the_same_bytes(code, monkeypatch):
    layout = layout_of(code)
    digits, sequence = sequence_of(code, layout, 4)
    payload = encode_tokens(sequence, layout.tokens)
    monkeypatch.setattr("bitstream.digit_tokens.CHUNK", 3 * len(code.symbol_levels) * code.tables.shape[1])
    assert encode_tokens(sequence, layout.tokens) == payload
    assert_prefix(code.decode(layout, payload, layout.tokens), digits, layout.tokens)


GOLDEN = {
    "FSQ in rows": "4bee91b186273694",
    "codebook in rows": "971fc9085c4098d6",
    "bits on a grid": "6f49b56eae7a1cec",
    "codebook on a grid": "58a491acc2b9ba40",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name):
    """Exact bytes of fixed tokens under fixed tables. A change here breaks existing files of these models."""
    code = CODES[name]
    layout = layout_of(code)
    numbers = np.arange(len(code.levels) * layout.tokens, dtype=np.int32) * 7919
    digits = numbers.reshape(-1, *layout.shape) % np.array(code.levels).reshape(-1, *[1] * len(layout.shape))
    payload = encode_tokens(code.sequence(complete_prefix(layout, digits)), layout.tokens)
    assert hashlib.sha256(code.fingerprint + payload).hexdigest()[:16] == GOLDEN[name]


def test_tokens_survive_as_arrays(code):
    layout = layout_of(code)
    digits, sequence = sequence_of(code, layout, 5)
    prefix = sequence.first(layout.tokens // 2)
    arrays, types = code.to_arrays(prefix), code.array_types(layout)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == types
    assert_prefix(code.from_arrays(layout, arrays), digits, prefix.length)
    arrays["digits"] = arrays["digits"] + code.levels[0]
    with pytest.raises(FormatError):
        code.from_arrays(layout, arrays)


def test_grid_tokens_are_counted_per_block_of_256_pixels():
    layout = grid_code((2,), 16).layout(640, 480)
    assert layout.tokens == 40 * 30
    assert layout.length_of(256) == 1200
    assert layout.length_of(64) == 300
    assert layout.length_of(0.01) == 1
    assert layout.block_tokens_of(300) == 64
    assert grid_code((2,), 8).block_tokens == 1024


def test_the_first_cells_cover_the_whole_grid():
    layout = grid_code((2,), 16).layout(16 * 16, 16 * 8)
    known = complete_prefix(layout, np.zeros((1, 8, 16), np.int32))
    quarter = replace(known, length=32).known
    assert (quarter.reshape(4, 2, 8, 2).sum((1, 3)) == 1).all()


@pytest.mark.parametrize("length", [1, 5, 40, 200])
def test_unknown_cells_copy_the_nearest_known_one(length):
    code = grid_code((9,), 16)
    layout = code.layout(16 * 19, 16 * 13)
    digits, sequence = sequence_of(code, layout, 1)
    prefix = sequence.first(length)
    filled = fill_unknown(prefix.digits, prefix.known)
    rows, columns = np.nonzero(prefix.known)
    for y, x in np.ndindex(layout.shape):
        nearest = (np.square(rows - y) + np.square(columns - x)).argmin()
        assert filled[0, y, x] == digits[0, rows[nearest], columns[nearest]]


def test_the_fingerprint_covers_all_that_gives_tokens_their_meaning():
    code = CODES["codebook on a grid"]
    changed = [
        replace(code, tables=code.tables[:, ::-1]),
        replace(code, picks=code.picks * np.array([1, 0, 0], np.int32)),
        replace(code, classes=code.classes[:2]),
        replace(code, ranks=code.ranks[::-1]),
        replace(code, cell=8),
        replace(CODES["small codebook in rows"], levels=(40,)),
    ]
    assert len({other.fingerprint for other in (code, *changed)}) == 7


BROKEN = {
    "a sum": {"tables": frequencies_of(np.ones((20, 32)))[:, ::-1] + 1},
    "a shape": {"tables": frequencies_of(np.ones((80, 31)))},
    "a table": {"picks": np.full((13, 2, 3), 900, np.int32)},
    "a chain": {"picks": np.ones((13, 2, 3), np.int32)},
    "passes": {"picks": np.zeros((12, 2, 3), np.int32)},
    "classes": {"classes": np.full((1, 2, 32), 900, np.int32)},
    "neighbours": {"classes": np.zeros((5, 2, 32), np.int32)},
    "ranks": {"ranks": np.zeros(1024, np.int32)},
    "cells": {"cell": 24},
    "no digits": {"levels": ()},
    "a type": {"ranks": np.arange(1024)},
    "two large digits": {"levels": (1024, 2)},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN.keys())
def test_tables_that_do_not_fit_are_refused(change):
    with pytest.raises(ModelError):
        replace(CODES["codebook on a grid"], **change)


@pytest.mark.parametrize("wrong", [np.full((1, 6, 10), 1024), np.full((1, 6, 10), -1), np.zeros((2, 6, 10), int)])
def test_digits_out_of_range_are_refused(wrong):
    code: DigitCode = CODES["codebook on a grid"]
    with pytest.raises(ValueError):
        code.sequence(complete_prefix(layout_of(code), wrong))
