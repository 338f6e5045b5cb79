"""Makes the golden files, for a new format version or a new standard model; never to silence a test:

python -m tests.make_golden
"""

from __future__ import annotations

from PIL import ExifTags, Image, ImageDraw

from codec.codec import Codec
from codec.token_arrays import file_to_npz
from tests.helpers import GOLDEN, PHOTO, profiles

PRIMARIES = ((0.6, 0.3, 0.05), (0.25, 0.65, 0.1), (0.11, 0.05, 0.68))  # of a colour space without a number
CASES = {  # name: (box of the photo, options)
    "block-tiny": ((200, 80, 456, 336), {"tokens": 40}),
    "block-preview": ((200, 80, 456, 336), {"quality": 25}),
    "odd-good": ((150, 100, 167, 355), {"quality": 75}),
    "pixel": ((300, 200, 301, 201), {"tokens": 1365}),
    "wide-bytes": ((100, 160, 400, 240), {"target_size": 300}),
}


def main() -> None:
    photo = Image.open(PHOTO).convert("RGB")
    codec = Codec(device="cpu")
    for name, (box, options) in CASES.items():
        data = codec.encode(photo.crop(box), **options).data
        (GOLDEN / f"{name}.tsr").write_bytes(data)
        (GOLDEN / f"{name}.npz").write_bytes(file_to_npz(data)[0])
        codec.decode(data).image.save(GOLDEN / f"{name}.png", optimize=True)
    data = codec.encode(cut_out(photo), tokens=200, keep_exif=True).data
    (GOLDEN / "sections").mkdir(exist_ok=True)
    (GOLDEN / "sections" / "cut-out.tsr").write_bytes(data)
    decoded = codec.decode(data).image
    metadata = {"icc_profile": decoded.info["icc_profile"], "exif": decoded.info["exif"]}
    decoded.save(GOLDEN / "sections" / "cut-out.png", optimize=True, **metadata)


def cut_out(photo: Image.Image) -> Image.Image:
    """An image with transparency, an unusual profile, EXIF and XMP: everything that a file can hold."""
    image = photo.crop((200, 100, 280, 160)).convert("RGBA")
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((10, 5, 70, 55), fill=200)
    image.putalpha(mask)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a cut-out"
    profile = profiles.matrix(PRIMARIES, profiles.gamma(1.6))
    image.info |= {"icc_profile": profile, "exif": exif.tobytes(), "xmp": b"<x:xmpmeta/>"}
    return image


if __name__ == "__main__":
    main()
