"""Tokens as arrays: there and back, and arrays that are no tokens."""

from __future__ import annotations

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from codec.errors import FormatError, ImageError, TesseraError
from codec.token_arrays import file_to_npz, npz_to_file


@pytest.fixture(scope="module")
def made(codec, photo) -> tuple[bytes, dict[str, np.ndarray]]:
    data = codec.encode(photo.crop((200, 100, 260, 150)), tokens=400)
    with np.load(io.BytesIO(file_to_npz(data)[0])) as arrays:
        return data, dict(arrays)


def archive(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_there_and_back(made):
    data, arrays = made
    again, width, height, length = npz_to_file(archive(arrays))
    assert again == data
    assert (width, height, length) == (60, 50, int(sum(arrays[f"known_{i}"].sum() for i in range(9))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": np.array([60, 500])}, r"digits_0 .*is needed|bytes, and int8"),
        ({"size": np.array([0, 50])}, r"size is 0x50: sides are 1 to 16777216"),
        ({"size": np.array([-60, 50])}, r"size is -60x50"),
        ({"size": np.array([60.0, 50.0])}, r"size is float64 \(2,\): integer \(2,\) is needed"),
        ({"size": np.array([60, 50, 3])}, r"size is int64 \(3,\)"),
        ({"digits_3": np.zeros((2, 2), np.int8)}, r"digits_3 is int8 \(2, 2\): int8 \(12, 2, 2\) is needed"),
        ({"digits_3": np.zeros((12, 2, 2), np.float16)}, r"digits_3 is float16"),
        ({"digits_3": np.full((12, 2, 2), 17, np.int8)}, r"digits_3 has digits beyond 16"),
        ({"digits_3": np.full((12, 2, 2), -128, np.int8)}, r"digits_3 has digits beyond 16"),
        ({"known_8": np.ones((4, 4), bool)}, r"known tokens are not the first \d+ of the sequence"),
        ({"known_0": np.array([[1]])}, r"known_0 is int64"),
        ({"known_2": None}, r"not an .npz of tokens \(.*known_2.npy"),
    ],
)
def test_what_is_wrong_is_said(made, change, said):
    arrays = {name: array for name, array in (made[1] | change).items() if array is not None}
    with pytest.raises(FormatError, match=said):
        npz_to_file(archive(arrays))


def test_size_is_checked_first(made):
    with pytest.raises(ImageError, match="more than 500,000,000"):
        npz_to_file(archive(made[1] | {"size": np.array([1 << 24, 1 << 24])}))
    with pytest.raises(ImageError, match="more than 100"):
        npz_to_file(archive(made[1]), max_pixels=100)


def test_nothing_is_pickled(made):
    with pytest.raises(FormatError, match=r"not an \.npz of tokens"):
        npz_to_file(archive(made[1] | {"digits_8": np.array([{}], object)}))


def test_bombs_are_not_unpacked(made):
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "|i1", "fortran_order": False, "shape": (1 << 28,)})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("size.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array([60, 50]))
        file.writestr("digits_0.npy", header.getvalue() + bytes(1 << 26))
    honest = bomb.getvalue()
    lying = honest.replace(((1 << 26) + len(header.getvalue())).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lying != honest
    for data in (honest, lying):
        tracemalloc.start()
        with pytest.raises(FormatError):
            npz_to_file(data)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_damage_raises_our_errors_alone(made):
    data = archive(made[1])
    rng = np.random.default_rng(0)
    for attempt in range(300):
        broken = bytearray(data if attempt % 2 else data[: int(rng.integers(len(data)))])
        for _ in range(attempt % 4):
            if broken:
                broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        try:
            npz_to_file(bytes(broken))
        except TesseraError:
            continue
