"""Photographs to train on, from folders of originals: one tar file of images that are not too large, none twice.

    python -m benchmarks.tools.build_dataset photos-3.tar ORIGINALS... --without ../shared/photos ../shared/kodak

Each photo is made smaller, since most originals are JPEGs whose own losses show at full size: its shorter side becomes
304 pixels, or up to nine tenths of what it was. Photos that look like one of `--without` (held out, or of an evaluation set)
or like one before them are left out: their difference hashes of 256 bits differ in fewer than 40 bits.
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

SHORTEST = 304  # pixels of the shorter side of what is written
LARGEST = 0.9  # of an original's size
QUALITY = 96  # of the JPEGs written, 4:4:4: their own losses are far below those that training looks at
ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint16)  # bits that are set, by byte
AT_ONCE = 64  # originals in memory
SAME = 40  # bits of 256 in which the hashes of two versions of a photo differ at most


def difference_hash(image: Image.Image) -> NDArray[np.uint8]:
    """(32,) bytes: whether each of 16x16 cells is brighter than its neighbour to the left."""
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def opened(blob: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(blob)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None


def smaller(image: Image.Image, share: float) -> bytes | None:
    """The photo as a JPEG whose shorter side is between `SHORTEST` (share 0) and `LARGEST` of the original's (share 1); None
    for a photo that is too small."""
    short = min(image.size)
    if short < SHORTEST:
        return None
    wanted = SHORTEST + share * max(0.0, LARGEST * short - SHORTEST)
    size = (round(image.width * wanted / short), round(image.height * wanted / short))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "jpeg", quality=QUALITY, subsampling=0)
    return stream.getvalue()


def bits_apart(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> int:
    """The fewest bits in which a hash (32,) differs from any of (N, 32); 256 where there is none."""
    return int(ONES[others ^ one].sum(1).min(initial=256))


def evaluation_hashes(sources: Iterable[Path]) -> NDArray[np.uint8]:
    """Hashes of the images that nothing may be like: of tar files those held out, of folders all."""
    hashes = []
    for source in sources:
        in_tars = source.suffix == ".tar"
        for name, blob in find_photos([source]):
            if (not in_tars or is_held_out(name)) and (image := opened(blob)):
                hashes.append(difference_hash(image))
    return np.array(hashes, np.uint8).reshape(-1, 32)


def gather(sources: Sequence[Path], target: Path, without: Sequence[Path]) -> tuple[int, int, int]:
    """Writes the tar file; the numbers of photos written, left out as known, and left out as too small or no image."""
    known = [evaluation_hashes(without)]
    originals = find_photos(sources)
    batches = iter(lambda: list(islice(originals, AT_ONCE)), [])
    written = same = unusable = 0

    def read(found: tuple[str, bytes]) -> tuple[str, NDArray[np.uint8], bytes] | None:
        name, blob = found
        image = opened(blob)
        share = np.random.default_rng(zlib.crc32(blob)).random()
        data = smaller(image, share) if image else None
        return (name, difference_hash(image), data) if image and data else None

    with tarfile.open(target, "w") as archive, ThreadPoolExecutor() as pool:
        # `map` reads all that it is given at once, so it is given what fits in memory.
        for found in chain.from_iterable(pool.map(read, batch) for batch in batches):
            if found is None:
                unusable += 1
                continue
            name, mine, data = found
            if min(bits_apart(mine, hashes) for hashes in known) < SAME:
                same += 1
                continue
            if len(known[-1]) >= 1000:
                known.append(np.zeros((0, 32), np.uint8))
            known[-1] = np.concatenate([known[-1], mine[None]])
            member = tarfile.TarInfo(f"{written:05}-{Path(name).stem}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            written += 1
    return written, same, unusable


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="tar files (of which: photos held out) and folders")
    given = parser.parse_args(argv)
    written, same, unusable = gather(given.sources, given.target, given.without)
    left_out = f"{same} seen before or held out, {unusable} too small or no image"
    sys.stdout.write(f"{written} photos in {given.target}; left out: {left_out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
