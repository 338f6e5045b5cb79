"""A network that becomes wider: `benchmarks/tools/widen.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.tools.widen import left_over, wide, widened
from bitstream.pyramid_tokens import EVEN, ODD, Level
from codec.errors import ModelError
from codec.models.pixels import to_network
from codec.pyramid.config import NetworkConfig
from codec.pyramid.network import Network
from codec.pyramid.training import Prices, code_for_training

OLD = NetworkConfig(
    levels=(Level(8, 4, 8), Level(16, 4, 8, EVEN), Level(16, 4, 8, ODD), Level(16, 6, 8, EVEN), Level(16, 6, 8, ODD)),
    steps=(0.25,) * 5, bit_worth=(0.1,) * 5, channels=6, predicted_channels=6, encoder_width8=8, encoder_width16=8,
    encoder_depth=1, decoder_width32=8, decoder_width16=8, decoder_width8=8, decoder_width4=8, decoder_depth16=1,
    decoder_depth32=1, decoder_depth8=1, predictor_width=8, prior_width=8,
)  # fmt: skip
NEW = replace(OLD, channels=10, levels=(*OLD.levels[:3], Level(16, 9, 8, EVEN), Level(16, 9, 8, ODD)))


def decoded(network: Network, x: torch.Tensor, levels: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with torch.no_grad():
        stop = torch.full((len(x),), float(levels))
        coded = code_for_training(network, Prices(network.config), network.encoder(x), stop)
        return network.decoder(coded.latents, coded.known), coded.bits


def test_a_wider_network_says_more(photo):
    """Up to the levels that have new digits it decodes the same, from the same bits; these cost more, and are closer."""
    torch.manual_seed(0)
    x = to_network(torch.from_numpy(np.array(photo.crop((200, 80, 456, 336))))[None])
    components = torch.linalg.qr(torch.randn(768, 10))[0].t()
    old = Network(OLD).eval()
    old.start_from_klt(torch.zeros(768), components[:6])
    new = wide(old, NEW, components[6:], torch.zeros(768), components[6:].t(), torch.full((4,), 0.5)).eval()
    before, bits = decoded(old, x, 3)
    same, bits_now = decoded(new, x, 3)
    assert torch.allclose(same, before, atol=1e-5)
    assert torch.allclose(torch.stack(bits_now[:3]), torch.stack(bits[:3]))
    with torch.no_grad():
        assert torch.allclose(new.encoder(x)[:, :6], old.encoder(x), atol=1e-5)
    (before, bits), (closer, bits_now) = decoded(old, x, 5), decoded(new, x, 5)
    assert sum(bits_now) > sum(bits)
    assert (closer - x).square().mean() < (before - x).square().mean()


def test_what_is_left_over_is_found(photo, codec):
    """The new channels take away some of the error that is left when all tokens are decoded."""
    block = np.array(photo.crop((200, 80, 456, 336)))
    analysis, mean, synthesis = left_over("standard", torch.from_numpy(block)[None], 64)
    assert analysis.shape == (64, 768)
    assert torch.allclose(synthesis.t() @ synthesis, torch.eye(64).double(), atol=1e-6)
    image = np.array(codec.decode(codec.encode(block, quality=100)))
    x, y = (F.pixel_unshuffle(to_network(torch.from_numpy(p)[None]).double(), 16)[0].flatten(1).t() for p in (block, image))
    left = x - y
    assert (left - (x - mean) @ analysis.t() @ synthesis.t()).square().sum() < 0.8 * left.square().sum()


def test_fewer_digits_are_refused():
    with pytest.raises(ModelError, match=r"levels of \[4, 4, 4, 6, 6\] digits, which do not become"):
        widened(OLD)
