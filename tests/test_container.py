"""Header, payload and sections of a .tsr file, without any tokens."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitstream.container import (
    HEADER_MAX,
    SPACES,
    File,
    checksum,
    overhead,
    payload_max,
    read_file,
    read_header,
    read_number,
    write_file,
    write_number,
)
from bitstream.errors import FormatError
from bitstream.reference import Reference, write_reference

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
def test_files_are_read_as_written(width, height, length, payload, sections, kind):
    file = read_file(write_file(File(width, height, b"ab", length, payload, tuple(sections), *kind)))
    assert (file.space, file.greyness) == kind
    assert (file.width, file.height, file.length, file.payload) == (width, height, length, payload)
    assert file.sections == tuple(sections)
    assert file.complete
    assert file.header_bytes + file.section_bytes + len(payload) == len(write_file(file))


@given(st.integers(0, (1 << 28) - 1))
def test_numbers_are_read_as_written(value):
    data = write_number(value)
    assert read_number(b"x" + data + b"rest", 1) == (value, 1 + len(data))


def test_numbers_have_one_form():
    with pytest.raises(FormatError):
        read_number(b"\x80\x05", 0)
    with pytest.raises(FormatError):
        write_number(1 << 28)


def test_every_bit_flip_is_noticed():
    data = write_file(SMALL)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with suppress(FormatError):
            assert not read_file(bytes(flipped)).complete, bit


@pytest.mark.parametrize("size", range(12))
def test_a_cut_header_is_refused(size):
    with pytest.raises(FormatError):
        read_file(write_file(SMALL)[:size])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xd4T\x20ab\x08\x08\x03crc",  # version 2
        b"\xd4T\x18ab\x08\x08\x03crc",  # an unknown flag
        b"\xd4T\x13ab\x08\x08\x03crc",  # an unknown size class
        b"\xd4T\x12ab\xff\xff\xff\xff\x00\x00\x00\x00\x01crc",  # a side of 2^32
        # colour spaces that are unknown or not for this greyness, and an unknown greyness
        *(b"\xd4T\x14ab\x08\x08\x03" + bytes([kind]) + b"crc" for kind in (0x04, 0x05, 0x0F, 0x11, 0x15, 0x24, 0x30)),
    ],
)
def test_invalid_headers_are_refused(data):
    with pytest.raises(FormatError):
        read_file(data)
    assert read_file(b"\xd4T\x14ab\x08\x08\x03\x01crc").space == 1  # the same header with a valid kind


SECTIONS = ((1, bytes(100)), (99, b"later"))


def test_a_cut_file_keeps_complete_sections():
    data = write_file(File(9, 9, b"ab", 3, b"pay", SECTIONS))
    start = read_file(data).header_bytes
    for size in range(len(data)):
        if size < start:
            with pytest.raises(FormatError):
                read_file(data[:size])
            continue
        file = read_file(data[:size])
        assert (file.complete, file.missing) == (False, len(data) - size)
        assert file.payload == b"pay"[: size - start]
        assert file.payload_complete == (size >= start + 3)
        assert file.sections == SECTIONS[: size >= start + 3 + 102]
    assert read_file(data).missing == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\x01\x05abc",  # longer than the header says
        b"\x00\x01a",  # type 0
        b"\x63\x80",  # a size without an end
        b"\x63\x01a",  # no alpha, although the header says transparent
    ],
)
def test_damaged_sections_are_refused(body):
    def with_sections(body: bytes) -> bytes:
        head = b"\xd4T\x14ab\x08\x08\x03\xc0\x03" + bytes([len(body)])
        return head + checksum(head, b"pay" + body) + b"pay" + body

    assert read_file(with_sections(b"\x01\x01a")).sections == ((1, b"a"),)
    with pytest.raises(FormatError):
        read_file(with_sections(body))


@pytest.mark.parametrize("count", [1, 40])
def test_bytes_after_the_end_are_refused(count):
    data = write_file(File(9, 9, b"ab", 3, b"pay", SECTIONS))
    with pytest.raises(FormatError, match=rf"\b{count} byte"):
        read_file(data + bytes(count))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 40), (1 << 24, 1 << 24)])
def test_a_header_limits_the_size_of_its_file(width, height):
    plain = write_file(File(width, height, b"ab", (1 << 28) - 1, b"tokens"))
    header = read_header(plain[:HEADER_MAX])
    assert header.file_bytes is None
    assert header.max_file_bytes == header.header_bytes + payload_max(width, height)
    full = write_file(File(width, height, b"ab", 9, bytes(min(payload_max(width, height), 9000)), SECTIONS))
    header = read_header(full[:HEADER_MAX])
    assert header.file_bytes == header.max_file_bytes == len(full)
    assert header == read_header(full)
    assert (header.width, header.height, header.length, header.transparent) == (width, height, 9, True)


def test_a_header_of_the_largest_numbers_has_header_max_bytes():
    reference = Reference(bytes(8), squares=bytes(1 << 29 - 8))
    file = File(1 << 24, 1 << 24, b"ab", (1 << 28) - 1, b"", ((1, bytes(1 << 21)),), reference=reference)
    assert overhead(file, (1 << 28) - 1) - file.section_bytes - len(write_reference(reference)) == HEADER_MAX


def test_more_tokens_than_the_image_can_have_are_refused():
    with pytest.raises(FormatError):
        write_file(File(16, 16, b"ab", 1, bytes(1025)))
    largest = write_file(File(16, 16, b"ab", 1, bytes(1024)))
    assert read_file(largest).complete
    with pytest.raises(FormatError, match=r"\b3 bytes"):
        read_file(largest + bytes(3))
    head = b"\xd4T\x14ab\x0f\x0f\x01\x80"
    assert read_header(head + write_number(1024) + b"\x00crc").payload_bytes == 1024
    with pytest.raises(FormatError):
        read_header(head + write_number(1025) + b"\x00crc")


@given(st.integers(0, 1), st.integers(0, 20_000), st.integers(0, (1 << 28) - 1))
def test_overhead_is_the_file_without_its_payload(sections, size, length):
    file = File(999, 999, b"ab", length, bytes(size), SECTIONS[:sections])
    assert overhead(file, size) + size == len(write_file(file))


def test_a_type_of_section_occurs_once():
    with pytest.raises(FormatError, match="7"):
        read_file(write_file(File(9, 9, b"ab", 3, b"pay", ((7, b"one"), (8, b""), (7, b"two")))))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (1 << 25, 1)])
def test_sides_out_of_range_are_not_written(width, height):
    with pytest.raises(FormatError):
        write_file(File(width, height, b"ab", 1, b""))
