"""The configuration of a DetailFlow network, as plain data. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from codec.errors import TesseraError
from codec.models.plain_config import NOT_A_NUMBER, PlainConfig, are_numbers, refuse

MAX_DEPTH = 64  # layers


@dataclass(frozen=True)
class DetailFlowConfig(PlainConfig):
    """Everything needed to build the network; stored with its weights. All published networks have the default values."""

    block_tokens: int  # N: 128 for DetailFlow-16, 256 for DetailFlow-32, 512 for DetailFlow-64
    side: int = 256  # pixels of a block
    patch: int = 16  # pixels of a patch
    group: int = 8  # tokens that are encoded, and were trained to be decoded, together; in the first group, one by one
    power: float = 1.5  # exponent of the resolution's growth with the number of tokens
    codebook: int = 8192
    code: int = 8  # length of a vector in the codebook
    width: int = 1152  # width of the encoder
    layers: int = 12
    heads: int = 16
    hidden: int = 4304  # width of the encoder's perceptrons
    decoder_width: int = 768
    decoder_layers: int = 12
    decoder_heads: int = 12
    decoder_hidden: int = 3072

    def __post_init__(self) -> None:
        numbers = [value for name, value in asdict(self).items() if name != "power"]
        problem = None
        if type(self.power) is not float or not 0 < self.power <= MAX_DEPTH:
            problem = f"power {self.power!r}"
        elif not are_numbers(numbers):
            problem = NOT_A_NUMBER
        elif max(self.layers, self.decoder_layers) > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} layers"
        elif self.side % self.patch:
            problem = f"patches of {self.patch} pixels for blocks of {self.side}"
        elif self.block_tokens % self.group or self.block_tokens == 1:
            problem = f"{self.block_tokens} tokens in groups of {self.group}"
        elif self.width % self.heads or self.decoder_width % self.decoder_heads:
            problem = f"widths {self.width} and {self.decoder_width} for {self.heads} and {self.decoder_heads} heads"
        refuse(problem)

    @property
    def grid(self) -> int:
        """Patches along the side of a block, g."""
        return self.side // self.patch

    @property
    def tail_drop(self) -> bool:
        """Whether any prefix of a block's tokens decodes."""
        return True

    @property
    def name(self) -> str:
        """Name of the model: as published, with the number of groups per block."""
        return f"detailflow-{self.block_tokens // self.group}"

    def check_length(self, block_tokens: int) -> None:
        """Raises TesseraError if the network cannot decode the first `block_tokens` tokens of a block."""
        if not 1 <= block_tokens <= self.block_tokens:
            msg = f"{self.name} has 1..{self.block_tokens} tokens per block, not {block_tokens}"
            raise TesseraError(msg)

    def trained_length(self, block_tokens: int) -> int:
        """The largest number of tokens up to `block_tokens` that the network was trained to decode: any in the first group,
        then whole groups."""
        return block_tokens if block_tokens <= self.group else block_tokens // self.group * self.group

    def grid_of(self, block_tokens: int) -> int:
        """Patches along the side of the image that the network decodes from the first `block_tokens` tokens of a block."""
        slope = (self.side - 1) / (self.block_tokens - 1) ** self.power
        side = int(self.side - slope * (self.block_tokens - block_tokens) ** self.power)
        return max(1, math.ceil(side / self.patch))


def published_config(block_tokens: int) -> DetailFlowConfig:
    """The configuration of a published network. Raises ModelError for a number of tokens per block that is impossible."""
    return DetailFlowConfig(block_tokens)
