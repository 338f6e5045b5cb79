"""Makes the files that mutations start from, one of each kind, for a new standard model:

    python -m tests.fuzz.make_corpus

Findings of the past get the model's stream id: without it, they would be refused at once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from bitstream.container import File, read_file, write_file
from bitstream.range_coder import encode_tokens
from bitstream.sequence import AnyCode
from codec.codec import Codec
from tests.fuzz.check import CODES, CORPUS, FINDINGS
from tests.helpers import PHOTO, profiles


def tokens_of(code: AnyCode, stream_id: bytes) -> bytes:
    """A file of random tokens whose values are 0 and 1, four fifths of its image's tokens."""
    layout, rng = code.layout(90, 50), np.random.default_rng(0)
    tokens = {name: rng.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in code.array_types(layout).items()}
    sequence = code.sequence(code.from_arrays(layout, tokens | {"known": np.ones_like(tokens["known"])}))
    length = layout.tokens - layout.tokens // 5
    return write_file(File(layout.width, layout.height, stream_id, length, encode_tokens(sequence, length)))


def main() -> None:
    photo = Image.open(PHOTO).convert("RGB")
    codec = Codec(device="cpu")
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    carrying = photo.crop((300, 200, 320, 216))
    carrying.putalpha(Image.fromarray((np.arange(320).reshape(16, 20) % 256).astype(np.uint8)))
    carrying.info |= {"icc_profile": profiles.linear_grey().replace(b"GRAY", b"RGB "), "exif": exif.tobytes(), "xmp": b"<x/>"}
    encoded = {
        "pixel": codec.encode(photo.crop((300, 200, 301, 201)), quality=100),
        "cell": codec.encode(photo.crop((300, 200, 316, 216)), quality=100),
        "one-token": codec.encode(photo.crop((300, 200, 330, 220)), tokens=1),
        "wide": codec.encode(photo.crop((100, 160, 400, 170)), quality=50),
        "large-side": codec.encode(photo.resize((600, 4)), quality=25),
        "patch": codec.encode(photo.crop((280, 180, 330, 220)), quality=100),
        "block": codec.encode(photo.crop((200, 80, 300, 170)), tokens=60),
        "carrying": codec.encode(carrying, keep_exif=True, quality=60),
        "clear": codec.encode(Image.new("RGBA", (30, 20), (200, 100, 50, 77)), quality=30),
    }
    files = {name: file.data for name, file in encoded.items()}
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / "block.tsr").write_bytes(files["block"])
    for name, image in (("against", photo.crop((201, 81, 301, 171))), ("against-part", photo.crop((200, 80, 500, 170)))):
        files[name] = codec.encode(image, target_size=90, reference=CORPUS / "block.tsr").data
    files["later"] = write_file(replace(encoded["cell"].file, sections=((99, b"news"), (200, b""))))
    files |= {f"tokens-{stream_id.hex()}": tokens_of(code, stream_id) for stream_id, code in CODES.items()}
    for name, data in files.items():
        (CORPUS / f"{name}.tsr").write_bytes(data)
    for path in FINDINGS.glob("*.bin"):
        path.write_bytes(write_file(replace(read_file(path.read_bytes()), stream_id=encoded["cell"].file.stream_id)))


if __name__ == "__main__":
    main()
