"""The errors of the library, all subclasses of TesseraError."""

from bitstream.errors import FormatError, ModelError, TesseraError, TruncatedError, naming

__all__ = [
    "ClusterError", "DeviceError", "FileError", "FormatError", "ImageError", "ModelError", "TargetError",
    "TesseraError", "TruncatedError", "UsageError", "naming",
]  # fmt: skip


class ImageError(TesseraError):
    """An image cannot be read, is too large, or has content that cannot be coded."""


class TargetError(TesseraError):
    """No file fits the requested size, or the image is too small to measure the requested quality."""


class UsageError(TesseraError):
    """The arguments are wrong, independent of any file."""

    usage = True


class DeviceError(UsageError):
    """The requested device does not exist."""


class ClusterError(UsageError):
    """Ray or the cluster is not available."""


class FileError(TesseraError):
    """A file cannot be read or written."""
