"""Rate, quality and speed of Tessera and other codecs."""

from codec.errors import TesseraError


class BenchError(TesseraError):
    """A codec or metric of a benchmark is missing, or fails."""


BUDGETS = (0.0147, 0.0244, 0.0443, 0.0806, 0.153, 0.25, 0.4, 0.7)  # default rates of `tessera bench`, bits per pixel
