"""Pictures and tokens of the pyramid: the network run with the integer prior, so that what is written can be read anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitstream.blocks import BLOCK
from bitstream.code import Prefix
from bitstream.prior import STRIP
from bitstream.pyramid import PyramidCode, PyramidLayout, PyramidPrefix, PyramidSequence, whole_of
from codec.pyramid.network import Network, PyramidLevel
from codec.pyramid.refine import goal_of, refine
from codec.pyramid.tiles import WHOLE_PIXELS, decode_pixels, encode_pixels
from codec.pyramid.walk import on_canvas, price_table, walk_of


class PyramidTokenizer:
    """A network and its code. `tile` is the side in pixels of the tiles that a picture is worked on in; by default only those
    above 16 megapixels are cut."""

    def __init__(self, network: Network, code: PyramidCode, device: torch.device, tile: int | None = None) -> None:
        self.network = network
        self.code = code
        self.device = device
        self.tile = tile

    def tokenize(self, pictures: Sequence[NDArray[np.uint8]]) -> list[PyramidSequence]:
        """Pictures (H, W, 3) -> their tokens. Those whose canvases (whole blocks of 256x256 pixels) are equally large share
        network calls."""
        layouts = [self.code.layout(picture.shape[1], picture.shape[0]) for picture in pictures]
        done: dict[int, PyramidSequence] = {}
        for places in together(layouts):
            group = [layouts[place] for place in places]
            latents = encode_pixels(self.network, group, [pictures[place] for place in places], self.device, self.tile)
            done |= zip(places, quantize(self.network, self.code, group, latents), strict=True)
        return [done[place] for place in range(len(pictures))]

    def detokenize(self, prefixes: Sequence[PyramidPrefix]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`, for the tokens that are known -> pixels (H, W, 3)."""
        done: dict[int, NDArray[np.uint8]] = {}
        for places in together([prefix.layout for prefix in prefixes]):
            group = [prefixes[place] for place in places]
            latents, known = dequantize(self.network, group, self.device)
            pixels = decode_pixels(self.network, [prefix.layout for prefix in group], latents, known, self.tile)
            done |= zip(places, pixels, strict=True)
        return [done[place] for place in range(len(prefixes))]

    def refine(
        self,
        picture: NDArray[np.uint8],
        sequence: PyramidSequence,
        length: int,
        squared_error: Callable[[Prefix], float],
        sized: bool,
        steps: int,
    ) -> PyramidSequence:
        """A better sequence for this length, as `codec.tokenizer.Refiner` has it, by gradient descent on the latents."""
        goal = goal_of(sequence, length, lambda length: squared_error(sequence.first(length)), sized)
        if goal is None:
            return sequence
        layout = sequence.layout
        latents = encode_pixels(self.network, [layout], [picture], self.device, self.tile)
        better = refine(self.network, self.code, layout, picture, latents, goal, steps)
        return quantize(self.network, self.code, [layout], better)[0]


def together(layouts: Sequence[PyramidLayout]) -> list[list[int]]:
    """Places of pictures that can share network calls: their canvases are of one size, and do not hold more pixels than a
    picture may that is computed in one piece."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, layout in enumerate(layouts):
        groups.setdefault(layout.blocks, []).append(place)
    found = []
    for (rows, columns), places in groups.items():
        most = max(1, WHOLE_PIXELS // (rows * columns * BLOCK**2))
        found += [places[start : start + most] for start in range(0, len(places), most)]
    return found


@torch.inference_mode()
def quantize(network: Network, code: PyramidCode, layouts: Sequence[PyramidLayout], latents: Tensor) -> list[PyramidSequence]:
    """Latents (B, C, h, w) of canvases of one size -> all tokens of each picture."""
    digits: list[list[NDArray[np.int8]]] = [[] for _ in layouts]
    classes: list[list[NDArray[np.uint8]]] = [[] for _ in layouts]
    walk = walk_of(network, layouts, latents.device)
    for index, level, predicted in walk.levels():
        raw = level.analyse(latents - predicted)
        bits = price_table(code, index).to(raw.device)
        for place, (layout, so_far) in enumerate(zip(layouts, digits, strict=True)):
            rows, columns = layout.grids[index]
            classes[place].append(code.classes(layout, index, so_far))
            chosen = _round(raw[place, :, :rows, :columns], classes[place][-1], bits, level)
            so_far.append(chosen * layout.mask(index))
        keep = on_canvas([layout.mask(index)[None] for layout in layouts], layouts, index, raw.device)
        walk.add(on_canvas([so_far[-1] for so_far in digits], layouts, index, raw.device), keep)
    parts = zip(layouts, digits, classes, strict=True)
    return [code.sequence(whole_of(layout, so_far), under) for layout, so_far, under in parts]


def _round(raw: Tensor, classes: NDArray[np.uint8], bits: Tensor, level: PyramidLevel) -> NDArray[np.int8]:
    """The digits to send for a whole level (D, n, m), some rows at a time to bound memory."""
    rows = max(1, STRIP // raw.shape[2])
    out = np.empty(classes.shape, np.int8)
    for top in range(0, raw.shape[1], rows):
        part = slice(top, top + rows)
        index = torch.from_numpy(classes[:, part]).to(raw.device).long()
        out[:, part] = level.round(raw[:, part], index, bits).to(torch.int8).cpu().numpy()
    return out


@torch.inference_mode()
def dequantize(network: Network, prefixes: Sequence[PyramidPrefix], device: torch.device) -> tuple[Tensor, Tensor]:
    """The inverse of `quantize`, for the tokens that are known of pictures whose canvases are of one size -> latents
    (B, C, h, w) and map of known tokens (B, 1, h, w)."""
    layouts = [prefix.layout for prefix in prefixes]
    walk = walk_of(network, layouts, device)
    last = max((index for prefix in prefixes for index, known in enumerate(prefix.known) if known.any()), default=-1)
    for index, _, _ in walk.levels([len(prefixes) * (index <= last) for index in range(len(network.levels))]):
        keep = on_canvas([prefix.known[index][None] for prefix in prefixes], layouts, index, device)
        walk.add(on_canvas([prefix.digits[index] for prefix in prefixes], layouts, index, device), keep)
    return walk.latents, walk.known
