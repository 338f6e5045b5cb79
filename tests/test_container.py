from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstream.container import (
    HEADER_MAX,
    SPACES,
    File,
    _checksum,
    overhead,
    payload_max,
    read_file,
    read_header,
    read_number,
    write_file,
    write_number,
)
from bitstream.errors import FormatError

SMALL = File(256, 256, b"\x12\x34", 1365, b"tokens")


def test_golden_bytes():
    assert write_file(SMALL).hex() == "d454101234ffff8a5507efdc" + b"tokens".hex()


def test_header_of_a_block_takes_12_bytes():
    assert read_file(write_file(SMALL)).header_bytes == 12


@given(
    st.integers(1, 1 << 24),
    st.integers(1, 1 << 24),
    st.integers(0, (1 << 28) - 1),
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(1, 255), st.binary(max_size=300)), max_size=4, unique_by=lambda section: section[0]),
    st.sampled_from([(space, greyness) for greyness, spaces in SPACES.items() for space in spaces]),
)
def test_reads_what_was_written(width, height, length, payload, sections, look):
    file = read_file(write_file(File(width, height, b"ab", length, payload, tuple(sections), *look)))
    assert (file.space, file.greyness) == look
    assert (file.width, file.height, file.length, file.payload) == (width, height, length, payload)
    assert file.sections == tuple(sections)
    assert file.whole
    assert file.header_bytes + file.section_bytes + len(payload) == len(write_file(file))


@given(st.integers(0, (1 << 28) - 1))
def test_numbers_invert(value):
    data = write_number(value)
    assert read_number(b"x" + data + b"rest", 1) == (value, 1 + len(data))


def test_numbers_have_one_form():
    with pytest.raises(FormatError, match="longer than it need be"):
        read_number(b"\x80\x05", 0)
    with pytest.raises(FormatError, match="28 bits"):
        write_number(1 << 28)


def test_every_bit_flip_is_noticed():
    data = write_file(SMALL)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(FormatError):
            assert not read_file(bytes(flipped)).whole, bit


@pytest.mark.parametrize("size", range(12))
def test_a_cut_header_is_refused(size):
    with pytest.raises(FormatError):
        read_file(write_file(SMALL)[:size])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .tsr file"),
        (b"\x89PNG\r\n\x1a\n", "not a .tsr file"),
        (b"\xd4T\x20" + bytes(20), "version 2, and this release reads version 1: update tessera"),
        (b"\xd4T\x18" + bytes(20), "unknown flags 0x8"),
        (b"\xd4T\x13" + bytes(20), "unknown flags 0x3"),
        *(
            (b"\xd4T\x14ab\x08\x08\x03" + bytes([kind]) + bytes(9), f"unknown kind of image {kind:#x}")
            for kind in (
                0x04,
                0x05,
                0x0F,
                0x11,
                0x15,
                0x24,
                0x30,
            )  # spaces of the other kind, and unknown ones
        ),
        (b"\xd4T\x12ab\xff\xff\xff\xff\x00\x00\x00\x00\x01abc", "sides are 1 to 16777216"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(FormatError, match=message):
        read_file(data)


SECTIONS = ((1, bytes(100)), (99, b"later"))


def test_a_file_that_is_cut_keeps_what_came_before():
    data = write_file(File(9, 9, b"ab", 3, b"pay", SECTIONS))
    start = read_file(data).header_bytes
    for size in range(len(data)):
        if size < start:
            with pytest.raises(FormatError):
                read_file(data[:size])
            continue
        file = read_file(data[:size])
        assert (file.whole, file.missing, file.transparent) == (False, len(data) - size, True)
        assert file.payload == b"pay"[: size - start]
        assert file.payload_whole == (size >= start + 3)
        assert file.sections == SECTIONS[: size >= start + 3 + 102]
    assert read_file(data).missing == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x01\x05abc", "longer than the header says"),
        (b"\x00\x01a", "section of type 0"),
        (b"\x63\x80", "number in the header has no end"),
        (b"\x63\x01a", "do not agree on transparency"),
    ],
)
def test_sections_that_do_not_fill_their_place_are_damage(body, message):
    head = b"\xd4T\x14ab\x08\x08\x03\xc0\x03" + bytes([len(body)])
    with pytest.raises(FormatError, match=message):
        read_file(head + _checksum(head, b"pay" + body) + b"pay" + body)


def test_bytes_after_the_end_are_said_to_be_there():
    data = write_file(File(9, 9, b"ab", 3, b"pay", SECTIONS))
    with pytest.raises(FormatError, match="damaged: 1 byte after its end"):
        read_file(data + b"\0")
    with pytest.raises(FormatError, match="damaged: 40 bytes after its end"):
        read_file(data + bytes(40))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 40), (1 << 24, 1 << 24)])
def test_a_header_says_how_large_its_file_can_be(width, height):
    plain = write_file(File(width, height, b"ab", (1 << 28) - 1, b"tokens"))
    header = read_header(plain[:HEADER_MAX])
    assert header.size is None
    assert header.largest == header.bytes + payload_max(width, height)
    full = write_file(File(width, height, b"ab", 9, bytes(min(payload_max(width, height), 9000)), SECTIONS))
    header = read_header(full[:HEADER_MAX])
    assert header.size == header.largest == len(full)
    assert header == read_header(full)
    assert (header.width, header.height, header.length, header.transparent) == (width, height, 9, True)


def test_a_header_of_the_largest_numbers_is_no_longer_than_stated():
    file = File(1 << 24, 1 << 24, b"ab", (1 << 28) - 1, b"", ((1, bytes(1 << 21)),))
    assert overhead(file, (1 << 28) - 1) - file.section_bytes == HEADER_MAX


def test_more_tokens_than_the_image_can_have_are_refused():
    with pytest.raises(FormatError, match="1025 bytes of tokens do not fit: an image of 16x16 has at most 1024"):
        write_file(File(16, 16, b"ab", 1, bytes(1025)))
    largest = write_file(File(16, 16, b"ab", 1, bytes(1024)))
    assert read_file(largest).whole
    with pytest.raises(FormatError, match="damaged: at least 3 bytes after its end"):
        read_file(largest + bytes(3))
    head = b"\xd4T\x14ab\x0f\x0f\x01\x80\x88\x01\x00"
    with pytest.raises(FormatError, match="1025 bytes of tokens for an image of 16x16: the file is damaged"):
        read_header(head + b"crc")


@given(st.integers(0, 1), st.integers(0, 20_000), st.integers(0, (1 << 28) - 1))
def test_overhead_is_all_but_the_payload(sections, size, length):
    file = File(999, 999, b"ab", length, bytes(size), SECTIONS[:sections])
    assert overhead(file, size) + size == len(write_file(file))


def test_a_type_of_section_is_there_once():
    with pytest.raises(FormatError, match="two sections of type 7"):
        read_file(write_file(File(9, 9, b"ab", 3, b"pay", ((7, b"one"), (8, b""), (7, b"two")))))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (1 << 25, 1)])
def test_sides_out_of_range_are_not_written(width, height):
    with pytest.raises(FormatError, match="does not fit"):
        write_file(File(width, height, b"ab", 1, b""))
