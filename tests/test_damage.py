"""Every truncation and every single-bit flip of a small file: an error, or an image that is said to be partial."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from codec.image.reading import check_size

from bitstream.container import CRC_BYTES, File, _checksum, read_file, write_file
from cli.main import main
from codec.errors import FormatError, ImageError, ModelError, TruncatedError
from codec.results import read_tokens

pytestmark = pytest.mark.light


@pytest.fixture(scope="module")
def made(codec, photo):
    made = codec.compress(photo.crop((200, 80, 300, 160)), quality=50)
    return made.data, read_tokens(read_file(made.data), codec.model.code)


def tokens_of(data: bytes, codec, **options):
    """What decoding does before it draws."""
    file = read_file(data)
    check_size(file.width, file.height, 10_000_000)
    return read_tokens(file, codec._model_of(file).code, **options)


def test_every_truncation_is_told(made, codec):
    data, whole = made
    header = read_file(data).header_bytes
    lengths = []
    for size in range(len(data)):
        if size < header:
            with pytest.raises(FormatError):
                tokens_of(data[:size], codec, allow_partial=True)
            continue
        with pytest.raises(TruncatedError, match=r"cut short: \d+ of \d+ tokens are there"):
            tokens_of(data[:size], codec)
        part = tokens_of(data[:size], codec, allow_partial=True)
        lengths.append(part.length)
        for digits, known, sent in zip(part.digits, part.known, whole.digits, strict=True):
            assert np.array_equal(digits, sent * known)
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert 0 < lengths[len(lengths) // 2] < lengths[-1] < whole.length


def test_every_bit_flip_is_told(made, codec):
    data, _ = made
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
        assert part.length < read_file(bytes(flipped)).length  # flagged: tokens are missing
        partial += 1
    assert partial  # a flip that reads like a cut is drawn on request, as a partial image


def test_more_bytes_than_there_should_be_are_damage(made, codec):
    with pytest.raises(FormatError, match="damaged"):
        tokens_of(made[0] + b"more", codec, allow_partial=True)


@pytest.mark.parametrize("more", [b"\0", b"\n", b"\xff", b"\r\n", bytes(512), b"more than a coder looks ahead"])
def test_bytes_after_the_end_are_told_from_a_cut(made, codec, more, tmp_path):
    said = f"damaged: {len(more)} byte{'s' * (len(more) > 1)} after its end"
    for partial in (False, True):
        with pytest.raises(FormatError, match=said):
            tokens_of(made[0] + more, codec, allow_partial=partial)
    done = CliRunner().invoke(main, ["decode", "-", "-o", str(tmp_path / "a.png")], input=made[0] + more)
    assert (done.exit_code, said in done.stderr) == (1, True)


def test_a_cut_file_whose_checksum_holds_by_chance_is_still_a_cut_one(made, codec):
    data = made[0]
    file = read_file(data)
    head = data[: file.header_bytes - CRC_BYTES]
    cut = data[file.header_bytes : len(data) // 2]
    chance = head + _checksum(head, cut[:-9]) + cut
    assert read_file(chance).surplus == 9
    with pytest.raises(TruncatedError):
        tokens_of(chance, codec)


def test_random_bytes_behind_a_header(made, codec):
    header = made[0][: read_file(made[0]).header_bytes]
    rng = np.random.default_rng(0)
    for size in (0, 1, 50, 500):
        with pytest.raises(FormatError):
            tokens_of(header + rng.bytes(size), codec)


def test_more_tokens_than_the_image_has(codec):
    data = write_file(File(16, 16, codec.model.stream_id, 10, b"abc"))
    with pytest.raises(FormatError, match="10 tokens for an image that has 9"):
        codec.decode(data)


def test_sizes_are_checked_before_anything_is_made(codec):
    data = write_file(File(1 << 24, 1 << 24, codec.model.stream_id, 1, b""))
    with pytest.raises(ImageError, match="more than 500,000,000"):
        codec.decode(data)


def test_an_unknown_model_is_named(codec):
    data = write_file(File(16, 16, b"\x00\x01", 1, b""))
    with pytest.raises(ModelError, match=r"stream id 0001; installed: .*standard") as caught:
        codec.decode(data)
    assert caught.value.advice == ("model",)
