"""The names of tensors in published checkpoints, by their names in the network. No torch.

The four published networks name and order the same modules in different ways. Checkpoints of Open-MAGVIT2 and IBQ hold each
tensor twice: with its last value and, under a name without dots, as a moving average over training steps. The published figures
are those of the averages, so these are read if there are any.
"""

from __future__ import annotations

from dataclasses import dataclass

AVERAGES = "model_ema."  # prefix of the names of averages; the rest is the name of the tensor without dots


@dataclass(frozen=True)
class Naming:
    """How one of the published networks names its modules."""

    family: str  # start of the names of its models
    marker: str  # a tensor that only this network has
    stages: tuple[str, str]  # the stages of the encoder, and of the decoder
    blocks: str  # residual blocks of a stage
    resample: tuple[str, str]  # the convolution of a downsampling, and of an upsampling
    middle: tuple[str, ...]  # modules at the coarsest resolution, in order
    fine_first: bool = True  # whether the decoder numbers its stages from fine to coarse
    superfluous: tuple[str, ...] = ()  # prefixes of names of tensors that the network does not need

    def published(self, name: str, stages: int) -> str:
        """The published name of a tensor by its name in `codec.grid.network`, such as `encoder.stages.0.blocks.1.conv1.weight`.
        `stages` is their number in the encoder, and in the decoder."""
        side, *rest = name.split(".")
        decoder = side == "decoder"
        match rest:
            case ["stages", index, module, *rest]:
                stage = str(stages - 1 - int(index)) if decoder and self.fine_first else index
                module = {"blocks": self.blocks, "attention": "attn"}.get(module, module)
                if module == "resample":
                    module, rest = self.resample[decoder], rest[1:]
                return ".".join([side, self.stages[decoder], stage, module, *rest])
            case ["adaptive", index, *rest]:
                return ".".join([side, "adaptive", str(stages - 1 - int(index)), *rest])
            case ["middle", index, *rest]:
                return ".".join([side, self.middle[int(index)], *rest])
        return name


MASKBIT = Naming(
    "maskbit", "encoder.down.0.res_blocks.0.conv1.weight", ("down", "up"), "res_blocks", ("down_conv", "upsample_conv"),
    ("mid.res_blocks.0", "mid.res_blocks.1"), fine_first=False, superfluous=("quantize.bits_to_indices", "quantize.codebook"),
)  # fmt: skip
MAGVIT2 = Naming(
    "open-magvit2", "encoder.mid_block.0.conv1.weight", ("down", "up"), "block", ("downsample", "upsample.conv1"),
    tuple(f"mid_block.{index}" for index in range(4)), superfluous=(AVERAGES, "loss."),
)  # fmt: skip
IBQ = Naming(
    "ibq", "encoder.mid.attn_1.q.weight", ("down", "up"), "block", ("downsample.conv", "upsample.conv"),
    ("mid.block_1", "mid.attn_1", "mid.block_2"), superfluous=(AVERAGES, "loss."),
)  # fmt: skip
LLAMAGEN = Naming(
    "llamagen", "encoder.conv_blocks.0.res.0.conv1.weight", ("conv_blocks", "conv_blocks"), "res",
    ("downsample.conv", "upsample.conv"), ("mid.0", "mid.1", "mid.2"), fine_first=False,
    superfluous=("quantize.codebook_used",),
)  # fmt: skip
NAMINGS = (MASKBIT, MAGVIT2, IBQ, LLAMAGEN)
