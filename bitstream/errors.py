"""Errors of the format. `codec.errors` lists all errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class TesseraError(Exception):
    """Base class of all errors that Tessera raises on purpose. `message` is the cause and the next step. `file` is the path of
    the file that the error is about, or the name of a model; `str` begins with it. `advice` names options of the library, such
    as 'max_pixels', that would avoid the error; the command translates them to flags."""

    usage = False  # whether the arguments are wrong, independent of any file

    def __init__(self, message: str = "", advice: tuple[str, ...] = (), file: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice
        self.file = None if file is None else os.fsdecode(file)

    def __str__(self) -> str:
        return self.message if self.file is None else f"{self.file}: {self.message}"

    def about(self, file: str | os.PathLike[str] | None) -> None:
        """Sets the file of an error that has none."""
        if self.file is None and file is not None:
            self.file = os.fsdecode(file)


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Errors within the block are about this file, unless they are about another."""
    try:
        yield
    except TesseraError as error:
        error.about(file)
        raise


class FormatError(TesseraError):
    """The bytes are not a .tsr file, are damaged, or use a version or feature that this release does not know."""


class TruncatedError(FormatError):
    """A .tsr file is cut short. The tokens before the cut can be decoded on request."""


class ModelError(TesseraError):
    """A model is missing, damaged, or not the model that wrote a file. Defined here because tables in a model file are
    part of the format (FORMAT.md, sections 5 and 8), and this package validates them."""
