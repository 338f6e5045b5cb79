"""How a decoded picture compares with its original, and with WebP at the same bytes: what `make demo` prints last.

python -m benchmarks.compare ORIGINAL FILE.tsr DECODED
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.metrics import ms_ssim, psnr
from benchmarks.quality import classical_row
from codec.images import read_image, to_pixels


def main() -> None:
    original_path, file_path, decoded_path = map(Path, sys.argv[1:])
    original, decoded = (to_pixels(read_image(path.read_bytes())) for path in (original_path, decoded_path))
    height, width = original.shape[:2]
    size = file_path.stat().st_size
    lines = [f"tessera {size} bytes: PSNR {psnr(decoded, original):.2f} dB, MS-SSIM {ms_ssim(decoded, original):.3f}"]
    row = classical_row(original, "webp", 8 * size / (width * height), None)
    if row:
        lines.append(f"WebP at the same bytes, best of six scales: PSNR {row['psnr']:.2f} dB, MS-SSIM {row['ms_ssim']:.3f}")
    else:
        lines.append("WebP does not fit these bytes at any scale")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
