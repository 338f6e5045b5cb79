"""Model files of DetailFlow, and its published checkpoints. No torch until a network is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from bitstream.codebook_tokens import CodebookCode, uniform_code
from codec.detailflow.config import DetailFlowConfig, published_config
from codec.errors import ModelError
from codec.models.published import PublishedModel

if TYPE_CHECKING:
    from torch import Tensor

    from codec.detailflow.network import DetailFlow
    from codec.models.checkpoint import Checkpoint

# Parts of a checkpoint that only its training used: features of SigLIP 2 as a target, and the correction of wrong tokens.
TRAINING = (
    "repa_model.",
    "projection.",
    "global_token_proj.",
    "refine_conv.",
    "encoder.refined_tokens",
    "quantize.codebook_used",
)
RENAMED = {"visual_model.encoder.": "", "visual_model.embeddings.": "", "visual_model.": "", "to_pixel.model.": "to_pixel."}
NAMES = "DetailFlow-16, -32 or -64"
RESIZED = "decoder.resized_positions."
SETTINGS: dict[str, tuple[Any, ...]] = {  # supported values in config.json; all published checkpoints have them
    "max_image_size": (256,), "enc_patch_size": (16,), "dec_patch_size": (16,), "num_codebooks": (1,),
    "codebook_l2_norm": (True,), "causal_encoder": (True,), "causal_decoder": (False,), "group_size": (8,),
    "causal_num": (None, 8), "enc_type": ("siglip2",), "dec_type": ("siglip2",), "encoder_model": ("siglip2_base",),
    "decoder_model": ("siglip2_base",),
}  # fmt: skip


@dataclass(frozen=True)
class DetailFlowModel(PublishedModel):
    """A model file of this family."""

    kind = "tessera-detailflow-1"
    config_type = DetailFlowConfig
    derived = (RESIZED,)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        return "encoder.latent_tokens" in checkpoint.shapes

    @classmethod
    def checkpoint_config(cls, checkpoint: Checkpoint, variant: str | None) -> DetailFlowConfig:
        """See `PublishedModel`. The exponent of resolutions is in no file that is read, and taken as published."""
        for key, values in SETTINGS.items():
            if (stated := (checkpoint.config or {}).get(key, values[0])) not in values:
                msg = f"a DetailFlow whose {key} is {stated!r}, which is not supported: use {NAMES}"
                raise ModelError(msg)
        shape = checkpoint.shapes["encoder.latent_tokens"]
        return published_config(shape[1] if len(shape) == 3 else 0)

    @classmethod
    def build(cls, config: DetailFlowConfig) -> DetailFlow:
        from codec.detailflow.network import DetailFlow

        return DetailFlow(config)

    @classmethod
    def new_code(cls, config: DetailFlowConfig) -> CodebookCode:
        return replace(uniform_code(config.block_tokens, config.codebook, config.side), group=config.group)

    def read_code(self, arrays: Mapping[str, NDArray[Any]]) -> CodebookCode:
        code: Any = super().read_code(arrays)
        return replace(code, group=self.config.group)

    @classmethod
    def sources(cls, checkpoint: Checkpoint, config: DetailFlowConfig) -> dict[str, str]:
        return {_network_name(name): name for name in checkpoint.shapes if not name.startswith(TRAINING)}

    @classmethod
    def derive(cls, config: DetailFlowConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        from codec.detailflow.network import resize_positions

        table = weights["decoder.position_embedding.weight"]
        return {f"{RESIZED}{grid - 1}": resize_positions(table, grid) for grid in range(1, config.grid)}


def _network_name(published: str) -> str:
    for part, replacement in RENAMED.items():
        published = published.replace(part, replacement)
    return published
