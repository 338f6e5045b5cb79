from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.container import File, write_file
from bitstream.entropy_model import IntegerLayer, LevelEntropyModel
from bitstream.errors import FormatError, ModelError
from bitstream.pyramid_tokens import Level, PyramidCode, fingerprint, whole_of
from bitstream.range_coder import encode_tokens, fit_tokens
from tests.helpers import reference_decoder as reference
from tests.helpers.tokens import random_digits


def made(code, width, height, seed):
    layout = code.layout(width, height)
    digits = random_digits(code, layout, seed)
    return layout, digits, code.sequence(whole_of(layout, digits))


def assert_prefix(tokens, digits, length):
    """Known tokens carry the digits that were sent; the others are blank."""
    assert tokens.length == length
    for read, known, sent in zip(tokens.digits, tokens.known, digits, strict=True):
        assert np.array_equal(read, sent * known)


def test_golden_words(small_code):
    """Exact bytes of fixed tokens under fixed tables: a change here breaks every file there is."""
    layout, _, sequence = made(small_code, 50, 40, 1)
    assert encode_tokens(sequence, 9).hex() == "8c187674d3be"
    assert hashlib.sha256(encode_tokens(sequence, layout.tokens)).hexdigest()[:32] == "a4052f159be6946a7446b60ac1dd8458"


def test_golden_classes(small_code):
    layout, digits, _ = made(small_code, 300, 200, 2)
    classes = [small_code.classes(layout, i, digits[:i]) for i in range(4)]
    assert [hashlib.sha256(c.tobytes()).hexdigest()[:16] for c in classes] == [
        "2fe2cb1b5d7405a2",
        "bd7ead31fbb42644",
        "eda40d19d9fd40f4",
        "db61c53910f29ad9",
    ]
    assert all(len(np.unique(c)) > 1 for c in classes[1:])


def test_golden_fingerprint(small_code):
    assert fingerprint(small_code, [b"more"]).hex()[:32] == "ac1f6bfd87719357c7a08e2f066d3ac3"
    assert fingerprint(small_code, [b"mor", b"e"]) != fingerprint(small_code, [b"more"])


def test_golden_halves(halves_code):
    layout, digits, sequence = made(halves_code, 300, 200, 4)
    classes = [halves_code.priors[i].classes(halves_code.context(layout, i, digits[:i])) for i in range(6)]
    for i, whole in enumerate(classes):  # of a half, only its own tokens are looked at
        assert np.array_equal(halves_code.classes(layout, i, digits[:i]), whole * layout.mask(i))
    assert hashlib.sha256(b"".join(c.tobytes() for c in classes)).hexdigest()[:32] == "e1ab17a64ac1501827d26f25a676dcb1"
    assert hashlib.sha256(encode_tokens(sequence, layout.tokens)).hexdigest()[:32] == "44197db62eff1acd409b09098d32adde"
    assert fingerprint(halves_code, []).hex()[:32] == "f26e0e3b93140ece5504ed7b5da69083"


def test_a_second_decoder_agrees_on_halves(halves_code):
    layout, digits, sequence = made(halves_code, 90, 70, 5)
    data = write_file(File(90, 70, b"\0\0", layout.tokens - 3, encode_tokens(sequence, layout.tokens - 3)))
    arrays = {}
    for index, prior in enumerate(halves_code.priors):
        parts = {"shifts": [layer.shift for layer in prior.layers], "frequencies": prior.frequencies, "costs": prior.costs}
        for depth, layer in enumerate(prior.layers):
            parts |= {f"{depth}.weight": layer.weight, f"{depth}.bias": layer.bias}
        arrays |= {f"prior.{index}.{name}": np.array(part) for name, part in parts.items()}
    read = reference.decode(data, [asdict(level) for level in halves_code.levels], arrays)
    tokens = halves_code.decode(layout, encode_tokens(sequence, layout.tokens - 3), layout.tokens - 3)
    for index, level in enumerate(read):
        assert np.array_equal(level, tokens.digits[index])
        assert np.array_equal(level[:, ~layout.mask(index)], digits[index][:, ~layout.mask(index)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32), st.floats(0, 1))
def test_tokens_to_bytes_to_tokens(made_up_code, width, height, seed, share):
    layout, digits, sequence = made(made_up_code, width, height, seed)
    length = round(share * layout.tokens)
    payload = encode_tokens(sequence, length)
    assert_prefix(made_up_code.decode(layout, payload, length), digits, length)
    assert len(payload) <= sequence.bits()[:length].sum() / 8 + 4
    if payload:
        assert payload[-1] != 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32))
def test_every_cut_gives_certain_tokens_and_never_fewer_than_a_shorter_cut(made_up_code, width, height, seed):
    layout, digits, sequence = made(made_up_code, width, height, seed)
    payload = encode_tokens(sequence, layout.tokens)
    before = 0
    for size in range(len(payload)):
        tokens = made_up_code.decode(layout, payload[:size], layout.tokens, partial=True)
        assert_prefix(tokens, digits, tokens.length)
        assert before <= tokens.length < layout.tokens
        before = tokens.length
        spent = sequence.bits()[: tokens.length + 1].sum()
        assert spent > 8 * size - 24, "a token that the bytes hold was not read"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 120))
def test_fits_a_budget_exactly(made_up_code, width, height, seed, budget):
    layout, _, sequence = made(made_up_code, width, height, seed)
    length, payload = fit_tokens(sequence, budget)
    assert len(payload) <= budget
    assert payload == encode_tokens(sequence, length)
    if length < layout.tokens:
        assert len(encode_tokens(sequence, length + 1)) > budget


@pytest.mark.parametrize("most", [20, 300, 32767])  # of weights: the sums of the last go far above 2^24, where float32 rounds
@pytest.mark.parametrize("kernels", [(3, 1), (1, 3, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 6)])
def test_classes_are_those_of_integers(most, kernels, size):
    rng = np.random.default_rng(most)
    wide, digits, classes = 24, 5, 200
    context = rng.integers(0, 128, (wide // 2, *size)).astype(np.int8)
    context = np.concatenate([context, context[::-1]])  # twice the same: weights of both signs leave sums that are not clipped
    layers = []
    for place, kernel in enumerate(kernels):
        last = place == len(kernels) - 1
        weight = rng.integers(1, most + 1, (digits if last else wide, wide // 2, kernel, kernel))
        weight = np.concatenate([weight, -weight[:, ::-1]], 1)
        weight[:, :2] -= rng.integers(0, 2, weight[:, :2].shape)
        shift = int(np.log2(most * 4 * wide * kernel**2)) if place else 0  # so that the next values are not all clipped, either
        bias = rng.integers(0, 2000, len(weight)) << shift
        layers.append(IntegerLayer(weight.astype(np.int16), bias, shift + 4 * last))
    prior = LevelEntropyModel(tuple(layers), np.ones((classes, 3), np.int32), np.zeros(classes, np.int32))
    arrays = {f"prior.0.{i}.{name}": getattr(layer, name) for i, layer in enumerate(layers) for name in ("weight", "bias")}
    arrays |= {"prior.0.shifts": np.array([layer.shift for layer in layers]), "prior.0.costs": prior.costs}
    expected = reference.classes_of(arrays, 0, context.astype(np.int64))
    assert np.array_equal(prior.classes(context), expected)
    assert len(np.unique(expected)) > 2
    even = np.add.outer(*map(np.arange, size)) % 2 == 0
    assert np.array_equal(prior.classes(context, (0,)), expected * even)
    assert np.array_equal(prior.classes(context, (1,)), expected * ~even)


def test_a_budget_is_met_where_the_coder_loses_more_than_a_few_bytes():
    """It loses a little with every digit, and here are two million."""
    frequencies = np.array([[1 << 20, (1 << 24) - (1 << 21), 1 << 20]], np.int32)
    layer = IntegerLayer(np.zeros((32, 1, 1, 1), np.int16), np.zeros(32, np.int64), 0)
    code = PyramidCode((Level(16, 32, 1),), (LevelEntropyModel((layer,), frequencies, np.array([100], np.int32)),))
    _, _, sequence = made(code, 4096, 4096, 5)
    for share in (0.4, 0.9):
        budget = int(share * sequence.bits().sum() / 8)
        length, payload = fit_tokens(sequence, budget)
        assert len(payload) <= budget < len(encode_tokens(sequence, length + 1))
        assert payload == encode_tokens(sequence, length)


def test_strips_of_a_large_grid_give_the_same_classes(made_up_code, monkeypatch):
    layout, digits, sequence = made(made_up_code, 700, 500, 3)
    monkeypatch.setattr("bitstream.entropy_model.STRIP", 50)
    monkeypatch.setattr("bitstream.pyramid_tokens.CHUNK", 64)
    again = made_up_code.sequence(whole_of(layout, digits))
    for a, b in zip(again.classes + again.symbols, sequence.classes + sequence.symbols, strict=True):
        assert np.array_equal(a, b)
    assert encode_tokens(again, layout.tokens) == encode_tokens(sequence, layout.tokens)


def test_random_bytes_end_in_an_error_or_in_tokens(made_up_code):
    layout = made_up_code.layout(100, 100)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        try:
            tokens = made_up_code.decode(layout, rng.bytes(30), layout.tokens)
            assert tokens.length == layout.tokens
        except FormatError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("parts", [(0, 0, 2, 1, 1, 2), (0, 0, 1, 2, 2, 2), (0, 0, 1, 2, 1, 3)])
def test_halves_that_make_no_grid_are_refused(halves_code, parts):
    levels = tuple(replace(level, part=part) for level, part in zip(halves_code.levels, parts, strict=True))
    with pytest.raises(ModelError, match=r"half|part 3"):
        PyramidCode(levels, halves_code.priors)


@pytest.mark.parametrize("change", ["sum", "zero", "shape", "count"])
def test_a_prior_that_does_not_fit_is_refused(small_code, change):
    first = small_code.priors[0]
    frequencies = first.frequencies.copy()
    if change == "sum":
        frequencies[0, 0] += 1
    elif change == "zero":
        frequencies[0, 1] += frequencies[0, 0]
        frequencies[0, 0] = 0
    elif change == "shape":
        frequencies = frequencies[:, :-1]
    priors = (LevelEntropyModel(first.layers, frequencies, first.costs), *small_code.priors[1:])
    with pytest.raises(ModelError):
        PyramidCode(small_code.levels, priors[:-1] if change == "count" else priors)
