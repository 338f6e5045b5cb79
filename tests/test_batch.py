"""Many images at once give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest

from bitstream.range_coder import encode_tokens
from codec.pyramid import tokenizer
from codec.rate_control import Target
from codec.results import Prepared

SIZES = [(200, 150), (256, 256), (17, 250), (300, 256), (1, 1)]  # all but one on a canvas of one block


@pytest.fixture(scope="module")
def images(photo):
    return [photo.crop((40 * i, 30, 40 * i + width, 30 + height)) for i, (width, height) in enumerate(SIZES)]


def test_a_batch_encodes_as_one_by_one(codec, images):
    alone = [codec.sequence(image) for image in images]
    together = codec.tokenize([codec.prepare(image) for image in images])
    for (width, height), one, batched in zip(SIZES, alone, together, strict=True):
        assert (batched.layout.width, batched.layout.height) == (width, height)
        digits = [np.concatenate([level.ravel() for level in sequence.symbols]) for sequence in (one, batched)]
        assert digits[0].shape == digits[1].shape
        assert (digits[0] != digits[1]).mean() <= 1e-4  # a rounding of floats may tip a digit


def test_a_batch_decodes_as_one_by_one(codec, images):
    blobs = [codec.encode(image, quality=quality) for image, quality in zip(images, (0, 30, 50, 80, 100), strict=True)]
    for one, batched in zip([codec.decode(data) for data in blobs], codec.decode_batch(blobs), strict=True):
        assert one.size == batched.size
        assert np.abs(np.asarray(one).astype(int) - np.asarray(batched)).max() <= 1


def test_a_batch_keeps_order_and_shares_calls(codec, images, monkeypatch):
    sizes = []
    encode = tokenizer.encode_pixels
    monkeypatch.setattr(tokenizer, "encode_pixels", lambda *given: sizes.append(len(given[1])) or encode(*given))
    order = [0, 3, 1, 3, 2]
    blobs = codec.encode_batch([images[place] for place in order], tokens=20)
    assert [codec.read(data).file.width for data in blobs] == [SIZES[place][0] for place in order]
    assert sizes == [3, 2]


def test_a_call_is_bounded(codec, monkeypatch):
    monkeypatch.setattr(tokenizer, "WHOLE_PIXELS", 3 * 65536)
    layouts = [codec.model.code.layout(256, side) for side in (256, 256, 256, 300, 256, 1500)]
    assert tokenizer.together(layouts) == [[0, 1, 2], [4], [3], [5]]


def test_stages_are_what_compress_is_made_of(codec, images):
    prepared = codec.prepare(images[0])
    assert isinstance(prepared, Prepared)
    (sequence,) = codec.tokenize([prepared])
    made = codec.cut(sequence, Target(quality=40), prepared)
    assert made.data == codec.encode(images[0], quality=40)
    read = codec.read(made.data)
    assert read.block_tokens == made.block_tokens
    assert not read.partial
    image = codec.finish(codec.detokenize([read])[0], read.file)
    assert np.array_equal(np.asarray(image), np.asarray(codec.decode(made.data)))


def test_an_empty_batch_is_no_work(codec):
    assert codec.encode_batch([]) == []
    assert codec.decode_batch([]) == []


@pytest.mark.parametrize(
    "target",
    [Target(), Target(tokens=1), Target(tokens=300.5), Target(quality=100), Target(target_size=900), Target(target_bpp=0.2)],
    ids=str,
)
def test_levels_past_what_a_target_needs_are_not_computed(codec, images, target):
    prepared = [codec.prepare(image) for image in images[:4]]
    short = codec.tokenize(prepared, target)
    for part, sequence, whole in zip(prepared, short, codec.tokenize(prepared), strict=True):
        assert codec.cut(sequence, target, part).data == codec.cut(whole, target, part).data
        assert len(sequence.symbols) <= len(whole.symbols) == len(codec.model.code.levels)


def test_only_the_levels_that_are_needed(codec, images):
    def levels(**target: float) -> int:
        return len(codec.tokenize([codec.prepare(images[1])], Target(**target))[0].symbols)

    counts = [level.block_tokens for level in codec.model.code.levels]
    assert [levels(tokens=sum(counts[:n])) for n in (1, 2, 5, len(counts))] == [1, 2, 5, len(counts)]
    assert levels(tokens=counts[0] + 1) == 2
    assert 2 < levels(target_size=400) < levels(target_size=4000) < levels(target_psnr=20) == len(counts)


def test_tokens_that_were_not_computed_cannot_be_asked_for(codec, images):
    (sequence,) = codec.tokenize([codec.prepare(images[1])], Target(tokens=20))
    with pytest.raises(ValueError, match="22 tokens of a sequence that has 21"):
        encode_tokens(sequence, 22)
    with pytest.raises(ValueError, match="22 tokens of a sequence that has 21"):
        sequence.first(22)
