"""Tokens as arrays: files convert to .npz and back, and other arrays are refused."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from codec.errors import FormatError, ImageError, TesseraError, TruncatedError
from codec.token_arrays import file_to_npz, npz_to_file


@pytest.fixture(scope="module")
def data(codec, photo) -> bytes:
    return codec.encode(photo.crop((200, 100, 260, 150)), tokens=400).data


@pytest.fixture(scope="module")
def arrays(data) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(file_to_npz(data)[0])) as archive:
        return dict(archive)


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The files in an .npz, unpacked."""
    with zipfile.ZipFile(io.BytesIO(npz(arrays))) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def test_npz_to_file_inverts_file_to_npz(data, arrays):
    again, width, height, length = npz_to_file(npz(arrays))
    assert again == data
    assert (width, height, length) == (60, 50, int(sum(arrays[f"known_{i}"].sum() for i in range(9))))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("size", np.array([60, 500])),
        ("size", np.array([0, 50])),
        ("size", np.array([-60, 50])),
        ("size", np.array([60.0, 50.0])),
        ("size", np.array([60, 50, 3])),
        ("digits_3", np.zeros((2, 2), np.int8)),
        ("digits_3", np.zeros((12, 2, 2), np.float16)),
        ("digits_3", np.full((12, 2, 2), 17, np.int8)),
        ("digits_3", np.full((12, 2, 2), -128, np.int8)),
        ("known_8", np.ones((4, 4), bool)),
        ("known_0", np.array([[1]])),
        ("known_2", None),
        ("digits_8", np.array([{}], object)),  # would have to be unpickled
    ],
)
def test_wrong_arrays_are_refused(arrays, name, array):
    changed = {key: value for key, value in (arrays | {name: array}).items() if value is not None}
    with pytest.raises(FormatError):
        npz_to_file(npz(changed))


def test_a_cut_file_has_no_arrays(data):
    with pytest.raises(TruncatedError) as error:
        file_to_npz(data[:-10])
    assert error.value.advice == ()  # the command has no option for such files


def test_size_is_checked_first(arrays):
    for changed, limit in (({"size": np.array([1 << 24, 1 << 24])}, {}), ({}, {"max_pixels": 100})):
        with pytest.raises(ImageError) as caught:
            npz_to_file(npz(arrays | changed), **limit)
        assert caught.value.advice == ("max_pixels",)


def test_arrays_larger_than_expected_are_not_unpacked():
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "|i1", "fortran_order": False, "shape": (1 << 28,)})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("size.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array([60, 50]))
        file.writestr("digits_0.npy", header.getvalue() + bytes(1 << 26))
    honest = bomb.getvalue()
    size = (1 << 26) + len(header.getvalue())
    lying = honest.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != honest
    for data in (honest, lying):
        tracemalloc.start()
        with pytest.raises(FormatError):
            npz_to_file(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["size.npy", "digits_0.npy"])
def test_arrays_that_unpack_without_a_limit_are_refused(arrays, packing, name):
    bomb = io.BytesIO()
    files = npy_files(arrays)
    with zipfile.ZipFile(bomb, "w") as file:
        for entry, content in files.items():
            if entry == name:
                file.writestr(entry, content + bytes(1 << 26), packing)
            else:
                file.writestr(entry, content)
    data, size = bomb.getvalue(), len(files[name])
    lying = data.replace((size + (1 << 26)).to_bytes(4, "little"), size.to_bytes(4, "little"))
    assert lying != data
    tracemalloc.start()
    with pytest.raises(FormatError):
        npz_to_file(lying)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_known_tokens_that_no_file_has_are_refused(arrays):
    for levels in (range(14), [4], [13]):
        known = {f"known_{i}": np.ones_like(arrays[f"known_{i}"]) for i in levels}
        with pytest.raises(FormatError):
            npz_to_file(npz(arrays | known))


def test_damage_is_refused_or_changes_nothing(data, arrays):
    """Every array has a checksum, so a damaged .npz is refused unless the damage lies outside of its contents."""
    content = npz(arrays)
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(60):
        broken = bytearray(content if attempt % 2 else content[: int(rng.integers(len(content)))])
        for _ in range(attempt % 4):
            if broken:
                broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        try:
            assert npz_to_file(bytes(broken))[0] == data
        except TesseraError:
            refused += 1
    assert refused > 40
