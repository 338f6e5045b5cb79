"""Tokens as NumPy arrays, for `tessera tokens`: `file_to_npz` and its inverse `npz_to_file`. No torch."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from bitstream.container import SIDE_MAX, File, write_file
from bitstream.range_coder import encode_tokens
from codec.errors import FormatError, TesseraError, TruncatedError
from codec.limits import check_size
from codec.models.registry import DEFAULT, model_for, open_model
from codec.options import MAX_PIXELS
from codec.reading import read_tokens, read_tsr
from codec.system.inputs import FileInput

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy's; zipfile unpacks others without a limit
NPY_HEADER_MAX = 256  # bytes of a .npy header, if the array has few dimensions


def file_to_npz(data: FileInput, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """Converts a .tsr file to an .npz of its tokens; returns the .npz, width, height and length.

    Arrays: `size` (width, height), and the arrays of the model's code. For the pyramid these are `digits_I` int8 (D, n, m) and
    `known_I` bool (n, m) for each level I; for TiTok, One-D-Piece and DetailFlow `indices` int32 and `known` bool (N, rows,
    columns); for FlexTok and grid models `digits` int32 (D, *positions) and `known` bool (*positions)."""
    file = read_tsr(data, max_pixels)
    if file.reference:
        msg = "the file has a reference, so its tokens do not describe a complete image: use a file without a reference"
        raise FormatError(msg)
    code = (open_model(model) if model else model_for(file.stream_id)).code
    try:
        prefix = read_tokens(file, code)
    except TruncatedError as error:
        msg = f"{error}; only complete files have arrays: get it again"
        raise TruncatedError(msg) from error
    arrays: dict[str, NDArray] = {"size": np.array([file.width, file.height]), **code.to_arrays(prefix)}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue(), file.width, file.height, prefix.length


def npz_to_file(data: bytes, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """The inverse of `file_to_npz`. The known tokens must be the first ones of the sequence, as in any file.

    Raises FormatError if arrays are missing, have another shape or values out of range, ImageError if the image is too large.
    No array is unpacked before its size is checked."""
    writer = open_model(model or DEFAULT)
    code = writer.code
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            width, height = (int(side) for side in _read_array(archive, "size", (2,), "integer"))
            if not 0 < width <= SIDE_MAX or not 0 < height <= SIDE_MAX:
                msg = f"size is {width}x{height}: sides are 1 to {SIDE_MAX} pixels"
                raise FormatError(msg)
            check_size(width, height, max_pixels)
            layout = code.layout(width, height)
            types = code.array_types(layout).items()
            arrays = {name: _read_array(archive, name, shape, kind) for name, (kind, shape) in types}
    except TesseraError:
        raise
    except Exception as error:  # readers of zip and npy raise errors of any kind
        msg = f"not an .npz of tokens ({error})"
        raise FormatError(msg) from error
    prefix = code.from_arrays(layout, arrays)
    sequence = code.sequence(prefix)
    if prefix.length > layout.tokens:
        msg = f"{prefix.length} tokens are known, of an image that has {layout.tokens}"
        raise FormatError(msg)
    first = code.to_arrays(sequence.first(prefix.length))
    if not all(np.array_equal(arrays[name], first[name]) for name in arrays if name.startswith("known")):
        msg = f"the {prefix.length} known tokens are not the first {prefix.length} of the sequence: a file holds no others"
        raise FormatError(msg)
    writer.check()
    payload = encode_tokens(sequence, prefix.length)
    file = File(width, height, writer.stream_id, prefix.length, payload)
    return write_file(file), width, height, prefix.length


def _read_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: str) -> NDArray:
    """An array of this shape and type from an .npz. Raises FormatError, KeyError, or any error of NumPy."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in PACKINGS:
        msg = f"{name} is packed by method {entry.compress_type} of zip: only stored and deflated arrays are read"
        raise FormatError(msg)
    item_size = 8 if kind == "integer" else np.dtype(kind).itemsize
    expected = item_size * int(np.prod(shape, dtype=np.int64))
    if entry.file_size > expected + NPY_HEADER_MAX:
        msg = f"{name} has {entry.file_size:,} bytes, and {kind} {shape} takes {expected:,}"
        raise FormatError(msg)
    with archive.open(entry) as stream:  # without a size, zipfile unpacks more than the entry states
        content = io.BytesIO(stream.read(entry.file_size + 1))
    array = np.lib.format.read_array(content, allow_pickle=False)
    fits = np.issubdtype(array.dtype, np.integer) if kind == "integer" else array.dtype == np.dtype(kind)
    if array.shape != shape or not fits:
        msg = f"{name} is {array.dtype} {array.shape}: {kind} {shape} is needed"
        raise FormatError(msg)
    return array
