"""The configuration of a convolutional tokenizer, as plain data. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitstream.block_order import BLOCK
from codec.models.plain_config import NOT_A_NUMBER, PlainConfig, are_numbers, refuse

QUANTIZERS = ("sign", "vector", "unit-vector")
MAX_DEPTH = 16  # residual blocks per resolution, and resolutions
MAX_CODEBOOK = 1 << 20
FLAGS = ("attention", "bias", "adaptive", "output_shortcut", "centred_downsampling", "depth_to_space", "signed")


@dataclass(frozen=True)
class GridConfig(PlainConfig):
    """Everything needed to build the network; stored with its weights. A flag describes one difference between the
    published networks."""

    name: str  # such as maskbit-18
    quantizer: str  # "sign": one bit per number; "vector": largest scalar product; "unit-vector": the same with unit vectors
    code: int  # D, numbers of a token before quantization: its bits, or the length of a vector of the codebook
    codebook: int  # V, number of vectors; 0 for bits
    latent: int  # channels between the encoder and the projection to D; D without projection
    encoder_depth: int  # residual blocks per resolution
    decoder_depth: int
    middle_depth: int  # residual blocks at the coarsest resolution, in addition to its own
    attention: bool  # whether the coarsest resolution has attention after each residual block
    bias: bool  # whether the first convolution and the residual blocks have biases
    adaptive: bool  # whether each resolution of the decoder is scaled by the mean and deviation of the codes
    output_shortcut: bool  # whether a shortcut that changes the width starts from the output of the block
    centred_downsampling: bool  # padding of a strided convolution: one pixel on each side, or one at the right and bottom
    depth_to_space: bool  # upsampling: a convolution to four times the channels, or the nearest pixel and a convolution
    signed: bool  # range of pixels: [-1, 1], or [0, 1]
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # multiples of the width, fine to coarse; resolutions halve
    groups: int = 32  # groups in each group norm

    def __post_init__(self) -> None:
        numbers = (self.code, self.latent, self.encoder_depth, self.decoder_depth, self.middle_depth, self.width, self.groups)
        depths = (self.encoder_depth, self.decoder_depth, self.middle_depth, len(self.multipliers))
        problem = None
        if self.quantizer not in QUANTIZERS:
            problem = f"quantizer {self.quantizer!r}"
        elif type(self.name) is not str or not self.name:
            problem = f"name {self.name!r}"
        elif not all(type(getattr(self, flag)) is bool for flag in FLAGS):
            problem = "a flag that is neither true nor false"
        elif not are_numbers((*numbers, *self.multipliers)):
            problem = NOT_A_NUMBER
        elif type(self.codebook) is not int or not 0 <= self.codebook <= MAX_CODEBOOK:
            problem = f"a codebook of {self.codebook} vectors"
        elif (self.quantizer == "sign") != (self.codebook == 0):
            problem = f"a codebook of {self.codebook} vectors for the quantizer {self.quantizer}"
        elif max(depths) > MAX_DEPTH or not self.multipliers:
            problem = f"more than {MAX_DEPTH} blocks or resolutions, or none"
        elif any(self.width * multiplier % self.groups for multiplier in self.multipliers):
            problem = f"width {self.width} in {self.groups} groups"
        elif self.quantizer == "sign" and self.latent != self.code:
            problem = f"{self.latent} channels for {self.code} bits"
        refuse(problem)

    @property
    def cell(self) -> int:
        """Pixels along the side of a token's square."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def side(self) -> int:
        """Pixels along the side of a block that is coded alone: a cell."""
        return self.cell

    @property
    def block_tokens(self) -> int:
        """Tokens per block of 256x256 pixels."""
        return (BLOCK // self.cell) ** 2

    @property
    def tail_drop(self) -> bool:
        """Any prefix of an image's tokens decodes: missing ones are filled in. The networks were not trained for it."""
        return True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, fine to coarse."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of values of each digit of a token: twos for bits, V for an index."""
        return (2,) * self.code if self.quantizer == "sign" else (self.codebook,)


F8 = (1, 2, 2, 4)  # multipliers of networks with cells of 8 pixels

_MASKBIT = GridConfig(
    "maskbit", "sign", 10, 0, latent=10, encoder_depth=2, decoder_depth=2, middle_depth=2, attention=False, bias=False,
    adaptive=False, output_shortcut=True, centred_downsampling=False, depth_to_space=False, signed=False,
)  # fmt: skip
_MAGVIT2 = GridConfig(
    "open-magvit2", "sign", 18, 0, latent=18, encoder_depth=4, decoder_depth=4, middle_depth=4, attention=False, bias=False,
    adaptive=True, output_shortcut=False, centred_downsampling=True, depth_to_space=True, signed=True,
)  # fmt: skip
_IBQ = GridConfig(
    "ibq", "vector", 256, 16384, latent=256, encoder_depth=4, decoder_depth=5, middle_depth=2, attention=True, bias=True,
    adaptive=False, output_shortcut=False, centred_downsampling=False, depth_to_space=False, signed=True,
)  # fmt: skip
_LLAMAGEN = replace(_IBQ, name="llamagen", quantizer="unit-vector", code=8, encoder_depth=2, decoder_depth=3)

PUBLISHED = (
    *(replace(_MASKBIT, name=f"maskbit-{bits}", code=bits, latent=bits) for bits in (10, 12, 14, 16, 18)),
    replace(_MAGVIT2, name="open-magvit2-f16"),
    replace(_MAGVIT2, name="open-magvit2-f8", multipliers=F8),
    *(replace(_IBQ, name=f"ibq-{vectors}", codebook=vectors) for vectors in (1024, 8192, 16384, 262144)),
    replace(_LLAMAGEN, name="llamagen-ds16"),
    replace(_LLAMAGEN, name="llamagen-ds8", multipliers=F8),
)
