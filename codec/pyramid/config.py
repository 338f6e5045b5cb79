"""The configuration of a network, as plain data. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from bitstream.block_order import BLOCK_CELLS
from bitstream.pyramid_tokens import ANCHOR, NON_ANCHOR, Level
from codec.models.plain_config import PlainConfig

LISTS = ("levels", "steps", "bit_worth", "prior_kernels", "texture_widths")
TEXTURE_SCALES = 3  # at 1/8, 1/4 and 1/2
TEXTURE_RADIUS = 3  # of the texture network in the decoded image, in cells
MAX_LEVELS, MAX_DEPTH, MAX_WIDTH = 64, 64, 1 << 14
CHECKERBOARD = (ANCHOR, NON_ANCHOR)  # the two passes over the cells in a refinement


@dataclass(frozen=True)
class NetworkConfig(PlainConfig):
    """Everything needed to build the network; stored as plain data beside its weights."""

    levels: tuple[Level, ...] = (
        Level(1, 8, 40),
        Level(2, 8, 40),
        Level(4, 8, 24),
        Level(8, 12, 16),
        # Refinements code their cells in two checkerboard passes (He et al., arXiv 2103.15306): the latents of the second pass
        # and the probabilities of its digits are predicted from neighbours in the first.
        *(Level(16, 16, 10, part) for part in CHECKERBOARD),
        *(Level(16, 32, 8, part) for part in CHECKERBOARD),
        *(Level(16, 64, 8, part) for part in CHECKERBOARD),
        *(Level(16, 128, 8, part) for part in CHECKERBOARD),
        *(Level(16, 192, 8, part) for part in CHECKERBOARD),
    )
    # Quantizer steps at the start of training, per level, in latent units. They halve from one refinement to the next: each
    # adds one bit plane.
    steps: tuple[float, ...] = (0.25, 0.25, 0.3, 0.45, 0.75, 0.75, 0.375, 0.375, 0.19, 0.19, 0.095, 0.095, 0.048, 0.048)
    # Lambda of rate-distortion optimised rounding, per level, in squared steps per bit: the larger it is, the wider the
    # deadzone and the fewer the bits. For a uniform quantizer at high rates it is 2 ln 2 / 12 = 0.12; a little less is better
    # in levels that finer levels can still correct.
    bit_worth: tuple[float, ...] = (0.1, 0.1, 0.1, 0.08, 0.08, 0.08, 0.1, 0.1, *(0.12,) * 6)
    channels: int = 192  # C. With 48, PSNR was 0.2-0.3 dB lower at the same rates; with 128, all tokens reach only 30 dB
    predicted_channels: int = 128  # number of leading channels that are predicted; the others hold finer detail
    flat_channels: int = 3  # number of leading channels, which hold only the mean colour of a cell
    # Widths and depths: 17 kMAC per pixel to encode, 25 to decode. Twice as much trains half as fast, and was no better after
    # the same time.
    encoder_width8: int = 48  # channels at 1/8
    encoder_width16: int = 128  # channels at 1/16
    encoder_depth: int = 2
    decoder_width32: int = 256  # channels of the branch at 1/32, a large context at low cost
    decoder_width16: int = 128
    decoder_width8: int = 48
    decoder_width4: int = 24
    decoder_depth16: int = 1  # residual blocks before, and again after, the 1/32 branch joins
    decoder_depth32: int = 3
    decoder_depth8: int = 1
    texture_widths: tuple[int, ...] = ()  # channels of the texture network at 1/8, 1/4 and 1/2; empty if there is none
    detail: float = 1.0  # default strength of texture
    predictor_width: int = 48
    prior_width: int = 64  # channels in the entropy model
    prior_kernels: tuple[int, ...] = (3, 3, 1)  # kernel sides in the entropy model, 3 or 1 each

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for values that no network has, so that a damaged file requests none."""
        sides = [level.side for level in self.levels]
        lengths = {len(self.levels), len(self.steps), len(self.bit_worth)}
        plain = asdict(self)
        depths = [plain.pop(name) for name in ("encoder_depth", "decoder_depth16", "decoder_depth32", "decoder_depth8")]
        counts = [plain[name] for name in plain if name not in (*LISTS, "flat_channels", "detail")]
        widths = self.texture_widths
        numbers = [number for level in self.levels for number in (level.side, level.digits, level.limit, level.part)]
        problem = None
        whole = (*numbers, *depths, *counts, *self.prior_kernels, *widths, self.flat_channels)
        if not all(type(number) is int for number in whole):
            problem = "a number that is not an integer"
        elif not self.levels or len(self.levels) > MAX_LEVELS or len(lengths) > 1:
            problem = f"{len(self.levels)} levels, {len(self.steps)} steps and {len(self.bit_worth)} lambdas"
        elif not set(sides) <= {1, 2, 4, 8, BLOCK_CELLS} or sides != sorted(sides):
            problem = f"levels of {sides} tokens along a block"
        elif not all(0 < number < math.inf for number in (*self.steps, *self.bit_worth)):
            problem = "a step or lambda that is not positive"
        elif not all(0 <= depth <= MAX_DEPTH for depth in depths) or not all(0 < count <= MAX_WIDTH for count in counts):
            problem = f"a width outside 1..{MAX_WIDTH} or a depth outside 0..{MAX_DEPTH}"
        elif len(widths) not in (0, TEXTURE_SCALES) or not all(0 < width <= MAX_WIDTH for width in widths):
            problem = f"texture widths of {widths}"
        elif type(self.detail) not in (int, float) or not 0 <= self.detail <= 1:
            problem = f"a detail of {self.detail}"
        elif not 0 <= self.flat_channels <= self.channels or self.predicted_channels > self.channels:
            problem = f"{self.flat_channels} flat and {self.predicted_channels} predicted of {self.channels} channels"
        elif not set(self.prior_kernels) <= {1, 3} or not 0 < len(self.prior_kernels) <= MAX_DEPTH:
            problem = f"kernels of {self.prior_kernels}"
        for level in self.levels if problem is None else ():
            details = 3 if level.side < BLOCK_CELLS else 0  # digits of a coarse level that are not means
            if not 0 < level.limit < 128 or not max(1, details) <= level.digits <= self.channels + details:
                problem = f"a level of {level.digits} digits up to {level.limit}, for {self.channels} channels"
        if problem:
            msg = f"the network's configuration has {problem}"
            raise ValueError(msg)

    @property
    def encoder_radius(self) -> int:
        """Receptive-field radius of a cell's latents, in cells."""
        return 2 + self.encoder_depth

    @property
    def decoder_radius(self) -> int:
        """Receptive-field radius of a cell's pixels in the latents, in cells; even, because of the branch at 1/32."""
        radius = 1 + 2 * self.decoder_depth16 + 2 * (1 + self.decoder_depth32) + self.pixel_radius + 1
        return 2 * -(-radius // 2)

    @property
    def pixel_radius(self) -> int:
        """Receptive-field radius of a cell's pixels in the decoder's features at 1/16, in cells; with texture, if there is
        any."""
        return self.decoder_depth8 // 2 + 1 + (TEXTURE_RADIUS if self.texture_widths else 0)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        levels = {"levels": [Level(**level) for level in plain["levels"]]} if "levels" in plain else {}
        without_texture = {"texture_widths": (), "detail": cls.detail}  # files of networks without texture lack these
        return super().from_dict(without_texture | plain | levels)
