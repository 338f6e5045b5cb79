"""Every truncation of a small file and every flip of one of its bits is an error, or leaves a prefix that counts as partial."""

from __future__ import annotations

import numpy as np
import pytest

from bitstream.container import CRC_BYTES, File, checksum, read_file, write_file
from codec.codec import Codec
from codec.errors import FormatError, ImageError, ModelError, TruncatedError
from tests.helpers.commands import run

pytestmark = pytest.mark.light


@pytest.fixture(scope="module")
def codec() -> Codec:
    """A codec that refuses large images, because a damaged header may state a huge size."""
    return Codec(device="cpu", max_pixels=10_000_000)


@pytest.fixture(scope="module")
def data(codec, photo) -> bytes:
    return codec.encode(photo.crop((200, 80, 300, 160)), quality=50).data


def test_every_truncation_is_reported(data, codec):
    complete = codec.read(data).prefix
    header_bytes = read_file(data).header_bytes
    lengths = []
    for size in range(len(data)):
        if size < header_bytes:
            with pytest.raises(FormatError):
                codec.read(data[:size], allow_partial=True)
            continue
        with pytest.raises(TruncatedError) as caught:
            codec.read(data[:size])
        assert caught.value.advice == ("allow_partial",)
        stored = codec.read(data[:size], allow_partial=True)
        assert stored.partial
        prefix = stored.prefix
        lengths.append(prefix.length)
        for digits, known, original in zip(prefix.digits, prefix.known, complete.digits, strict=True):
            assert np.array_equal(digits, original * known)
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert 0 < lengths[len(lengths) // 2] < lengths[-1] < complete.length


def test_bit_flips_are_reported(data, codec):
    """All bits of the header, and a share of those of the tokens."""
    partial = 0
    for bit in (*range(8 * 32), *range(8 * 32, 8 * len(data), 9)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, ModelError, ImageError)):
            codec.read(bytes(flipped))
        try:
            stored = codec.read(bytes(flipped), allow_partial=True)
        except (FormatError, ModelError, ImageError):
            continue
        assert stored.partial
        assert stored.prefix.length < stored.file.length
        partial += 1
    assert partial  # some flips look like a cut


@pytest.mark.parametrize("surplus", [b"\0", b"\n", b"\xff", b"\r\n", bytes(512), b"more than a coder reads ahead"])
def test_bytes_after_the_end_are_damage_and_not_a_cut(data, codec, surplus, tmp_path):
    for allow_partial in (False, True):
        with pytest.raises(FormatError, match=rf"\b{len(surplus)} byte") as caught:
            codec.read(data + surplus, allow_partial=allow_partial)
        assert type(caught.value) is FormatError
    assert run("decode", "-", "-o", tmp_path / "a.png", data=data + surplus).exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_cut_file_whose_checksum_is_right_by_chance_is_a_cut_file(data, codec):
    header_bytes = read_file(data).header_bytes
    head, payload = data[: header_bytes - CRC_BYTES], data[header_bytes : len(data) // 2]
    by_chance = head + checksum(head, payload[:-9]) + payload
    assert read_file(by_chance).surplus == 9
    with pytest.raises(TruncatedError):
        codec.read(by_chance)


def test_random_bytes_after_a_header_are_refused(data, codec):
    header = data[: read_file(data).header_bytes]
    rng = np.random.default_rng(0)
    for size in (0, 1, 50, 500):
        with pytest.raises(FormatError):
            codec.read(header + rng.bytes(size))


def test_more_tokens_than_the_image_has_are_refused(codec):
    file = write_file(File(16, 16, codec.model.stream_id, 10, b"abc"))
    with pytest.raises(FormatError, match=r"\b10 tokens .*\b9\b"):
        codec.decode(file)


def test_sizes_are_checked_before_anything_is_allocated(codec):
    file = write_file(File(1 << 24, 1 << 24, codec.model.stream_id, 1, b""))
    with pytest.raises(ImageError) as caught:
        codec.decode(file)
    assert caught.value.advice == ("max_pixels",)


def test_an_unknown_model_is_named(codec):
    file = write_file(File(16, 16, b"\x00\x01", 1, b""))
    with pytest.raises(ModelError, match=r"\b0001\b.*\bstandard\b") as caught:
        codec.decode(file)
    assert caught.value.advice == ("model",)
