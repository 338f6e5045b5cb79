"""The configuration of a network, as plain data. Free of torch, so that tokens can be read without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from bitstream.pyramid_tokens import EVEN, ODD, Level

HALVES = (EVEN, ODD)
BEFORE = {"prior_kernels": [3, 1, 1], "flat_channels": 0}  # what networks had before these were stored


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build the network; stored as plain data beside its weights."""

    levels: tuple[Level, ...] = (
        Level(1, 8, 40),
        Level(2, 8, 40),
        Level(4, 8, 24),
        Level(8, 12, 16),
        # The cells of a refinement in two halves: what is predicted of the second, and how likely its digits are, follows
        # from its neighbours in the first.
        *(Level(16, 16, 10, half) for half in HALVES),
        *(Level(16, 32, 8, half) for half in HALVES),
        *(Level(16, 64, 8, half) for half in HALVES),
        *(Level(16, 128, 8, half) for half in HALVES),
        *(Level(16, 192, 8, half) for half in HALVES),
    )
    # Quantizer steps that training starts from, per level, in latent units. They halve from one refinement to the next: each
    # adds one bit plane.
    steps: tuple[float, ...] = (0.25, 0.25, 0.3, 0.45, 0.75, 0.75, 0.375, 0.375, 0.19, 0.19, 0.095, 0.095, 0.048, 0.048)
    # Squared error, in steps, that a bit is worth when rounding, per level: the wider the deadzone, the fewer bits. A uniform
    # quantizer at its best slope has 2 ln 2 / 12 = 0.12; a little less where finer levels can still mend what is lost.
    bit_worth: tuple[float, ...] = (0.1, 0.1, 0.1, 0.08, 0.08, 0.08, 0.1, 0.1, *(0.12,) * 6)
    channels: int = 192  # C; with 48 the same rates were 0.2-0.3 dB worse, with 128 what all tokens can say ended at 30 dB
    predicted_channels: int = 128  # the first of them; of the finer detail in the others nothing is predicted
    flat_channels: int = 3  # the first of them, which hold flat colours and nothing else
    # Widths and depths: 15 kMAC per pixel in all. Twice as much trains half as fast, and was no better for the same time.
    encoder_width8: int = 48  # at 1/8
    encoder_width16: int = 128  # at 1/16
    encoder_depth: int = 2
    decoder_width32: int = 256  # the 1/32 branch: cheap context
    decoder_width16: int = 128
    decoder_width8: int = 48
    decoder_width4: int = 24
    decoder_depth16: int = 1  # residual blocks before, and again after, the 1/32 branch joins
    decoder_depth32: int = 3
    decoder_depth8: int = 1
    predictor_width: int = 48
    prior_width: int = 64
    prior_kernels: tuple[int, ...] = (3, 3, 1)  # of the prior's layers: 3 or 1

    @classmethod
    def from_dict(cls, plain: dict) -> NetworkConfig:
        """The inverse of `to_dict`; an unknown or missing key is a TypeError that names it."""
        plain = BEFORE | plain
        if "steps" not in plain and "levels" in plain:  # each level had its own step in models of before
            levels = [dict(level) for level in plain["levels"]]
            plain |= {"steps": [level.pop("step") for level in levels], "levels": levels}
        plain.setdefault("predicted_channels", plain.get("channels"))  # all, in models of before
        if wrong := plain.keys() ^ {field.name for field in fields(cls)}:
            msg = f"unknown or missing in the network's configuration: {', '.join(sorted(wrong))}"
            raise TypeError(msg)
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        values["levels"] = tuple(Level(**level) for level in plain["levels"])
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)
