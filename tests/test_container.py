from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstream.container import File, read_file, read_number, write_file, write_number
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
)
def test_reads_what_was_written(width, height, length, payload, sections):
    file = read_file(write_file(File(width, height, b"ab", length, payload, tuple(sections))))
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
        (b"\xd4T\x12ab\xff\xff\xff\xff\x00\x00\x00\x00\x01abc", "sides are 1 to 16777216"),
    ],
)
def test_says_what_is_wrong(data, message):
    with pytest.raises(FormatError, match=message):
        read_file(data)


def test_a_file_that_ends_in_its_sections_is_refused():
    data = write_file(File(9, 9, b"ab", 3, b"pay", ((1, bytes(100)), (99, b"later"))))
    for size in range(11, len(data) - 3):
        with pytest.raises(FormatError):
            read_file(data[:size])


def test_a_type_of_section_is_there_once():
    with pytest.raises(FormatError, match="two sections of type 7"):
        read_file(write_file(File(9, 9, b"ab", 3, b"pay", ((7, b"one"), (8, b""), (7, b"two")))))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (1 << 25, 1)])
def test_sides_out_of_range_are_not_written(width, height):
    with pytest.raises(FormatError, match="does not fit"):
        write_file(File(width, height, b"ab", 1, b""))
