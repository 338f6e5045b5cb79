"""Tokens of the pyramid to bytes and back."""

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
from bitstream.pyramid_tokens import Level, PyramidCode, complete_prefix, fingerprint
from bitstream.range_coder import encode_tokens, fit_tokens
from tests.helpers import reference_decoder
from tests.helpers.tokens import random_digits


def random_tokens(code, width, height, seed):
    layout = code.layout(width, height)
    digits = random_digits(code, layout, seed)
    return layout, digits, code.sequence(complete_prefix(layout, digits))


def assert_prefix(prefix, digits, length):
    """Known tokens have the digits that were sent; all others are 0."""
    assert prefix.length == length
    for read, known, sent in zip(prefix.digits, prefix.known, digits, strict=True):
        assert np.array_equal(read, sent * known)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def test_golden_bytes(small_code):
    """Exact bytes of fixed tokens under fixed tables. A change here breaks all existing files."""
    layout, _, sequence = random_tokens(small_code, 50, 40, 1)
    assert encode_tokens(sequence, 9).hex() == "8c187674d3be"
    assert digest(encode_tokens(sequence, layout.tokens)) == "a4052f159be6946a7446b60ac1dd8458"


def test_golden_contexts(small_code):
    layout, digits, _ = random_tokens(small_code, 300, 200, 2)
    contexts = [small_code.contexts(layout, i, digits[:i]) for i in range(4)]
    assert [digest(level.tobytes())[:16] for level in contexts] == [
        "2fe2cb1b5d7405a2",
        "bd7ead31fbb42644",
        "eda40d19d9fd40f4",
        "db61c53910f29ad9",
    ]
    assert all(len(np.unique(level)) > 1 for level in contexts[1:])


def test_golden_fingerprint(small_code):
    assert fingerprint(small_code, [b"more"]).hex()[:32] == "ac1f6bfd87719357c7a08e2f066d3ac3"
    assert fingerprint(small_code, [b"mor", b"e"]) != fingerprint(small_code, [b"more"])


def test_golden_checkerboard(checkerboard_code):
    code = checkerboard_code
    layout, digits, sequence = random_tokens(code, 300, 200, 4)
    contexts = [code.entropy_models[i].contexts(code.planes(layout, i, digits[:i])) for i in range(6)]
    for i, of_all in enumerate(contexts):  # of a level, only its own tokens are computed
        assert np.array_equal(code.contexts(layout, i, digits[:i]), of_all * layout.masks[i])
    assert digest(b"".join(level.tobytes() for level in contexts)) == "e1ab17a64ac1501827d26f25a676dcb1"
    assert digest(encode_tokens(sequence, layout.tokens)) == "44197db62eff1acd409b09098d32adde"
    assert fingerprint(code, []).hex()[:32] == "f26e0e3b93140ece5504ed7b5da69083"


def test_the_reference_decoder_agrees(checkerboard_code):
    layout, digits, sequence = random_tokens(checkerboard_code, 90, 70, 5)
    length = layout.tokens - 3
    payload = encode_tokens(sequence, length)
    arrays = {}
    for index, model in enumerate(checkerboard_code.entropy_models):
        stored = {"shifts": [layer.shift for layer in model.layers], "frequencies": model.frequencies, "costs": model.costs}
        for depth, layer in enumerate(model.layers):
            stored |= {f"{depth}.weight": layer.weight, f"{depth}.bias": layer.bias}
        arrays |= {f"prior.{index}.{name}": np.array(array) for name, array in stored.items()}
    levels = [asdict(level) for level in checkerboard_code.levels]
    read = reference_decoder.decode(write_file(File(90, 70, b"\0\0", length, payload)), levels, arrays)
    prefix = checkerboard_code.decode(layout, payload, length)
    assert sum(int(known.sum()) for known in prefix.known) == length
    assert_prefix(prefix, digits, length)
    for expected, level in zip(read, prefix.digits, strict=True):
        assert np.array_equal(expected, level)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32), st.floats(0, 1))
def test_tokens_to_bytes_to_tokens(made_up_code, width, height, seed, share):
    layout, digits, sequence = random_tokens(made_up_code, width, height, seed)
    length = round(share * layout.tokens)
    payload = encode_tokens(sequence, length)
    assert_prefix(made_up_code.decode(layout, payload, length), digits, length)
    assert len(payload) <= sequence.bits()[:length].sum() / 8 + 4
    if payload:
        assert payload[-1] != 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32))
def test_a_longer_part_of_a_payload_has_at_least_as_many_certain_tokens(made_up_code, width, height, seed):
    layout, digits, sequence = random_tokens(made_up_code, width, height, seed)
    payload = encode_tokens(sequence, layout.tokens)
    before = 0
    for size in range(len(payload)):
        prefix = made_up_code.decode(layout, payload[:size], layout.tokens, partial=True)
        assert_prefix(prefix, digits, prefix.length)
        assert before <= prefix.length < layout.tokens
        before = prefix.length
        spent = sequence.bits()[: prefix.length + 1].sum()
        assert spent > 8 * size - 24, "a token that the bytes determine was not read"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 120))
def test_a_budget_is_filled_exactly(made_up_code, width, height, seed, budget):
    layout, _, sequence = random_tokens(made_up_code, width, height, seed)
    length, payload = fit_tokens(sequence, budget)
    assert len(payload) <= budget
    assert payload == encode_tokens(sequence, length)
    if length < layout.tokens:
        assert len(encode_tokens(sequence, length + 1)) > budget


def test_a_budget_is_met_even_if_the_coder_loses_many_bytes():
    """It loses a little with every digit, and here are two million."""
    frequencies = np.array([[1 << 20, (1 << 24) - (1 << 21), 1 << 20]], np.int32)
    layer = IntegerLayer(np.zeros((32, 1, 1, 1), np.int16), np.zeros(32, np.int64), 0)
    code = PyramidCode((Level(16, 32, 1),), (LevelEntropyModel((layer,), frequencies, np.array([100], np.int32)),))
    _, _, sequence = random_tokens(code, 4096, 4096, 5)
    for share in (0.4, 0.9):
        budget = int(share * sequence.bits().sum() / 8)
        length, payload = fit_tokens(sequence, budget)
        assert len(payload) <= budget < len(encode_tokens(sequence, length + 1))
        assert payload == encode_tokens(sequence, length)


@pytest.mark.parametrize("max_weight", [20, 300, 32767])  # sums of the last are far above 2^24, beyond which float32 rounds
@pytest.mark.parametrize("kernels", [(3, 1), (1, 3, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 6)])
def test_contexts_equal_those_of_integer_arithmetic(max_weight, kernels, size):
    rng = np.random.default_rng(max_weight)
    width, digits, tables = 24, 5, 200
    planes = rng.integers(0, 128, (width // 2, *size)).astype(np.int8)
    planes = np.concatenate([planes, planes[::-1]])  # each plane twice: with weights of both signs, most sums are not clipped
    layers = []
    for depth, kernel in enumerate(kernels):
        last = depth == len(kernels) - 1
        weight = rng.integers(1, max_weight + 1, (digits if last else width, width // 2, kernel, kernel))
        weight = np.concatenate([weight, -weight[:, ::-1]], 1)
        weight[:, :2] -= rng.integers(0, 2, weight[:, :2].shape)
        shift = int(np.log2(max_weight * 4 * width * kernel**2)) if depth else 0  # so that few of the next values are clipped
        bias = rng.integers(0, 2000, len(weight)) << shift
        layers.append(IntegerLayer(weight.astype(np.int16), bias, shift + 4 * last))
    model = LevelEntropyModel(tuple(layers), np.ones((tables, 3), np.int32), np.zeros(tables, np.int32))
    arrays = {f"prior.0.{i}.{name}": getattr(layer, name) for i, layer in enumerate(layers) for name in ("weight", "bias")}
    arrays |= {"prior.0.shifts": np.array([layer.shift for layer in layers]), "prior.0.costs": model.costs}
    expected = reference_decoder.contexts_of(arrays, 0, planes.astype(np.int64))
    assert np.array_equal(model.contexts(planes), expected)
    assert len(np.unique(expected)) > 2
    anchors = np.add.outer(*map(np.arange, size)) % 2 == 0
    assert np.array_equal(model.contexts(planes, (0,)), expected * anchors)
    assert np.array_equal(model.contexts(planes, (1,)), expected * ~anchors)


def test_strips_of_a_large_grid_give_the_same_contexts_and_bytes(made_up_code, monkeypatch):
    layout, digits, sequence = random_tokens(made_up_code, 700, 500, 3)
    monkeypatch.setattr("bitstream.entropy_model.STRIP", 50)
    monkeypatch.setattr("bitstream.pyramid_tokens.CHUNK", 64)
    again = made_up_code.sequence(complete_prefix(layout, digits))
    for a, b in zip(again.contexts + again.symbols, sequence.contexts + sequence.symbols, strict=True):
        assert np.array_equal(a, b)
    payload = encode_tokens(again, layout.tokens)
    assert payload == encode_tokens(sequence, layout.tokens)
    assert_prefix(made_up_code.decode(layout, payload, layout.tokens), digits, layout.tokens)


def test_random_bytes_end_in_an_error_or_in_tokens(made_up_code):
    layout = made_up_code.layout(100, 100)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        try:
            prefix = made_up_code.decode(layout, rng.bytes(30), layout.tokens)
            assert prefix.length == layout.tokens
        except FormatError:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize("parts", [(0, 0, 2, 1, 1, 2), (0, 0, 1, 2, 2, 2), (0, 0, 1, 2, 1, 3)])
def test_parts_that_are_not_pairs_of_a_checkerboard_are_refused(checkerboard_code, parts):
    levels = tuple(replace(level, part=part) for level, part in zip(checkerboard_code.levels, parts, strict=True))
    with pytest.raises(ModelError):
        PyramidCode(levels, checkerboard_code.entropy_models)


@pytest.mark.parametrize("change", ["sum", "zero", "shape", "count"])
def test_an_entropy_model_that_does_not_fit_is_refused(small_code, change):
    first = small_code.entropy_models[0]
    frequencies = first.frequencies.copy()
    if change == "sum":
        frequencies[0, 0] += 1
    elif change == "zero":
        frequencies[0, 1] += frequencies[0, 0]
        frequencies[0, 0] = 0
    elif change == "shape":
        frequencies = frequencies[:, :-1]
    models = (LevelEntropyModel(first.layers, frequencies, first.costs), *small_code.entropy_models[1:])
    with pytest.raises(ModelError):
        PyramidCode(small_code.levels, models[:-1] if change == "count" else models)
