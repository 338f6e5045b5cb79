"""How a decoded picture compares with its original, and with WebP at the same bytes: what `make demo` prints last.

python -m benchmarks.compare ORIGINAL FILE.tsr DECODED
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.codecs import Means, at_all_scales, make_coder
from benchmarks.metrics import ms_ssim, psnr
from codec.images import read_image, to_pixels


def main() -> None:
    original_path, file_path, decoded_path = map(Path, sys.argv[1:])
    original, decoded = (to_pixels(read_image(path.read_bytes())) for path in (original_path, decoded_path))
    size = file_path.stat().st_size
    lines = [f"tessera {size} bytes: PSNR {psnr(decoded, original):.2f} dB, MS-SSIM {ms_ssim(decoded, original):.3f}"]
    pictures = [picture for _, picture in at_all_scales(make_coder("webp", Means()), original, size)]
    if pictures:
        best = (max(metric(picture, original) for picture in pictures) for metric in (psnr, ms_ssim))
        lines.append("WebP at the same bytes, best of six scales: PSNR {:.2f} dB, MS-SSIM {:.3f}".format(*best))
    else:
        lines.append("WebP does not fit these bytes at any scale")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
