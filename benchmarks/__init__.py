"""Rate, quality and speed of Tessera and other codecs."""

from codec.errors import TesseraError


class BenchError(TesseraError):
    """A codec or metric of a benchmark is missing, or fails."""
