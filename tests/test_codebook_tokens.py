"""Tokens that are codebook indices: their order and their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.codebook_tokens import CodebookCode, CodebookLayout, complete_prefix, uniform_code
from bitstream.entropy_model import frequencies_of
from bitstream.errors import FormatError, ModelError
from bitstream.range_coder import encode_tokens, fit_tokens


@pytest.fixture(scope="module", params=["uniform", "position", "conditioned"])
def code(request):
    """Seven tokens per block, 50 indices: one table, one per position, or one per position and class of the token before."""
    rng = np.random.default_rng(3)
    if request.param == "uniform":
        return uniform_code(7, 50)
    if request.param == "position":
        tables = frequencies_of(rng.random((7, 50)) ** 3)
        return CodebookCode(tables, np.arange(7, dtype=np.int32)[:, None], np.zeros(50, np.uint8))
    tables = frequencies_of(rng.random((9, 50)) ** 3)
    return CodebookCode(tables, rng.integers(0, 9, (7, 3)).astype(np.int32), rng.integers(0, 3, 50).astype(np.uint8))


def random_indices(code, rows, columns, seed):
    indices = np.random.default_rng(seed).integers(0, code.values, (code.block_tokens, rows, columns)).astype(np.int32)
    return indices, sequence_of(code, indices)


def layout_of(code, rows, columns) -> CodebookLayout:
    return code.layout(columns * code.side, rows * code.side)


def sequence_of(code, indices):
    return code.sequence(complete_prefix(layout_of(code, *indices.shape[1:]), indices))


def assert_prefix(tokens, indices, length):
    """The first tokens in the order in which they are sent have the indices that were sent; all others are 0."""
    assert tokens.length == length
    known = np.arange(len(indices))[:, None, None] < tokens.block_lengths
    assert known.sum() == length
    assert np.array_equal(tokens.indices, indices * known)


def test_every_prefix_covers_all_blocks():
    """No block is more than one token ahead of another, and those ahead are distributed over the image."""
    code = uniform_code(5, 16)
    indices, sequence = random_indices(code, 4, 8, 0)
    for length in range(0, indices.size + 1, 3):
        lengths = code.decode(layout_of(code, 4, 8), encode_tokens(sequence, length), length).block_lengths
        assert lengths.sum() == length
        assert lengths.max() - lengths.min() <= 1
    eight = code.decode(layout_of(code, 4, 8), encode_tokens(sequence, 8), 8).block_lengths
    assert (eight.reshape(2, 2, 4, 2).sum((1, 3)) == 1).all(), "every 2x2 blocks should have one of the first eight tokens"


def test_uniform_tables_cost_twelve_bits_per_token():
    indices, sequence = random_indices(uniform_code(256, 4096), 1, 1, 0)
    assert (sequence.bits() == 12).all()
    assert len(encode_tokens(sequence, indices.size)) in range(256 * 12 // 8 - 1, 256 * 12 // 8 + 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32), st.floats(0, 1))
def test_indices_to_bytes_to_indices(code, rows, columns, seed, share):
    indices, sequence = random_indices(code, rows, columns, seed)
    length = round(share * indices.size)
    payload = encode_tokens(sequence, length)
    assert_prefix(code.decode(layout_of(code, rows, columns), payload, length), indices, length)
    assert len(payload) <= sequence.bits()[:length].sum() / 8 + 4


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_a_longer_part_of_a_payload_has_at_least_as_many_certain_tokens(code, rows, columns, seed):
    indices, sequence = random_indices(code, rows, columns, seed)
    payload = encode_tokens(sequence, indices.size)
    before = 0
    for size in range(len(payload)):
        tokens = code.decode(layout_of(code, rows, columns), payload[:size], indices.size, partial=True)
        assert_prefix(tokens, indices, tokens.length)
        assert before <= tokens.length < indices.size
        before = tokens.length
        assert sequence.bits()[: tokens.length + 1].sum() > 8 * size - 32, "a token that the bytes determine was not read"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_a_budget_is_filled_exactly(code, seed, budget):
    indices, sequence = random_indices(code, 2, 3, seed)
    length, payload = fit_tokens(sequence, budget)
    assert len(payload) <= budget
    assert payload == encode_tokens(sequence, length)
    if length < indices.size:
        assert len(encode_tokens(sequence, length + 1)) > budget


def test_chunks_of_a_position_give_the_same_bytes(code, monkeypatch):
    indices, sequence = random_indices(code, 5, 5, 1)
    payload = encode_tokens(sequence, indices.size)
    monkeypatch.setattr("bitstream.codebook_tokens.CHUNK", 3 * code.values)
    assert encode_tokens(sequence_of(code, indices), indices.size) == payload
    assert_prefix(code.decode(layout_of(code, 5, 5), payload, indices.size), indices, indices.size)


def test_golden_bytes():
    """Exact bytes of fixed tokens under fixed tables. A change here breaks existing files of this family."""
    tables = frequencies_of(1 / (1 + (np.arange(4)[:, None] * 5 + np.arange(50)) % 50))
    code = CodebookCode(tables, (np.arange(14, dtype=np.int32) % 4).reshape(7, 2), (np.arange(50) % 2).astype(np.uint8))
    indices = (np.arange(42, dtype=np.int32).reshape(7, 2, 3) * 7919) % 50
    payload = encode_tokens(sequence_of(code, indices), 42)
    assert encode_tokens(sequence_of(code, indices), 8).hex() == "35b9d8d800be"
    assert hashlib.sha256(payload).hexdigest()[:16] == "4d64725652d41177"


def test_random_bytes_end_in_an_error_or_in_tokens(code):
    """The intervals of the symbols fill the range up to rounding, so most bytes stand for tokens."""
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(200):
        try:
            tokens = code.decode(layout_of(code, 2, 2), rng.bytes(24), 28)
        except FormatError:
            continue
        assert tokens.length == 28
        assert 0 <= tokens.indices.min() <= tokens.indices.max() < code.values
        read += 1
    assert read > 100


def test_the_fingerprint_covers_tables_and_how_they_are_picked(code):
    other = frequencies_of(np.arange(1.0, len(code.tables) * 50 + 1).reshape(-1, 50))
    changed = [
        replace(code, tables=other),
        replace(code, table_of=code.table_of[:-1]),
        CodebookCode(code.tables, np.repeat(code.table_of, 4, 1)[:, :4], 3 - code.classes),
    ]
    assert len({c.fingerprint for c in (code, *changed)}) == 4


@pytest.mark.parametrize("change", ["sum", "zero", "class", "table", "shape"])
def test_tables_that_do_not_fit_are_refused(code, change):
    tables, table_of, classes = code.tables.copy(), code.table_of.copy(), code.classes.copy()
    if change == "sum":
        tables[0, 0] += 1
    elif change == "zero":
        tables[0, 1] += tables[0, 0]
        tables[0, 0] = 0
    elif change == "class":
        classes[4] = code.table_of.shape[1]
    elif change == "table":
        table_of[3] = len(tables)
    else:
        classes = classes[:-1]
    with pytest.raises(ModelError):
        CodebookCode(tables, table_of, classes)


@pytest.mark.parametrize("wrong", [np.full((7, 1, 1), 50), np.full((7, 1, 1), -1), np.zeros((6, 1, 1), int)])
def test_indices_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        sequence_of(uniform_code(7, 50), wrong)
