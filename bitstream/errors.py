"""Errors of the format. `codec.errors` lists all errors."""


class TesseraError(Exception):
    """Base class of all errors that Tessera raises on purpose. `advice` names options of the library, such as 'max_pixels',
    that would avoid the error; the command translates them to flags."""

    usage = False  # whether the arguments are wrong, independent of any file

    def __init__(self, message: str = "", advice: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.advice = advice


class FormatError(TesseraError):
    """The bytes are not a .tsr file, are damaged, or use a version or feature that this release does not know."""


class TruncatedError(FormatError):
    """A .tsr file is cut short. The tokens before the cut can be decoded on request."""


class ModelError(TesseraError):
    """A model is missing, damaged, or not the model that wrote a file. Defined here because tables in a model file are
    part of the format (FORMAT.md, sections 5 and 8), and this package validates them."""
