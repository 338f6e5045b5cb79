"""Configurations of networks as plain data. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from codec.errors import ModelError

MAX_NUMBER = (1 << 16) - 1  # maximum in a configuration, so that a damaged file cannot request a huge network
NOT_A_NUMBER = f"a number outside 1..{MAX_NUMBER}"


@dataclass(frozen=True)
class PlainConfig:
    """A configuration that a model file stores as JSON. Families add their fields."""

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; lists become tuples. Raises TypeError, with the names, for unknown or missing keys."""
        if wrong := plain.keys() ^ {field.name for field in fields(cls)}:
            msg = f"unknown or missing in the network's configuration: {', '.join(sorted(wrong))}"
            raise TypeError(msg)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether all values are integers in 1..MAX_NUMBER."""
    return all(type(value) is int and 0 < value <= MAX_NUMBER for value in values)


def refuse(problem: str | None) -> None:
    """Raises ModelError if a configuration has a problem."""
    if problem:
        msg = f"the network's configuration has {problem}"
        raise ModelError(msg)
