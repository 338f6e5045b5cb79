"""Configurations of networks as plain data. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self


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
