"""Images to tokens of FlexTok, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.digit_tokens import DigitCode, DigitPrefix, DigitSequence, complete_prefix
from codec.flextok.network import Flextok
from codec.flextok.noise import normal_noise
from codec.models.base import Enough
from codec.networks.block_tokenizer import GREY, from_unit, to_unit
from codec.networks.mosaic import Mosaic, block_starts, cut
from codec.system.context import report_progress

CALL_PIXELS = 4 * 256**2  # maximum pixels per network call; sampling computes each block twice at once

Sample = Callable[[Tensor, Tensor, Tensor], Tensor]


class FlextokTokenizer:
    """A network and its code, as the protocol `codec.models.base.Tokenizer`."""

    def __init__(self, network: Flextok, code: DigitCode) -> None:
        self.network = network
        self.code = code
        self.device = next(network.parameters()).device
        self.call_blocks = max(1, CALL_PIXELS // network.config.side**2)

    def tokenize(self, images: Sequence[NDArray[np.uint8]], enough: Sequence[Enough] | None = None) -> list[DigitSequence]:
        """All tokens of images (H, W, 3). The network computes all tokens of a block together, so `enough` is ignored."""
        return [self._tokenize(image) for image in images]

    def _tokenize(self, image: NDArray[np.uint8]) -> DigitSequence:
        layout = self.code.layout(image.shape[1], image.shape[0])
        blocks = cut(to_unit(image), self.network.config.side)
        digits = []
        while batch := list(islice(blocks, self.call_blocks)):
            digits.append(self.network.tokenize(torch.from_numpy(np.stack(batch)).to(self.device)).cpu().numpy())
        complete = np.concatenate(digits).T.astype(np.int32)  # (D, N, blocks)
        return self.code.sequence(complete_prefix(layout, complete.reshape(-1, *layout.shape)))

    def detokenize(
        self, prefixes: Sequence[DigitPrefix], steps: int | None = None, guidance: float | None = None, seed: int | None = None
    ) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of images, from the known tokens of each. Options that are None have the model's defaults."""
        defaults = self.network.config
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        seed = defaults.seed if seed is None else seed
        batches = [self._batches(prefix) for prefix in prefixes]
        share = 1 / max(1, steps * sum(map(len, batches)))  # of a pass over all these images, per step of a batch
        sample = partial(self.network.detokenize, steps=steps, guidance=guidance, progress=partial(report_progress, share))
        return [from_unit(self._decode(*pair, sample, seed)) for pair in zip(prefixes, batches, strict=True)]

    def _batches(self, prefix: DigitPrefix) -> list[list[int]]:
        """The blocks with known tokens, numbered in reading order: a list for each network call."""
        blocks = np.flatnonzero(prefix.known.any(0)).tolist()
        return [blocks[start : start + self.call_blocks] for start in range(0, len(blocks), self.call_blocks)]

    def _decode(self, prefix: DigitPrefix, batches: list[list[int]], sample: Sample, seed: int) -> NDArray[np.float32]:
        """An image (3, H, W) in [0, 1]. Blocks without known tokens get the mean colour of the others."""
        height, width, side = prefix.layout.height, prefix.layout.width, self.network.config.side
        starts = list(product(block_starts(height, side), block_starts(width, side)))
        lengths = prefix.known.sum(0).ravel()
        digits = prefix.digits.reshape(*prefix.digits.shape[:2], -1).T  # (blocks, N, D)
        mosaic = Mosaic(height, width, side)
        colours = []
        for blocks in batches:
            noise = np.stack([self._noise(seed, *starts[block]) for block in blocks])
            arrays = (torch.from_numpy(array).to(self.device) for array in (digits[blocks], lengths[blocks], noise))
            for block, pixels in zip(blocks, sample(*arrays).cpu().numpy(), strict=True):
                mosaic.add(block, pixels)
                colours.append(pixels.mean((1, 2)))
        colour = np.mean(colours, 0) if colours else np.full(3, GREY)
        blank = np.broadcast_to(colour.astype(np.float32)[:, None, None], (3, side, side))
        for block in np.flatnonzero(lengths == 0).tolist():
            mosaic.add(block, blank)
        return mosaic.pixels

    def _noise(self, seed: int, top: int, left: int) -> NDArray[np.float32]:
        """The noise (C, h, h) of a block that starts at these pixels: that of the nearest latents of the image."""
        config = self.network.config
        row, column = (round(start / config.downsampling) for start in (top, left))
        span = np.arange(config.latents)
        return normal_noise(seed, config.channels, row + span, column + span)
