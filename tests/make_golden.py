"""Makes the golden files again: only for a new format version or a new standard model, never to silence a test.

python -m tests.make_golden
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from codec.api import Codec
from codec.arrays import file_to_npz

FOLDER = Path(__file__).parent / "golden"
PHOTO = Path(__file__).parent.parent / "docs" / "photo.webp"
CASES = {  # name: (box of the photo, options)
    "block-tiny": ((200, 80, 456, 336), {"tokens": 40}),
    "block-preview": ((200, 80, 456, 336), {"quality": 25}),
    "odd-good": ((150, 100, 167, 355), {"quality": 75}),
    "pixel": ((300, 200, 301, 201), {"tokens": 1365}),
    "wide-bytes": ((100, 160, 400, 240), {"target_size": 300}),
}


def main() -> None:
    photo = Image.open(PHOTO).convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    codec = Codec(device="cpu")
    for name, (box, options) in CASES.items():
        data = codec.encode(photo.crop(box), **options)
        (FOLDER / f"{name}.tsr").write_bytes(data)
        (FOLDER / f"{name}.npz").write_bytes(file_to_npz(data)[0])
        codec.decode(data).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
