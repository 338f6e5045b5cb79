"""Images to tokens of FlexTok, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.digit_tokens import DigitPrefix, complete_prefix
from codec.flextok.noise import normal_noise
from codec.networks.block_tokenizer import BlockTokenizer, from_unit
from codec.networks.mosaic import assemble, block_starts
from codec.system.context import report_progress

Sample = Callable[[Tensor, Tensor, Tensor], Tensor]


class FlextokTokenizer(BlockTokenizer):
    """A block tokenizer that decodes by sampling, with noise that depends on the position in the image."""

    network: Any  # a Flextok
    call_pixels = 4 * 256**2  # sampling computes each block twice at once
    complete_prefix = staticmethod(complete_prefix)

    def detokenize(
        self, prefixes: Sequence[DigitPrefix], steps: int | None = None, guidance: float | None = None, seed: int | None = None
    ) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of images, from the known tokens of each. Options that are None have the model's defaults."""
        defaults = self.network.config
        steps = defaults.steps if steps is None else steps
        guidance = defaults.guidance if guidance is None else guidance
        seed = defaults.seed if seed is None else seed
        batches = [self._batches(prefix) for prefix in prefixes]
        share = 1 / max(1, steps * sum(map(len, batches)))  # share of a pass over all these images, per step of a batch
        sample = partial(self.network.detokenize, steps=steps, guidance=guidance, progress=partial(report_progress, share))
        return [from_unit(self._decode(*pair, sample, seed)) for pair in zip(prefixes, batches, strict=True)]

    def _batches(self, prefix: DigitPrefix) -> list[list[int]]:
        """The blocks with known tokens, numbered in reading order: a list for each network call."""
        blocks = np.flatnonzero(prefix.known.any(0)).tolist()
        return [blocks[start : start + self.call_blocks] for start in range(0, len(blocks), self.call_blocks)]

    def _decode(self, prefix: DigitPrefix, batches: list[list[int]], sample: Sample, seed: int) -> NDArray[np.float32]:
        """An image (3, H, W) in [0, 1]. Blocks without known tokens get the mean colour of the others."""
        height, width = prefix.layout.height, prefix.layout.width
        starts = list(product(block_starts(height, self.side), block_starts(width, self.side)))
        lengths = prefix.known.sum(0).ravel()
        digits = prefix.digits.reshape(*prefix.digits.shape[:2], -1).T  # (blocks, N, D)

        def decoded() -> Iterator[tuple[int, NDArray[np.float32]]]:
            for blocks in batches:
                noise = np.stack([self._noise(seed, *starts[block]) for block in blocks])
                arrays = (torch.from_numpy(array).to(self.device) for array in (digits[blocks], lengths[blocks], noise))
                yield from zip(blocks, sample(*arrays).cpu().numpy(), strict=True)

        return assemble(height, width, self.side, decoded())

    def _noise(self, seed: int, top: int, left: int) -> NDArray[np.float32]:
        """The noise (C, h, h) of a block that starts at these pixels: that of the nearest latents of the image."""
        config = self.network.config
        row, column = (round(start / config.downsampling) for start in (top, left))
        span = np.arange(config.latents)
        return normal_noise(seed, config.channels, row + span, column + span)
