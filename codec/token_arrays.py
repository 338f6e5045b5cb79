"""Tokens as NumPy arrays: what `tessera tokens` writes and reads. No torch."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from bitstream.container import SIDE_MAX, File, read_file, write_file
from bitstream.range_coder import encode_tokens
from codec.errors import FormatError, TesseraError
from codec.image.reading import MAX_PIXELS, check_size
from codec.models.registry import DEFAULT, model_for, open_model
from codec.results import read_tokens

NPY_HEADER = 256  # bytes that NumPy puts before an array, at most, where it has few dimensions


def file_to_npz(data: bytes, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """A .tsr file -> an .npz of its tokens, width, height and length.

    Arrays: `size` (width, height), and those of the model's code. For the pyramid they are `digits_I` int8 (D, n, m) and
    `known_I` bool (n, m) for each level I; for One-D-Piece and TiTok `indices` int32 and `known` bool (N, rows, columns)."""
    file = read_file(data)
    check_size(file.width, file.height, max_pixels)
    code = (open_model(model) if model else model_for(file.stream_id)).code
    prefix = read_tokens(file, code)
    arrays: dict[str, NDArray] = {"size": np.array([file.width, file.height]), **code.to_arrays(prefix)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue(), file.width, file.height, prefix.length


def npz_to_file(data: bytes, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """The inverse of `file_to_npz`. The known tokens must be the first of the sequence, as they are in any file.

    Raises FormatError for arrays that are missing, of another shape, or out of range, and ImageError for too large an image;
    no array is unpacked before its size was checked."""
    chosen = open_model(model or DEFAULT)
    code = chosen.code
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            width, height = (int(side) for side in _array(archive, "size", (2,), "integer"))
            if not 0 < width <= SIDE_MAX or not 0 < height <= SIDE_MAX:
                msg = f"size is {width}x{height}: sides are 1 to {SIDE_MAX} pixels"
                raise FormatError(msg)
            check_size(width, height, max_pixels)
            layout = code.layout(width, height)
            types = code.array_types(layout).items()
            arrays = {name: _array(archive, name, shape, kind) for name, (kind, shape) in types}
    except TesseraError:
        raise
    except Exception as error:  # what the readers of zip and npy run into has no common name
        msg = f"not an .npz of tokens ({error})"
        raise FormatError(msg) from error
    prefix = code.from_arrays(layout, arrays)
    length = prefix.length
    sequence = code.sequence(prefix)
    first = code.to_arrays(sequence.first(length))
    if not all(np.array_equal(arrays[name], first[name]) for name in arrays if name.startswith("known")):
        msg = f"the {length} known tokens are not the first {length} of the sequence: a file holds no others"
        raise FormatError(msg)
    payload = encode_tokens(sequence, length)
    return write_file(File(width, height, chosen.stream_id, length, payload)), width, height, length


def _array(arrays: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: str) -> NDArray:
    """An array of an .npz, if it is of that shape and type. Raises FormatError, KeyError, or what NumPy raises."""
    entry = arrays.getinfo(f"{name}.npy")
    width = 8 if kind == "integer" else np.dtype(kind).itemsize
    expected = width * int(np.prod(shape, dtype=np.int64))
    if entry.file_size > expected + NPY_HEADER:
        msg = f"{name} has {entry.file_size:,} bytes, and {kind} {shape} takes {expected:,}"
        raise FormatError(msg)
    with arrays.open(entry) as stream:  # with a number of bytes: without one, zipfile unpacks more than the entry says
        content = io.BytesIO(stream.read(entry.file_size + 1))
    array = np.lib.format.read_array(content, allow_pickle=False)
    fits = np.issubdtype(array.dtype, np.integer) if kind == "integer" else array.dtype == np.dtype(kind)
    if array.shape != shape or not fits:
        msg = f"{name} is {array.dtype} {array.shape}: {kind} {shape} is needed"
        raise FormatError(msg)
    return array
