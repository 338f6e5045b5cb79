"""The configuration of a TiTok or One-D-Piece network, as plain data. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from codec.errors import ModelError, TesseraError
from codec.models.plain_config import NOT_A_NUMBER, PlainConfig, are_numbers, refuse

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, layers, heads
SECOND_GENERATION: dict[str, Any] = {"codebook": 8192, "code": 64, "mixed": False, "unit": False, "direct": True}
MAX_DEPTH = 64  # layers


@dataclass(frozen=True)
class TitokConfig(PlainConfig):
    """Everything needed to build the network; stored with its weights. The default values are those of One-D-Piece and of
    TiTok's first generation; `published_config` makes all published ones."""

    block_tokens: int  # N: 256 for One-D-Piece; 32, 64, 128 or 256 for TiTok
    tail_drop: bool  # if true, any prefix of a block's tokens decodes; otherwise a block needs all of them
    width: int  # width of the encoder, and of the decoder unless `decoder_size` is set
    layers: int
    heads: int
    side: int = 256  # pixels of a block
    patch: int = 16  # pixels of a patch
    codebook: int = 4096
    code: int = 12  # length of a vector in the codebook
    pixel_codebook: int = 1024
    pixel_code: int = 256
    pixel_width: int = 128
    pixel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # multiples of the width, fine to coarse; resolutions halve
    pixel_depth: int = 2  # residual blocks per resolution
    pixel_groups: int = 32  # groups in each group norm
    mixed: bool = True  # whether the encoder's last layer mixes the channels of several tokens
    decoder_size: tuple[int, ...] | None = None  # width, layers and heads of the decoder; None if they are the encoder's
    unit: bool = True  # whether vectors and codes are normalised to length 1
    direct: bool = False  # whether the decoder returns pixels; otherwise a pixel decoder follows it

    def __post_init__(self) -> None:
        values = asdict(self)
        flags = {name: values.pop(name) for name in ("tail_drop", "mixed", "unit", "direct")}
        values.pop("decoder_size")
        numbers = (*values.pop("pixel_multipliers"), *values.values(), *self.decoder)
        problem = None
        if wrong := [f"{name} {flag!r}" for name, flag in flags.items() if type(flag) is not bool]:
            problem = wrong[0]
        elif not are_numbers(numbers) or len(self.decoder) != 3:
            problem = NOT_A_NUMBER
        elif max(self.layers, self.decoder[1], self.pixel_depth, len(self.pixel_multipliers)) > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} layers"
        elif self.side % self.patch or self.patch != 2 ** (len(self.pixel_multipliers) - 1):
            problem = f"patches of {self.patch} pixels for blocks of {self.side} and {len(self.pixel_multipliers)} resolutions"
        elif self.width % self.heads or self.decoder[0] % self.decoder[2] or self.pixel_width % self.pixel_groups:
            problem = f"width {self.width} for {self.heads} heads, pixel width {self.pixel_width} in {self.pixel_groups} groups"
        refuse(problem)

    @property
    def grid(self) -> int:
        """Patches along the side of a block, g."""
        return self.side // self.patch

    @property
    def decoder(self) -> tuple[int, ...]:
        """Width, layers and heads of the decoder."""
        return self.decoder_size or (self.width, self.layers, self.heads)

    @property
    def name(self) -> str:
        """Name of the model, such as one-d-piece-s-256, or titok-bl-64 for a base encoder and a large decoder."""
        letters: dict[tuple[int, ...], str] = {numbers: size[0] for size, numbers in SIZES.items()}
        letters[TINY.width, TINY.layers, TINY.heads] = "t"
        sizes = [(self.width, self.layers, self.heads), *([self.decoder_size] if self.decoder_size else [])]
        size = "".join(letters.get(numbers, f"{numbers[0]}x{numbers[1]}") for numbers in sizes)
        return f"{'one-d-piece' if self.tail_drop else 'titok'}-{size}-{self.block_tokens}"

    def check_length(self, block_tokens: int) -> None:
        """Raises TesseraError if the network cannot decode the first `block_tokens` tokens of a block."""
        if not self.tail_drop and block_tokens != self.block_tokens:
            msg = f"{self.name} decodes all {self.block_tokens} tokens of a block or none, not the first {block_tokens}"
            raise TesseraError(msg)
        if not 1 <= block_tokens <= self.block_tokens:
            msg = f"{self.name} has 1..{self.block_tokens} tokens per block, not {block_tokens}"
            raise TesseraError(msg)


def published_config(size: str, block_tokens: int, tail_drop: bool, decoder: str | None = None) -> TitokConfig:
    """The configuration of a published network whose encoder has one of SIZES. The second generation of TiTok has a `decoder`
    of a size of its own. Raises ModelError for another size."""
    for name in filter(None, (size, decoder)):
        if name not in SIZES:
            msg = f"unknown size {name!r}: known are {', '.join(SIZES)}"
            raise ModelError(msg)
    config = TitokConfig(block_tokens, tail_drop, *SIZES[size])
    return replace(config, decoder_size=SIZES[decoder], **SECOND_GENERATION) if decoder else config


# A small One-D-Piece for tests and quick trials, with at most 0.16 bits per pixel
TINY = TitokConfig(
    16, True, 128, 2, 4, side=32, patch=8, codebook=1024, pixel_codebook=256, pixel_code=64,
    pixel_width=16, pixel_multipliers=(1, 1, 2, 4), pixel_depth=1, pixel_groups=4, mixed=False,
)  # fmt: skip
NEW_SIZES = ("tiny", *SIZES)  # sizes of new networks to train
PUBLISHED_BLOCK_TOKENS = 256  # tokens per block in published One-D-Pieces


def new_config(size: str = "tiny", block_tokens: int | None = None) -> TitokConfig:
    """The configuration of a new One-D-Piece, of one of NEW_SIZES. Raises ModelError for another size."""
    if size == "tiny":
        return replace(TINY, block_tokens=block_tokens or TINY.block_tokens)
    return replace(published_config(size, block_tokens or PUBLISHED_BLOCK_TOKENS, tail_drop=True), mixed=False)
