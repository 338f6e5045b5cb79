"""Model files of TiTok and One-D-Piece. No torch until a network is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codec.models.published import PublishedModel
from codec.titok.config import TitokConfig

if TYPE_CHECKING:
    from codec.models.checkpoint import Checkpoint
    from codec.titok.network import Titok


@dataclass(frozen=True)
class TitokModel(PublishedModel):
    """A model file of this family."""

    kind = "tessera-titok-1"
    config_type = TitokConfig

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        return "encoder.latent_token_positional_embedding" in checkpoint.shapes

    @classmethod
    def checkpoint_config(cls, checkpoint: Checkpoint, variant: str | None) -> TitokConfig:
        """See `PublishedModel`; `variant` is one-d-piece or titok."""
        from codec.titok.checkpoint import network_config

        return network_config(checkpoint, variant)

    @classmethod
    def build(cls, config: TitokConfig) -> Titok:
        from codec.titok.network import Titok

        return Titok(config)
