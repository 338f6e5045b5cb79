"""The configuration of a FlexTok network and the defaults of its sampler, as plain data. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from codec.models.plain_config import NOT_A_NUMBER, PlainConfig, are_numbers, refuse
from codec.options import MAX_GUIDANCE, MAX_SEED, MAX_STEPS

MAX_DEPTH = 64  # layers
HEAD = 64  # channels of an attention head
MLP_RATIO = 4  # before the reduction by a third that a gated perceptron has


@dataclass(frozen=True)
class FlextokConfig(PlainConfig):
    """Everything needed to build the network and to decode; stored with its weights. All published networks have the default
    values, except for `max_time`, which their configuration states."""

    encoder_width: int
    encoder_layers: int
    decoder_width: int
    decoder_layers: int
    scale: float  # factor between the latents of the autoencoder and the latents of the transformers
    max_time: float  # unit of the time embedding: 1 or 1000
    side: int = 256  # pixels of a block
    patch: int = 2  # latents along the side of a patch
    block_tokens: int = 256  # N, registers of a block
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)  # values of each digit of a token
    head: int = HEAD
    channels: int = 16  # channels of the latents
    vae_widths: tuple[int, ...] = (128, 256, 512, 512)  # fine to coarse; resolutions halve
    vae_depth: int = 2  # residual blocks per resolution
    vae_groups: int = 32  # groups in each group norm
    steps: int = 20  # steps of the sampler, the value in the authors' example
    guidance: float = 7.5  # likewise
    seed: int = 0

    def __post_init__(self) -> None:
        decimals = ("scale", "max_time", "guidance")
        numbers = [value for name, value in asdict(self).items() if name not in (*decimals, "levels", "vae_widths", "seed")]
        problem = None
        if not are_numbers((*numbers, *self.levels, *self.vae_widths)):
            problem = NOT_A_NUMBER
        elif not all(isinstance(value, float) and math.isfinite(value) and value > 0 for value in (self.scale, self.max_time)):
            problem = f"scale {self.scale!r} or max_time {self.max_time!r}"
        elif max(self.encoder_layers, self.decoder_layers, self.vae_depth, len(self.levels)) > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} layers"
        elif not 1 <= len(self.vae_widths) <= 8 or self.side % (self.patch * self.downsampling):
            problem = f"patches of {self.patch} latents for blocks of {self.side} and {len(self.vae_widths)} resolutions"
        elif any(width % self.head or width % 4 for width in (self.encoder_width, self.decoder_width)):
            problem = f"widths {self.encoder_width} and {self.decoder_width} for heads of {self.head}"
        elif any(width % self.vae_groups for width in self.vae_widths):
            problem = f"widths {self.vae_widths} in {self.vae_groups} groups"
        elif min(self.levels) < 2:
            problem = f"digits of {min(self.levels)} value"
        elif self.steps > MAX_STEPS or not (type(self.seed) is int and 0 <= self.seed <= MAX_SEED):
            problem = f"steps {self.steps!r} or seed {self.seed!r}"
        elif not (type(self.guidance) in (int, float) and 1 <= self.guidance <= MAX_GUIDANCE):
            problem = f"guidance {self.guidance!r}"
        refuse(problem)

    @property
    def downsampling(self) -> int:
        """Pixels along the side of a latent."""
        return 2 ** (len(self.vae_widths) - 1)

    @property
    def latents(self) -> int:
        """Latents along the side of a block."""
        return self.side // self.downsampling

    @property
    def grid(self) -> int:
        """Patches along the side of a block, g."""
        return self.latents // self.patch

    @property
    def tail_drop(self) -> bool:
        """Any prefix of a block's tokens decodes."""
        return True

    @property
    def name(self) -> str:
        """Name of the model, such as flextok-d18-d28."""
        return f"flextok-d{self.encoder_layers}-d{self.decoder_layers}"


def hidden_width(width: int) -> int:
    """Channels inside a gated perceptron: two thirds of four times the width, rounded down."""
    return 2 * MLP_RATIO * width // 3
