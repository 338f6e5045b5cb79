"""The recipe of a training run: plain data, which `cli.train` turns into flags too. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

from codec.options import Option

MINUTES = 60.0
DECAY = 0.2


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe of a run; families add fields of their own."""

    minutes: Annotated[float, Option("Length of the schedule", 0, positive=True, metavar="N", default=f"{MINUTES:g}")] = MINUTES
    # Length of the schedule in steps instead, if not 0
    steps: Annotated[int, Option("Number of steps of the schedule; such runs are reproducible", 1, metavar="N")] = 0
    batch: Annotated[int, Option("Crops per step", 1, metavar="N")] = 8
    # 1e-3 is faster from scratch, but costs a trained network 0.2 dB for a while
    rate: Annotated[float, Option("Peak learning rate; wide transformers need about 1e-4", metavar="LR")] = 4e-4
    # Against the squared error
    perceptual: Annotated[float, Option("Weight of the perceptual loss", metavar="W")] = 1.0
    patch: Annotated[int, Option("Side of the window for the perceptual loss", 16, 256, metavar="PIXELS")] = 64
    decay: Annotated[
        float,
        Option(
            "Final share of the schedule in which the learning rate falls to zero",
            0,
            1,
            positive=True,
            metavar="SHARE",
            default=f"{DECAY:g}",
        ),
    ] = DECAY
    average: Annotated[
        float, Option("Decay of the moving average of weights that the model file stores", metavar="DECAY")  # per step
    ] = 0.999
    seed: Annotated[int, Option("Seed of all random choices", metavar="N")] = 0

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `asdict`, after JSON. Raises TypeError for an unknown key."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
        return cls(**values)
