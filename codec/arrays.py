"""Tokens as NumPy arrays: what `tessera tokens` writes and reads. No torch."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from bitstream.coder import encode_tokens, sequence_of
from bitstream.container import File, read_file, write_file
from bitstream.errors import FormatError
from bitstream.layout import Layout
from codec.images import MAX_PIXELS, check_size
from codec.stages import read_tokens
from codec.weights import DEFAULT, model_for, open_model


def file_to_npz(data: bytes, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """A .tsr file -> an .npz of its tokens, width, height and length.

    Arrays: `digits_I` int8 (D, n, m) and `known_I` bool (n, m) for each level I, `size` (width, height)."""
    file = read_file(data)
    check_size(file.width, file.height, max_pixels)
    chosen = open_model(model) if model else model_for(file.stream_id)
    _, read = read_tokens(file, chosen.prior)
    arrays: dict[str, NDArray] = {"size": np.array([file.width, file.height])}
    for index, (digits, known) in enumerate(zip(read.digits, read.known, strict=True)):
        arrays |= {f"digits_{index}": digits, f"known_{index}": known}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue(), file.width, file.height, read.length


def npz_to_file(data: bytes, model: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[bytes, int, int, int]:
    """The inverse of `file_to_npz`. The known tokens must be the first of the sequence, as they are in any file.

    Raises FormatError for arrays that are missing, of another shape, or out of range."""
    chosen = open_model(model or DEFAULT)
    prior = chosen.prior
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            width, height = (int(side) for side in arrays["size"])
            check_size(width, height, max_pixels)
            layout = Layout(prior.levels, width, height)
            digits = tuple(arrays[f"digits_{i}"] for i in range(len(prior.levels)))
            length = int(sum(arrays[f"known_{i}"].sum() for i in range(len(prior.levels))))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        msg = f"not an .npz of tokens ({error})"
        raise FormatError(msg) from error
    for index, (level, grid, array) in enumerate(zip(prior.levels, layout.grids, digits, strict=True)):
        if array.shape != (level.digits, *grid) or array.dtype != np.int8 or np.abs(array.astype(int)).max() > level.limit:
            msg = f"digits_{index} is {array.dtype} {array.shape}: int8 {(level.digits, *grid)} within {level.limit} is needed"
            raise FormatError(msg)
    payload = encode_tokens(sequence_of(prior, layout, digits), length)
    return write_file(File(width, height, chosen.stream_id, length, payload)), width, height, length
