"""How many tokens a file keeps for a quality, a size, a PSNR or an LPIPS, and what effort improves at the same rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.pyramid_tokens import QUALITY_STOPS
from bitstream.range_coder import encode_tokens
from codec.codec import Codec
from codec.errors import ModelError, TargetError, UsageError
from codec.image.source import read_source
from codec.metrics import psnr
from codec.rate_control import block_tokens_of_quality, quality_of_block_tokens, shortest


@pytest.fixture(scope="module")
def small(photo):
    return photo.crop((200, 80, 328, 208))


# The search for a target of PSNR or LPIPS


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 20), min_size=1, max_size=300),
    st.lists(st.floats(0.01, 5), min_size=1, max_size=300),
    st.floats(0, 60),
    st.booleans(),
    st.one_of(st.none(), st.integers(-5, 400)),
)
def test_the_search_finds_the_shortest_length(rises, costs, wanted, higher_is_better, guess):
    """On any rising curve the target is reached, and a length whose bits are at most 0.5 % fewer misses it."""
    count = min(len(rises), len(costs))
    curve, bits = np.cumsum(rises[:count]), np.cumsum(costs[:count])
    measured = []

    def measure(length):
        measured.append(length)
        return curve[length - 1] if higher_is_better else -curve[length - 1]

    wanted_value = wanted if higher_is_better else -wanted
    found = shortest(measure, wanted_value, bits, 1, higher_is_better=higher_is_better, guess=guess)
    assert len(measured) == len(set(measured)) <= 60
    assert found.reached == (curve[-1] >= wanted)
    assert abs(found.value) == curve[found.length - 1]
    if not found.reached:
        assert found.length == count
        return
    assert curve[found.length - 1] >= wanted
    best = int(np.searchsorted(curve, wanted)) + 1
    assert best <= found.length
    assert bits[found.length - 1] <= 1.005 * bits[max(0, best - 2)] or found.length == best


def test_the_search_starts_at_the_least_length_that_is_an_image():
    bits = np.arange(1.0, 101.0)
    assert shortest(lambda length: length, 5, bits, 30, higher_is_better=True).length == 30
    assert shortest(lambda length: length, 101, bits, 100, higher_is_better=True).length == 100


def test_a_curved_measure_takes_few_decodings():
    bits = np.linspace(50, 300_000, 8000)
    measured = []

    def measure(length):
        measured.append(length)
        return math.inf if length == 8000 else 12 + 5 * math.log10(bits[length - 1]) + math.sin(length / 50)

    found = shortest(measure, 30, bits, 1, higher_is_better=True)
    assert found.reached
    assert found.value >= 30
    assert len(measured) <= 12
    count = len(measured)
    measured.clear()
    assert shortest(measure, 30, bits, 1, higher_is_better=True, guess=found.length + 20).reached
    assert len(measured) < count


# Targets


@pytest.mark.parametrize("wanted", [18, 22, 26])
def test_target_psnr(codec, small, wanted):
    original = np.asarray(small)
    encoded = codec.encode(small, target_psnr=wanted)
    assert encoded.reached
    assert psnr(np.asarray(codec.decode(encoded.data).image), original) == pytest.approx(encoded.measured)
    assert wanted <= encoded.measured < wanted + 0.5
    sequence = codec.tokenize([small])[0]
    bits = sequence.bits().cumsum()
    for length in range(7, encoded.file.length, 7):  # no file that is much smaller reaches it, not even by chance
        if bits[length - 1] < 0.97 * bits[encoded.file.length - 1]:
            shorter = codec.write(sequence, tokens=sequence.layout.block_tokens_of(length)).data
            assert psnr(np.asarray(codec.decode(shorter).image), original) < wanted


def test_a_target_out_of_reach_gives_the_best_file(codec, small):
    encoded = codec.encode(small, target_psnr=70)
    assert not encoded.reached
    assert encoded.data == codec.encode(small, quality=100).data
    assert encoded.measured == pytest.approx(psnr(np.asarray(codec.decode(encoded.data).image), np.asarray(small)))


def test_a_target_that_every_file_reaches_gives_one_token(codec, small):
    encoded = codec.encode(small, target_psnr=3)
    assert encoded.reached
    assert encoded.file.length == 1


def test_sizes_are_not_measured(codec, small):
    encoded = codec.encode(small, target_size=300)
    assert encoded.reached
    assert encoded.measured is None


def test_target_lpips(small, lpips_weights):
    from codec.metrics.lpips import LPIPS

    codec = Codec(device="cpu", lpips_weights=lpips_weights)
    encoded = codec.encode(small, target_lpips=0.4)
    assert encoded.reached
    distance = LPIPS(lpips_weights).distance(np.asarray(codec.decode(encoded.data).image), np.asarray(small))
    assert distance == pytest.approx(encoded.measured, abs=1e-4)
    assert 0.37 < distance <= 0.4
    best = codec.encode(small, target_lpips=0)
    assert not best.reached
    assert best.block_tokens == 1365
    with pytest.raises(TargetError):
        codec.encode(small.crop((0, 0, 30, 128)), target_lpips=0.4)


def test_missing_weights_of_lpips_are_named(small, tmp_path):
    with pytest.raises(ModelError, match=r"none\.npz"):
        Codec(device="cpu", lpips_weights=tmp_path / "none.npz").encode(small, target_lpips=0.4)


def test_a_target_of_psnr_needs_the_image(codec, small):
    sequence = codec.tokenize([small])[0]
    with pytest.raises(TypeError):
        codec.write(sequence, target_psnr=20)


@pytest.mark.parametrize(
    "options",
    [{"target_psnr": -1}, {"target_lpips": -0.1}, {"target_psnr": math.nan}, {"quality": math.nan}, {"target_size": math.inf}],
)
def test_impossible_targets_are_refused(codec, small, options):
    with pytest.raises(UsageError):
        codec.encode(small, **options)


def test_quality_and_tokens_per_block_are_inverse(codec):
    code = codec.model.code
    for quality in np.linspace(0, 100, 41):
        assert quality_of_block_tokens(code, block_tokens_of_quality(code, quality)) == pytest.approx(quality)
    assert block_tokens_of_quality(code, 0) == QUALITY_STOPS[0][1]


def test_psnr_of_equal_images_is_infinite():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 16) == pytest.approx(20 * math.log10(255 / 16))


# Prefixes of one encoding


@pytest.mark.parametrize(
    "target",
    [{}, {"tokens": 1}, {"tokens": 300.5}, {"quality": 100}, {"target_size": 900}, {"target_bpp": 0.2}],
    ids=str,
)
def test_levels_past_the_target_are_not_tokenized(codec, photo, target):
    sources = [read_source(photo.crop((40, 30, 40 + width, 30 + 256))) for width in (200, 256, 17, 300)]
    complete = codec.tokenize(sources)
    for source, short, long in zip(sources, codec.tokenize(sources, **target), complete, strict=True):
        assert codec.write(short, source, **target).data == codec.write(long, source, **target).data
        assert len(short.symbols) <= len(long.symbols) == len(codec.model.code.levels)


def test_only_the_levels_that_a_target_needs_are_tokenized(codec, small):
    def levels(**target: float) -> int:
        return len(codec.tokenize([small], **target)[0].symbols)

    counts = [level.block_tokens for level in codec.model.code.levels]
    assert [levels(tokens=sum(counts[:n])) for n in (1, 2, 5, len(counts))] == [1, 2, 5, len(counts)]
    assert levels(tokens=counts[0] + 1) == 2
    assert 2 < levels(target_size=200) < levels(target_size=1000) < levels(target_psnr=20) == len(counts)


def test_tokens_that_were_not_computed_cannot_be_written(codec, small):
    (sequence,) = codec.tokenize([small], tokens=20)
    computed = sum(len(level) for level in sequence.symbols)
    encode_tokens(sequence, computed)
    with pytest.raises(ValueError, match=rf"\b{computed + 1}\b"):
        encode_tokens(sequence, computed + 1)
    with pytest.raises(ValueError, match=rf"\b{computed + 1}\b"):
        sequence.first(computed + 1)


@pytest.mark.parametrize("other", [{"tokens": 500}, {"target_size": 900}, {"target_psnr": 20}, {"quality": 50}], ids=str)
def test_a_target_that_needs_more_tokens_than_the_sequence_has_is_refused(codec, small, other):
    source = read_source(small)
    (sequence,) = codec.tokenize([source], tokens=20)
    assert sequence.length < sequence.layout.tokens
    with pytest.raises(UsageError, match=rf"\b{sequence.length}\b"):
        codec.write(sequence, source, **other)
    assert codec.write(sequence, source, tokens=3).data == codec.encode(small, tokens=3).data


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.8, 1])
def test_the_first_tokens_are_those_that_a_file_decodes_to(codec, small, share):
    sequence = codec.tokenize([small])[0]
    layout = sequence.layout
    length = round(share * layout.tokens)
    expected = codec.model.code.decode(layout, encode_tokens(sequence, length), length)
    prefix = sequence.first(length)
    for level, other in zip((*prefix.digits, *prefix.known), (*expected.digits, *expected.known), strict=True):
        assert np.array_equal(level, other)


# Effort


@pytest.mark.parametrize("size", [250, 900])
def test_effort_makes_better_images_of_the_same_bytes(codec, small, size):
    original = np.asarray(small)
    plain, refined = (codec.encode(small, effort=effort, target_size=size) for effort in (3, 6))
    assert len(refined.data) <= size
    before, after = (psnr(np.asarray(codec.decode(encoded.data).image), original) for encoded in (plain, refined))
    assert after - before > 0.05
    assert codec.encode(small, effort=6, target_size=size) == refined  # refinement is deterministic


def test_effort_at_a_length_lowers_the_cost(codec, small):
    """The cost is squared error + lambda x bytes, with the lambda of this image around the length."""
    original = np.asarray(small).astype(float)
    plain, refined = (codec.encode(small, effort=effort, tokens=500) for effort in (3, 5))
    assert refined.file.length == plain.file.length
    sequence = codec.tokenize([small])[0]
    files = [plain.data, refined.data, *(codec.write(sequence, tokens=tokens).data for tokens in (400, 625))]
    plain_error, refined_error, *errors = (np.square(np.asarray(codec.decode(file).image) - original).sum() for file in files)
    rdo_lambda = (errors[0] - errors[1]) / (len(files[3]) - len(files[2]))
    assert refined_error + rdo_lambda * len(refined.data) < plain_error + rdo_lambda * len(plain.data)


def test_the_default_effort_is_the_lowest(codec, small):
    assert codec.encode(small, effort=3) == codec.encode(small)


def test_effort_with_a_target_of_psnr(codec, small):
    plain, refined = (codec.encode(small, effort=effort, target_psnr=22) for effort in (3, 5))
    assert refined.reached
    assert refined.measured >= 22
    assert len(refined.data) < len(plain.data)


def test_effort_without_anything_to_gain(codec, small):
    for image in (small.crop((0, 0, 1, 1)), small.resize((1, 1)).resize((40, 30))):
        assert codec.decode(codec.encode(image, effort=4, tokens=1).data).image.size == image.size
        assert codec.decode(codec.encode(image, effort=4).data).image.size == image.size
    with pytest.raises(TargetError):
        codec.encode(small, target_size=9, effort=4)


@pytest.mark.parametrize("effort", [-1, 2, 10, 3.5])
def test_effort_out_of_range_is_refused(codec, small, effort):
    with pytest.raises(UsageError):
        codec.encode(small, effort=effort)


def test_the_error_gathered_from_tiles_is_that_of_the_complete_image(codec, photo, monkeypatch):
    import torch

    from codec.models.pixels import to_network
    from codec.pyramid import refinement
    from codec.pyramid.tiles import encode_pixels

    image = np.asarray(photo.resize((1000, 300)))
    refiner, layout = codec.tokenizer(refining=True), codec.tokenize([image])[0].layout
    latents = encode_pixels(refiner.backend, [layout], [image])
    original = to_network(torch.tensor(image)[None])
    goal = refinement.Goal(1e-3, length=3000)
    coded = refinement.quantize_with_gradient(refiner.network, refiner.code, layout, latents, goal, torch.Generator())
    untiled = refinement._squared_error(refiner.network, layout, coded, original, True)
    monkeypatch.setattr(refinement, "TILE", 256)
    tiled = refinement._squared_error(refiner.network, layout, coded, original, True)
    assert tiled[0] == pytest.approx(untiled[0], rel=1e-4)
    assert float((tiled[1] - untiled[1]).abs().max()) < 1e-3 * float(untiled[1].abs().max())


def test_refinement_codes_as_the_codec_does(codec, small):
    import torch

    from codec.pyramid.refinement import Goal, quantize_with_gradient
    from codec.pyramid.tiles import encode_pixels

    refiner, sequence = codec.tokenizer(refining=True), codec.tokenize([small])[0]
    layout = sequence.layout
    latents = encode_pixels(refiner.backend, [layout], [np.asarray(small)])
    spent = sequence.bits().cumsum()

    def coded(**limit):
        goal = Goal(1.0, **limit)
        return quantize_with_gradient(refiner.network, refiner.code, layout, latents, goal, torch.Generator())

    for length in (5, 200, layout.tokens):
        by_length, by_bits = coded(length=length), coded(bits=spent[length - 1] + 0.1)
        assert float(by_length.bits) == pytest.approx(spent[length - 1], rel=1e-4)
        assert torch.equal(by_bits.known, by_length.known)
        decoded = refiner.network.decoder(by_length.latents, by_length.known)[0, :, : small.height, : small.width]
        pixels = decoded.detach().mul(127.5).add(127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
        expected = codec.decode(codec.write(sequence, tokens=layout.block_tokens_of(length)).data, detail=0.0).image
        assert np.abs(pixels - np.asarray(expected)).max() <= 1
