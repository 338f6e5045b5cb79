"""An image coded alone and against a reference, at the same bytes. For docs/references.webp.

python -m benchmarks.tools.reference_image REFERENCE IMAGE SHEET.webp --bytes 1000 --crop 200 40 620 432

Encodes the reference at quality 75, and the image in so many bytes. Shows a crop of the image, and of what its two files decode
to.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.study import read_pixels
from benchmarks.tools.compare import labelled, side_by_side
from codec.codec import Codec
from codec.metrics import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("reference", "image", "sheet"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"))
    arguments = parser.parse_args()
    original = read_pixels(arguments.image)
    left, top, right, bottom = arguments.crop or (0, 0, *original.shape[1::-1])
    panels = [labelled(original[top:bottom, left:right], "original")]
    with Codec(device="cpu") as codec:
        reference = codec.encode(arguments.reference, quality=75)
        for title, used in (("alone", None), ("with a reference", reference)):
            encoded = codec.encode(arguments.image, target_size=arguments.bytes, reference=used)
            decoded = np.asarray(codec.decode(encoded.data, reference=used).image)
            text = f"{title}, {len(encoded.data)} bytes, {psnr(decoded, original):.1f} dB"
            panels.append(labelled(decoded[top:bottom, left:right], text))
    side_by_side(panels).save(arguments.sheet, quality=85, method=6)


if __name__ == "__main__":
    main()
