"""All errors that Tessera raises on purpose."""

from bitstream.errors import FormatError, ModelError, TesseraError, TruncatedError

__all__ = [
    "ClusterError", "DeviceError", "FileError", "FormatError", "ImageError", "ModelError", "TargetError",
    "TesseraError", "TruncatedError", "UsageError",
]  # fmt: skip


class ImageError(TesseraError):
    """An image cannot be read, is too large, or has content that cannot be coded."""


class TargetError(TesseraError):
    """The requested size or quality cannot be reached. The message names the closest one."""


class UsageError(TesseraError):
    """The arguments are wrong, independent of any file."""

    usage = True


class DeviceError(UsageError):
    """The requested device does not exist."""


class ClusterError(UsageError):
    """Ray or the cluster is not available."""


class FileError(TesseraError):
    """A file cannot be read or written."""
