"""The errors that leave this project."""


class TesseraError(Exception):
    """Anything that Tessera refuses or cannot do. The message says what is wrong; `advice` names the options of the library,
    such as 'max_pixels', that change it. How they are spelt in the shell is the command's affair."""

    usage = False  # whether the request itself makes no sense, whatever the file

    def __init__(self, message: str = "", advice: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.advice = advice


class FormatError(TesseraError):
    """The bytes are not a .tsr file, are damaged, or are of a version or kind that this release does not know."""


class TruncatedError(FormatError):
    """A .tsr file that was cut short; it can still be decoded in part, on request."""


class ModelError(TesseraError):
    """A model file is missing, broken, or not the one that a file was made with."""


class ImageError(TesseraError):
    """An image cannot be read, is too large, or carries what cannot be coded."""


class TargetError(TesseraError):
    """The size or quality asked for cannot be reached; the message says what can."""


class UsageError(TesseraError):
    """The request makes no sense, whatever the file."""

    usage = True


class DeviceError(UsageError):
    """The device that was asked for does not exist."""


class ClusterError(UsageError):
    """Other processes or machines cannot be used: what would start them is not installed, or they are not there."""


class FileError(TesseraError):
    """A file cannot be read or written; the message says why and what to do."""


class CodecMissingError(TesseraError):
    """A codec of the benchmarks cannot run here; the message says why and what to do."""
