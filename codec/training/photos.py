"""Training photographs: reads all of them into memory once, and draws random crops."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bitstream.block_order import BLOCK
from codec.errors import ImageError
from codec.models.pixels import to_network

SIDE = 320  # pixels along the side of a stored photo, with room for random crops of 256
MIN_SIDE = 288  # pixels; a photo with a shorter side is enlarged
ENLARGED_SHARE, MAX_ENLARGEMENT = 0.3, 1.7  # share of crops that are enlarged, and largest factor
# Shares of crops: without colour, with stronger colours, with only one or two colours
GREY_SHARE, SATURATED_SHARE, FLAT_SHARE = 0.03, 0.04, 0.06
MAX_SATURATION = 6.0  # factor on the distance from grey in saturated crops
HELD_OUT_ONE_IN = 64  # photos, chosen by a hash of the file name, are never trained on


def find_photos(sources: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in folders (with their subfolders), tar files and single files, in a fixed order."""
    for source in sources:
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.is_file())
            yield from ((str(path.relative_to(source)), path.read_bytes()) for path in files)
        elif tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                for member in archive:
                    if stream := archive.extractfile(member):
                        yield member.name, stream.read()
        else:
            yield source.name, source.read_bytes()


def is_held_out(name: str) -> bool:
    return zlib.crc32(os.path.basename(name).encode()) % HELD_OUT_ONE_IN == 0


def read_square(blob: bytes) -> NDArray[np.uint8] | None:
    """A square (SIDE, SIDE, 3) from an image; None if the bytes are not an image.

    Small images are enlarged, then padded by reflection. The position depends on the bytes alone, so all runs use the
    same squares."""
    try:
        image = Image.open(io.BytesIO(blob)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None
    scale = MIN_SIDE / min(image.size)
    if scale > 1:
        width, height = (max(MIN_SIDE, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    side = min(*image.size, SIDE)
    rng = np.random.default_rng(zlib.crc32(blob))
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    return np.pad(pixels, ((0, SIDE - side), (0, SIDE - side), (0, 0)), mode="reflect")


def load_photos(sources: Iterable[Path], threads: int | None = None) -> tuple[Tensor, Tensor]:
    """All photos as uint8 tensors (N, SIDE, SIDE, 3): training photos, and at least one held-out photo.

    Raises ImageError if there is no image to train on."""
    files = list(find_photos(sources := list(sources)))
    train = np.empty((len(files), SIDE, SIDE, 3), np.uint8)  # pages take no memory until written to
    held_out: list[NDArray[np.uint8]] = []
    count = 0
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for (name, _), square in zip(files, pool.map(read_square, (blob for _, blob in files)), strict=True):
            if square is None:
                continue
            if is_held_out(name):
                held_out.append(square)
            else:
                train[count] = square
                count += 1
    if not count:
        msg = f"no photographs found in {', '.join(map(str, sources))}: give folders, tar files or images"
        raise ImageError(msg)
    return torch.from_numpy(train[:count]), torch.from_numpy(np.stack(held_out or [train[0]]))


def random_crops(photos: Tensor, count: int, rng: np.random.Generator, side: int = BLOCK) -> Tensor:
    """Random crops (count, 3, side, side) in [-1, 1] on the photos' device, half of them mirrored.

    Some are enlarged, since photographs at full size are smoother than the small ones in the training set. Some are grey,
    saturated, or of one or two flat colours: photographs hardly ever contain pure blue, and a network that has never seen it
    may return yellow."""
    crops = []
    for _ in range(count):
        source_side = round(side / rng.uniform(1, MAX_ENLARGEMENT)) if rng.random() < ENLARGED_SHARE else side
        index, top, left = rng.integers(len(photos)), *rng.integers(photos.shape[1] - source_side + 1, size=2)
        crop = photos[index, top : top + source_side, left : left + source_side]
        if rng.random() < GREY_SHARE:
            crop = crop.float().mean(2, keepdim=True).round().to(torch.uint8).expand(-1, -1, 3)
        if rng.random() < SATURATED_SHARE:
            grey = crop.float().mean(2, keepdim=True)
            crop = (grey + (crop - grey) * rng.uniform(1, MAX_SATURATION)).clamp(0, 255).round().to(torch.uint8)
        if rng.random() < FLAT_SHARE:
            crop = _in_two_colours(crop, rng)
        x = to_network((crop.flip(1) if rng.random() < 0.5 else crop)[None])
        if source_side != side:
            x = torch.nn.functional.interpolate(x, (side, side), mode="bicubic", align_corners=False).clamp(-1, 1)
        crops.append(x)
    return torch.cat(crops).contiguous(memory_format=torch.channels_last)


def _in_two_colours(crop: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop (H, W, 3) with the pixels below a random brightness in one colour and the others in another; half of the time all
    pixels have one colour."""
    first, second = _random_colour(crop, rng), _random_colour(crop, rng)
    if rng.random() < 0.5:
        return first.expand_as(crop)
    grey = crop.float().mean(2, keepdim=True)
    return torch.where(grey > grey.flatten()[int(rng.integers(grey.numel()))], first, second)


def _random_colour(crop: Tensor, rng: np.random.Generator) -> Tensor:
    """The colour of a pixel of the crop, or an arbitrary colour. Half of its channels, on average, are 0 or 255."""
    if rng.random() < 0.3:
        return crop[tuple(rng.integers(len(crop), size=2))]
    channels = np.where(rng.random(3) < 0.5, rng.choice((0, 255), 3), rng.integers(256, size=3))
    return torch.from_numpy(channels.astype(np.uint8)).to(crop.device)
