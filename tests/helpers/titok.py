"""Published checkpoints of One-D-Piece and TiTok."""

from __future__ import annotations

PUBLISHED = {  # name: (size, width, layers, tokens)
    "one-d-piece-s-256": ("small", 512, 8, 256),
    "one-d-piece-b-256": ("base", 768, 12, 256),
    "one-d-piece-l-256": ("large", 1024, 24, 256),
    "titok-l-32": ("large", 1024, 24, 32),
    "titok-b-64": ("base", 768, 12, 64),
    "titok-s-128": ("small", 512, 8, 128),
}


def published_settings(name: str) -> dict:
    """The content of a published config.json."""
    size, _, _, tokens = PUBLISHED[name]
    vq = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "commitment_cost": 0.25, "num_latent_tokens": tokens}
    vq |= {"vit_enc_model_size": size, "vit_dec_model_size": size, "vit_enc_patch_size": 16, "vit_dec_patch_size": 16}
    kind = {"type": "one_d_piece"} if name.startswith("one") else {}
    return {"model": {**kind, "vq_model": vq}, "dataset": {"preprocessing": {"crop_size": 256}}}
