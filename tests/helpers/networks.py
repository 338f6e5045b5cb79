"""A pyramid network that trains in moments."""

from __future__ import annotations

import torch

from codec.pyramid.config import NetworkConfig

TINY = NetworkConfig(
    encoder_width8=8, encoder_width16=8, encoder_depth=1, decoder_width32=8, decoder_width16=8, decoder_width8=8,
    decoder_width4=8, decoder_depth16=1, decoder_depth32=1, decoder_depth8=1, predictor_width=8, prior_width=8,
)  # fmt: skip
CPU = torch.device("cpu")
