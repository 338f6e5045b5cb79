"""Builds a training set, as CONTRIBUTING.md and benchmarks/training-log.md use it: one tar file from folders of originals.

    python -m benchmarks.tools.build_dataset photos.tar ORIGINALS... --without held-out.tar kodak clic

Photographs are shrunk, since most originals are JPEGs whose losses show at full size: the shorter side becomes 304 pixels, or
up to nine tenths of the original's. A photograph is left out if it resembles an earlier one or an image of `--without`
(held out, or of an evaluation set): if fewer than 40 of the 256 bits of their difference hashes differ.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from codec.training.photos import find_photos, is_held_out

MIN_SIDE = 304  # pixels, shorter side of the photographs in the tar file
MAX_SCALE = 0.9  # relative to the original
QUALITY = 96  # quality of the JPEGs, 4:4:4: their losses are too small to affect training
BATCH = 64  # originals in memory
SAME_BITS = 40  # hashes of two versions of a photograph differ in fewer bits
HASHES_PER_BLOCK = 1000  # maximum length of an array of hashes; appending copies the array
BIT_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint16)  # number of bits per byte


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    without = "exclude photographs that resemble images in these folders, or held-out photographs in these tar files"
    parser.add_argument("--without", type=Path, nargs="*", default=[], help=without)
    arguments = parser.parse_args(argv)
    written, same, unusable = build_dataset(arguments.sources, arguments.target, arguments.without)
    left_out = f"{same} seen before or held out, {unusable} too small or not an image"
    sys.stdout.write(f"{written} photos in {arguments.target}; left out: {left_out}\n")
    return 0


def build_dataset(sources: Sequence[Path], target: Path, without: Sequence[Path]) -> tuple[int, int, int]:
    """Writes the tar file. Returns the numbers of photographs that were written, left out as seen or held out, and left out
    as unusable."""
    hashes = [evaluation_hashes(without)]
    originals = find_photos(sources)
    batches = iter(lambda: list(islice(originals, BATCH)), [])  # since `map` below reads its complete input at once
    written = same = unusable = 0

    def read(original: tuple[str, bytes]) -> tuple[str, NDArray[np.uint8], bytes] | None:
        name, blob = original
        image = open_image(blob)
        scale = np.random.default_rng(zlib.crc32(blob)).random()
        data = shrunk(image, scale) if image else None
        return (name, difference_hash(image), data) if image and data else None

    with tarfile.open(target, "w") as archive, ThreadPoolExecutor() as pool:
        for photo in chain.from_iterable(pool.map(read, batch) for batch in batches):
            if photo is None:
                unusable += 1
                continue
            name, photo_hash, data = photo
            if min(fewest_bits_apart(photo_hash, block) for block in hashes) < SAME_BITS:
                same += 1
                continue
            if len(hashes[-1]) >= HASHES_PER_BLOCK:
                hashes.append(np.zeros((0, 32), np.uint8))
            hashes[-1] = np.concatenate([hashes[-1], photo_hash[None]])
            member = tarfile.TarInfo(f"{written:05}-{Path(name).stem}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            written += 1
    return written, same, unusable


def evaluation_hashes(sources: Iterable[Path]) -> NDArray[np.uint8]:
    """Hashes (N, 32) of the held-out photographs in tar files and of all images in folders."""
    hashes = []
    for source in sources:
        for name, blob in find_photos([source]):
            if (source.suffix != ".tar" or is_held_out(name)) and (image := open_image(blob)):
                hashes.append(difference_hash(image))
    return np.array(hashes, np.uint8).reshape(-1, 32)


def open_image(blob: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(blob)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None


def difference_hash(image: Image.Image) -> NDArray[np.uint8]:
    """(32,) bytes: a bit for each of 16x16 cells, set if the cell is brighter than its left neighbour."""
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def fewest_bits_apart(photo_hash: NDArray[np.uint8], hashes: NDArray[np.uint8]) -> int:
    """The smallest Hamming distance between a hash (32,) and hashes (N, 32); 256 if N is 0."""
    return int(BIT_COUNTS[hashes ^ photo_hash].sum(1).min(initial=256))


def shrunk(image: Image.Image, scale: float) -> bytes | None:
    """The photograph as a JPEG whose shorter side lies between `MIN_SIDE` (scale 0) and `MAX_SCALE` of the original's (scale
    1); None if the original is too small."""
    side = min(image.size)
    if side < MIN_SIDE:
        return None
    new_side = MIN_SIDE + scale * max(0.0, MAX_SCALE * side - MIN_SIDE)
    size = (round(image.width * new_side / side), round(image.height * new_side / side))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "jpeg", quality=QUALITY, subsampling=0)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
