"""Targets of quality and effort: what is returned, and what is said where it cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstream.range_coder import encode_tokens
from codec.codec import Codec
from codec.errors import ModelError, TargetError, UsageError
from codec.metrics import psnr
from codec.rate_control import Target
from codec.search import CLOSE, shortest
from tests.helpers import SHARED

LPIPS_WEIGHTS = SHARED / "perceptual" / "lpips_alex.npz"


@pytest.fixture(scope="module")
def small(photo):
    return photo.crop((200, 80, 328, 208))


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 20), min_size=1, max_size=300),
    st.lists(st.floats(0.01, 5), min_size=1, max_size=300),
    st.floats(0, 60),
    st.booleans(),
)
def test_the_search_finds_what_it_says(rises, costs, wanted, higher_is_better):
    """On any rising curve: the target is reached, and a length at most 0.5 % smaller misses it."""
    count = min(len(rises), len(costs))
    curve, bits = np.cumsum(rises[:count]), np.cumsum(costs[:count])
    drawn = []

    def measure(length):
        drawn.append(length)
        return curve[length - 1] if higher_is_better else -curve[length - 1]

    found = shortest(measure, wanted if higher_is_better else -wanted, bits, higher_is_better=higher_is_better)
    assert len(drawn) == len(set(drawn))
    assert found.reached == (curve[-1] >= wanted)
    assert abs(found.value) == curve[found.length - 1]
    if not found.reached:
        assert found.length == count
        return
    assert curve[found.length - 1] >= wanted
    best = int(np.searchsorted(curve, wanted)) + 1
    assert best <= found.length
    assert bits[found.length - 1] <= CLOSE * bits[max(0, best - 2)] or found.length == best
    assert len(drawn) <= 60


def test_a_curve_that_is_not_straight_takes_few_drawings():
    bits = np.linspace(50, 300_000, 8000)
    drawn = []

    def measure(length):
        drawn.append(length)
        return math.inf if length == 8000 else 12 + 5 * math.log10(bits[length - 1]) + math.sin(length / 50)

    found = shortest(measure, 30, bits, higher_is_better=True)
    assert found.reached
    assert found.value >= 30
    assert len(drawn) <= 12


@pytest.mark.parametrize("wanted", [18, 22, 26])
def test_target_psnr(codec, small, wanted):
    original = np.asarray(small)
    made = codec.compress(small, target_psnr=wanted)
    assert made.reached
    assert psnr(np.asarray(codec.decode(made.data)), original) == pytest.approx(made.measured)
    assert wanted <= made.measured < wanted + 0.5
    sequence = codec.sequence(small)
    layout = sequence.layout
    bits = sequence.bits().cumsum()
    for length in range(1, made.file.length):  # nothing that is much smaller would do, not even by chance
        if bits[length - 1] < 0.97 * bits[made.file.length - 1] and length % 7 == 0:
            shorter = codec.cut(sequence, Target(tokens=layout.block_tokens_of(length))).data
            assert psnr(np.asarray(codec.decode(shorter)), original) < wanted


def test_a_target_out_of_reach_gives_the_best(codec, small):
    made = codec.compress(small, target_psnr=70)
    assert not made.reached
    assert made.data == codec.encode(small, quality=100)
    assert made.measured == pytest.approx(psnr(np.asarray(codec.decode(made.data)), np.asarray(small)))


def test_a_target_that_anything_reaches_gives_one_token(codec, small):
    made = codec.compress(small, target_psnr=3)
    assert made.reached
    assert made.file.length == 1


def test_sizes_are_not_measured(codec, small):
    made = codec.compress(small, target_size=300)
    assert made.reached
    assert made.measured is None


@pytest.mark.skipif(not LPIPS_WEIGHTS.exists(), reason="the weights of LPIPS are not there")
def test_target_lpips(small):
    from codec.metrics.lpips import LPIPS

    codec = Codec(device="cpu", lpips_weights=LPIPS_WEIGHTS)
    made = codec.compress(small, target_lpips=0.4)
    assert made.reached
    distance = LPIPS(LPIPS_WEIGHTS).distance(np.asarray(codec.decode(made.data)), np.asarray(small))
    assert distance == pytest.approx(made.measured, abs=1e-4)
    assert 0.37 < distance <= 0.4
    never = codec.compress(small, target_lpips=0)
    assert not never.reached
    assert never.block_tokens == 1365
    with pytest.raises(TargetError, match=r"at least 31 pixels, not 30x128: use target psnr"):
        codec.compress(small.crop((0, 0, 30, 128)), target_lpips=0.4)


def test_missing_weights_of_lpips_are_said(small, tmp_path):
    with pytest.raises(ModelError, match=r"LPIPS weights cannot be read from .*none.npz"):
        Codec(device="cpu", lpips_weights=tmp_path / "none.npz").compress(small, target_lpips=0.4)


def test_a_target_of_quality_needs_pixels(codec, small):
    sequence = codec.sequence(small)
    with pytest.raises(TypeError, match="needs the image"):
        codec.cut(sequence, Target(target_psnr=20))


@pytest.mark.parametrize(
    "options", [{"target_psnr": -1}, {"target_lpips": -0.1}, {"target_psnr": math.nan}, {"quality": math.nan}]
)
def test_targets_that_make_no_sense(options):
    with pytest.raises(UsageError, match=r"is too small|out of range"):
        Target(**options)


def test_psnr_of_equal_images_is_infinite():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 16) == pytest.approx(20 * math.log10(255 / 16))


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.8, 1])
def test_first_tokens_are_what_a_file_has(codec, small, share):
    sequence = codec.sequence(small)
    layout = sequence.layout
    length = round(share * layout.tokens)
    expected = codec.model.code.decode(layout, encode_tokens(sequence, length), length)
    tokens = sequence.first(length)
    for ours, theirs in zip((*tokens.digits, *tokens.known), (*expected.digits, *expected.known), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("target", [{"target_size": 250}, {"target_size": 900}])
def test_effort_makes_better_images_of_the_same_bytes(codec, small, target):
    original = np.asarray(small)
    plain, refined = (codec.compress(small, effort=effort, **target) for effort in (3, 6))
    assert len(refined.data) <= target["target_size"]
    gain = psnr(np.asarray(codec.decode(refined.data)), original) - psnr(np.asarray(codec.decode(plain.data)), original)
    assert gain > 0.05
    assert codec.encode(small, effort=6, **target) == refined.data  # the same every time


def test_effort_at_a_length_is_worth_its_bits(codec, small):
    """Error and bits, weighed by what a bit buys there, go down together."""
    original = np.asarray(small).astype(float)
    plain, refined = (codec.compress(small, effort=effort, tokens=500) for effort in (3, 5))
    assert refined.file.length == plain.file.length
    sequence = codec.sequence(small)
    short, long = (codec.cut(sequence, Target(tokens=tokens)) for tokens in (400, 625))
    errors = [np.square(np.asarray(codec.decode(made.data)) - original).sum() for made in (plain, refined, short, long)]
    slope = (errors[2] - errors[3]) / (len(long.data) - len(short.data))
    assert errors[1] + slope * len(refined.data) < errors[0] + slope * len(plain.data)


def test_the_default_effort_is_the_lowest(codec, small):
    assert codec.encode(small, effort=3) == codec.encode(small)


def test_effort_with_a_target_of_quality(codec, small):
    plain, refined = (codec.compress(small, effort=effort, target_psnr=22) for effort in (3, 5))
    assert refined.reached
    assert refined.measured >= 22
    assert len(refined.data) < len(plain.data)


def test_effort_where_there_is_nothing_to_gain(codec, small):
    for image in (small.crop((0, 0, 1, 1)), small.resize((1, 1)).resize((40, 30))):
        assert codec.decode(codec.encode(image, effort=4, tokens=1)).size == image.size
        assert codec.decode(codec.encode(image, effort=4)).size == image.size
    with pytest.raises(TargetError, match="does not fit 9 bytes"):
        codec.encode(small, target_size=9, effort=4)


@pytest.mark.parametrize("effort", [-1, 2, 10, 3.5])
def test_effort_out_of_range(codec, small, effort):
    with pytest.raises(UsageError, match=r"effort .* is out of range: 3 to 9"):
        codec.encode(small, effort=effort)


def test_tiles_do_not_change_a_step(codec, photo, monkeypatch):
    """The error's gradient, gathered tile by tile, is that of the whole image."""
    import torch

    from codec.pyramid import refinement as refine
    from codec.pyramid.tiles import encode_pixels

    image = np.asarray(photo.resize((1000, 300)))
    network, code = codec.tokenizer(refining=True).network, codec.model.code
    layout = codec.sequence(image).layout
    latents = encode_pixels(codec.tokenizer(refining=True).parts, [layout], [image])
    original = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    goal = refine.Goal(1e-3, length=3000)
    walked = refine.walk(network, code, layout, latents, goal, torch.Generator())
    whole = refine._error(network, layout, walked, original, True)
    monkeypatch.setattr(refine, "TILE", 256)
    tiled = refine._error(network, layout, walked, original, True)
    assert tiled[0] == pytest.approx(whole[0], rel=1e-4)
    assert float((tiled[1] - whole[1]).abs().max()) < 1e-3 * float(whole[1].abs().max())


def test_the_walk_codes_as_the_codec_does(codec, small):
    import torch

    from codec.pyramid import refinement as refine
    from codec.pyramid.tiles import encode_pixels

    network, code = codec.tokenizer(refining=True).network, codec.model.code
    sequence = codec.sequence(small)
    layout = sequence.layout
    latents = encode_pixels(codec.tokenizer(refining=True).parts, [layout], [np.asarray(small)])
    spent = sequence.bits().cumsum()
    for length in (5, 200, layout.tokens):
        by_length = refine.walk(network, code, layout, latents, refine.Goal(1.0, length=length), torch.Generator())
        assert float(by_length.bits) == pytest.approx(spent[length - 1], rel=1e-4)
        by_bits = refine.walk(network, code, layout, latents, refine.Goal(1.0, bits=spent[length - 1] + 0.1), torch.Generator())
        assert torch.equal(by_bits.known, by_length.known)
        drawn = network.decoder(by_length.latents, by_length.known)[0, :, : small.height, : small.width]
        expected = np.asarray(codec.decode(codec.cut(sequence, Target(tokens=layout.block_tokens_of(length))).data))
        pixels = drawn.detach().mul(127.5).add(127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels - expected).max() <= 1
