"""The configuration of a TiTok or One-D-Piece network, as plain data. Free of torch, so that tokens can be read without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from codec.errors import ModelError, TesseraError

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, layers, heads
TOP = 1 << 16  # no number of a configuration is larger: keeps a damaged file from asking for a huge network


@dataclass(frozen=True)
class TitokConfig:
    """Everything needed to build the network; stored as plain data beside its weights. The defaults are those of all published
    networks of this family."""

    block_tokens: int  # N: 256 for One-D-Piece; 32, 64 or 128 for TiTok
    tail_drop: bool  # trained with tail token drop, so that the first 1..N tokens decode; otherwise only all of them do
    width: int
    layers: int
    heads: int
    side: int = 256  # pixels of a block
    patch: int = 16  # pixels of a patch
    codebook: int = 4096
    code: int = 12  # numbers of a vector in the codebook
    pixel_codebook: int = 1024
    pixel_code: int = 256
    pixel_width: int = 128
    # Of the width, fine to coarse; each step between them doubles the size
    pixel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_depth: int = 2  # residual blocks per step
    pixel_groups: int = 32  # of every group norm
    mixed: bool = True  # whether the encoder's last layer mixes numbers of several tokens, as in all published networks

    def __post_init__(self) -> None:
        numbers = [value for name, value in asdict(self).items() if name not in ("tail_drop", "mixed", "pixel_multipliers")]
        problem = None
        if type(self.tail_drop) is not bool:
            problem = f"tail_drop {self.tail_drop!r}"
        elif type(self.mixed) is not bool:
            problem = f"mixed {self.mixed!r}"
        elif not all(type(number) is int and 0 < number < TOP for number in (*numbers, *self.pixel_multipliers)):
            problem = f"a number outside 1..{TOP - 1}"
        elif self.side % self.patch or self.patch != 2 ** (len(self.pixel_multipliers) - 1):
            problem = f"patches of {self.patch} pixels for blocks of {self.side} and {len(self.pixel_multipliers)} resolutions"
        elif self.width % self.heads or self.pixel_width % self.pixel_groups:
            problem = f"width {self.width} for {self.heads} heads, pixel width {self.pixel_width} in {self.pixel_groups} groups"
        if problem:
            msg = f"the network's configuration has {problem}"
            raise ModelError(msg)

    @property
    def grid(self) -> int:
        """Patches along the side of a block."""
        return self.side // self.patch

    @property
    def name(self) -> str:
        """What the model is called, for instance one-d-piece-s-256."""
        letters = {numbers: size[0] for size, numbers in SIZES.items()} | {(TINY.width, TINY.layers, TINY.heads): "t"}
        size = letters.get((self.width, self.layers, self.heads), f"{self.width}x{self.layers}")
        return f"{'one-d-piece' if self.tail_drop else 'titok'}-{size}-{self.block_tokens}"

    def check_length(self, block_tokens: int) -> None:
        """Raises TesseraError where the first `block_tokens` tokens of a block are not an image."""
        if not self.tail_drop and block_tokens != self.block_tokens:
            msg = f"{self.name} decodes all {self.block_tokens} tokens of a block or none, not the first {block_tokens}"
            raise TesseraError(msg)
        if not 1 <= block_tokens <= self.block_tokens:
            msg = f"{self.name} has 1..{self.block_tokens} tokens per block, not {block_tokens}"
            raise TesseraError(msg)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TitokConfig:
        """The inverse of `to_dict`; an unknown or missing key is a TypeError that names it."""
        # Files did not say `mixed` at first
        plain = {"mixed": True} | plain
        if wrong := plain.keys() ^ {field.name for field in fields(cls)}:
            msg = f"unknown or missing in the network's configuration: {', '.join(sorted(wrong))}"
            raise TypeError(msg)
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sized(size: str, block_tokens: int, tail_drop: bool) -> TitokConfig:
    """The configuration of a published size. Raises ModelError for a size that is none."""
    if size not in SIZES:
        msg = f"unknown size {size!r}: known are {', '.join(SIZES)}"
        raise ModelError(msg)
    return TitokConfig(block_tokens, tail_drop, *SIZES[size])


# One-D-Piece in small, for tests and quick trials: 0.16 bits per pixel at most
TINY = TitokConfig(
    16, True, 128, 2, 4, side=32, patch=8, codebook=1024, pixel_codebook=256, pixel_code=64,
    pixel_width=16, pixel_multipliers=(1, 1, 2, 4), pixel_depth=1, pixel_groups=4, mixed=False,
)  # fmt: skip
TRAINED = ("tiny", *SIZES)
PUBLISHED_TOKENS = 256  # per block, of the published One-D-Pieces


def trained(size: str = "tiny", block_tokens: int | None = None) -> TitokConfig:
    """The configuration of a new One-D-Piece, tiny or of a published size. Raises ModelError for a size that is none."""
    if size == "tiny":
        return replace(TINY, block_tokens=block_tokens or TINY.block_tokens)
    return replace(sized(size, block_tokens or PUBLISHED_TOKENS, tail_drop=True), mixed=False)
