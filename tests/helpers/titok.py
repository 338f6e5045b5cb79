"""Published checkpoints of One-D-Piece and TiTok."""

from __future__ import annotations

PUBLISHED = {  # first generation; name: (size, width, layers, tokens)
    "one-d-piece-s-256": ("small", 512, 8, 256),
    "one-d-piece-b-256": ("base", 768, 12, 256),
    "one-d-piece-l-256": ("large", 1024, 24, 256),
    "titok-l-32": ("large", 1024, 24, 32),
    "titok-b-64": ("base", 768, 12, 64),
    "titok-s-128": ("small", 512, 8, 128),
}
SECOND_GENERATION = {  # name: (size, width and layers of the encoder, tokens); all have a large decoder
    "titok-bl-64": ("base", 768, 12, 64),
    "titok-bl-128": ("base", 768, 12, 128),
    "titok-sl-256": ("small", 512, 8, 256),
}


def published_settings(name: str) -> dict:
    """The content of a published config.json."""
    size, _, _, tokens = (PUBLISHED | SECOND_GENERATION)[name]
    vq = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "commitment_cost": 0.25, "num_latent_tokens": tokens}
    vq |= {"vit_enc_model_size": size, "vit_dec_model_size": size, "vit_enc_patch_size": 16, "vit_dec_patch_size": 16}
    if name in SECOND_GENERATION:
        vq |= {"codebook_size": 8192, "token_size": 64, "use_l2_norm": False, "vit_dec_model_size": "large"}
        vq |= {"finetune_decoder": False, "is_legacy": False}
    kind = {"type": "one_d_piece"} if name.startswith("one") else {}
    return {"model": {**kind, "vq_model": vq}, "dataset": {"preprocessing": {"crop_size": 256}}}
