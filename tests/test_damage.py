"""Every truncation and every single-bit flip of a small file: an error, or a prefix that counts as partial."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from bitstream.container import CRC_BYTES, File, checksum, read_file, write_file
from cli.main import main
from codec.errors import FormatError, ImageError, ModelError, TruncatedError
from codec.image.opening import check_size
from codec.results import read_tokens

pytestmark = pytest.mark.light


@pytest.fixture(scope="module")
def encoded(codec, photo):
    """Bytes and tokens of a small file."""
    data = codec.encode(photo.crop((200, 80, 300, 160)), quality=50)
    return data, read_tokens(read_file(data), codec.model.code)


def tokens_of(data: bytes, codec, **options):
    """Decoding without the network."""
    file = read_file(data)
    check_size(file.width, file.height, 10_000_000)
    return read_tokens(file, codec._model_of(file).code, **options)


def test_every_truncation_is_reported(encoded, codec):
    data, complete = encoded
    header = read_file(data).header_bytes
    lengths = []
    for size in range(len(data)):
        if size < header:
            with pytest.raises(FormatError):
                tokens_of(data[:size], codec, allow_partial=True)
            continue
        with pytest.raises(TruncatedError) as caught:
            tokens_of(data[:size], codec)
        assert caught.value.advice == ("allow_partial",)
        part = tokens_of(data[:size], codec, allow_partial=True)
        lengths.append(part.length)
        for digits, known, sent in zip(part.digits, part.known, complete.digits, strict=True):
            assert np.array_equal(digits, sent * known)
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert 0 < lengths[len(lengths) // 2] < lengths[-1] < complete.length


def test_every_bit_flip_is_reported(encoded, codec):
    data, _ = encoded
    partial = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, ModelError, ImageError)):
            tokens_of(bytes(flipped), codec)
        try:
            part = tokens_of(bytes(flipped), codec, allow_partial=True)
        except (FormatError, ModelError, ImageError):
            continue
        assert part.length < read_file(bytes(flipped)).length  # tokens are missing, so the result counts as partial
        partial += 1
    assert partial  # some flips cannot be told from a cut


@pytest.mark.parametrize("more", [b"\0", b"\n", b"\xff", b"\r\n", bytes(512), b"more than a coder reads ahead"])
def test_bytes_after_the_end_are_told_from_a_cut(encoded, codec, more, tmp_path):
    for partial in (False, True):
        with pytest.raises(FormatError, match=rf"\b{len(more)} byte") as caught:
            tokens_of(encoded[0] + more, codec, allow_partial=partial)
        assert type(caught.value) is FormatError
    result = CliRunner().invoke(main, ["decode", "-", "-o", str(tmp_path / "a.png")], input=encoded[0] + more)
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_a_cut_file_whosechecksum_holds_by_chance_is_still_a_cut_one(encoded, codec):
    data = encoded[0]
    file = read_file(data)
    head = data[: file.header_bytes - CRC_BYTES]
    cut = data[file.header_bytes : len(data) // 2]
    chance = head + checksum(head, cut[:-9]) + cut
    assert read_file(chance).surplus == 9
    with pytest.raises(TruncatedError):
        tokens_of(chance, codec)


def test_random_bytes_after_a_header_are_refused(encoded, codec):
    header = encoded[0][: read_file(encoded[0]).header_bytes]
    rng = np.random.default_rng(0)
    for size in (0, 1, 50, 500):
        with pytest.raises(FormatError):
            tokens_of(header + rng.bytes(size), codec)


def test_more_tokens_than_the_image_has_are_refused(codec):
    data = write_file(File(16, 16, codec.model.stream_id, 10, b"abc"))
    with pytest.raises(FormatError, match=r"\b10 tokens .*\b9\b"):
        codec.decode(data)


def test_sizes_are_checked_before_anything_is_allocated(codec):
    data = write_file(File(1 << 24, 1 << 24, codec.model.stream_id, 1, b""))
    with pytest.raises(ImageError) as caught:
        codec.decode(data)
    assert caught.value.advice == ("max_pixels",)


def test_an_unknown_model_is_named(codec):
    data = write_file(File(16, 16, b"\x00\x01", 1, b""))
    with pytest.raises(ModelError, match=r"\b0001\b.*\bstandard\b") as caught:
        codec.decode(data)
    assert caught.value.advice == ("model",)
