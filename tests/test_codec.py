from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import codec as library
from bitstream.container import read_file
from bitstream.pyramid_tokens import QUALITY_STOPS
from codec.codec import Codec
from codec.errors import ImageError, TargetError, UsageError
from codec.rate_control import Target, block_tokens_of_quality, quality_of_block_tokens
from codec.results import read_tokens


def image_of(photo: Image.Image, width: int, height: int) -> Image.Image:
    """Real texture of any size."""
    return photo.resize((max(width, 300), max(height, 200))).crop((0, 0, width, height))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (17, 255), (256, 256), (257, 513), (1500, 1000)])
@pytest.mark.parametrize("tokens", [1, 200, 1365])
def test_any_size_comes_back_in_its_size(codec, photo, size, tokens):
    image = image_of(photo, *size)
    decoded = codec.decode(codec.encode(image, tokens=tokens))
    assert decoded.size == size
    assert decoded.mode == "RGB"
    error = np.asarray(decoded).astype(float) - np.asarray(image)
    assert np.sqrt(np.square(error).mean()) < {1: 90, 200: 45, 1365: 16}[tokens]


def test_the_library_as_the_readme_shows_it(photo):
    data = library.encode(photo, quality=50)
    assert isinstance(data, bytes)
    assert library.decode(data).size == photo.size
    with library.Codec(device="cpu") as c:
        blobs = c.encode_batch([photo, np.asarray(photo)], target_bpp=0.04)
    assert blobs[0] == blobs[1]
    assert 8 * len(blobs[0]) / (photo.width * photo.height) <= 0.04
    assert [image.size for image in c.decode_batch(blobs)] == [photo.size] * 2


def test_quality_rises_with_tokens(codec, photo):
    sequence = codec.sequence(photo)
    original = np.asarray(photo).astype(float)
    errors = []
    for tokens in (1, 21, 85, 149, 341, 597, 853, 1109, 1365):
        data = codec.cut(sequence, Target(tokens=tokens)).data
        errors.append(np.square(np.asarray(codec.decode(data)) - original).mean())
    assert errors == sorted(errors, reverse=True)


def test_a_shorter_encoding_is_a_prefix_of_a_longer_one(codec, photo):
    small, large = (codec.encode(photo, tokens=tokens) for tokens in (300, 900))
    limited = codec.decompress(large, tokens=300)
    assert np.array_equal(np.asarray(limited.image), np.asarray(codec.decode(small)))
    assert limited.block_tokens == pytest.approx(300, abs=1)


@pytest.mark.parametrize("size", range(40, 6000, 217))
def test_target_size_is_met(codec, photo, size):
    made = codec.compress(photo, target_size=size)
    assert len(made.data) <= size
    assert len(made.data) >= min(0.97 * size, size - 16)


def test_a_target_that_nothing_fits_says_what_would(codec, photo):
    with pytest.raises(TargetError, match=r"does not fit 14 bytes: the smallest file has (\d+)") as caught:
        codec.encode(photo, target_size=14)
    smallest = int(str(caught.value).rsplit(" ", 1)[-1])
    assert len(codec.encode(photo, target_size=smallest)) == smallest


def test_a_target_beyond_all_tokens_gives_all_tokens(codec, photo):
    assert codec.encode(photo, target_size=10**9) == codec.encode(photo, tokens=1365) == codec.encode(photo, quality=100)


def test_the_payload_costs_what_the_tables_say(codec, photo):
    """At most 4 bytes more, and what the coder's own arithmetic loses: it rounds its 64-bit interval once a digit, which
    takes 1.3e-4 bit on the mean."""
    sequence = codec.sequence(photo)
    bits = sequence.bits().cumsum()
    for tokens in (1, 50, 341, 600, 1000, 1365):
        file = codec.cut(sequence, Target(tokens=tokens)).file
        kept = zip(sequence.layout.levels, sequence.layout.split(file.length), strict=True)
        digits = sum(level.digits * count for level, count in kept)
        assert len(file.payload) <= (bits[file.length - 1] + 1.5e-4 * digits) / 8 + 4


def test_tiles_change_nothing_that_can_be_seen(photo):
    image = image_of(photo, 1100, 700)
    whole, tiled = Codec(device="cpu"), Codec(device="cpu", tile=256)
    a, b = whole.encode(image, tokens=1365), tiled.encode(image, tokens=1365)
    digits = [np.concatenate([d.ravel() for d in read_tokens(read_file(x), whole.model.code).digits]) for x in (a, b)]
    assert (digits[0] != digits[1]).mean() <= 1e-4
    images = [np.asarray(c.decode(a)).astype(int) for c in (whole, tiled)]
    assert np.abs(images[0] - images[1]).max() <= 1


SCRIPT = """
import hashlib, sys, numpy, torch
torch.set_num_threads(int(sys.argv[2]))
from codec.codec import Codec
from codec.results import read_tokens
from bitstream.container import read_file
data = open(sys.argv[1], "rb").read()
codec = Codec(device="cpu")
tokens = read_tokens(read_file(data), codec.model.code)
print(hashlib.sha256(b"".join(d.tobytes() for d in tokens.digits)).hexdigest())
numpy.save(sys.argv[3], numpy.asarray(codec.decode(data)))
"""


def test_processes_and_threads_decode_alike(tmp_path, codec, photo):
    data = codec.encode(photo, quality=80)
    (tmp_path / "a.tsr").write_bytes(data)
    tokens = read_tokens(read_file(data), codec.model.code)
    expected = hashlib.sha256(b"".join(d.tobytes() for d in tokens.digits)).hexdigest()
    for threads in ("1", "2"):
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.tsr"), threads, str(tmp_path / "a.npy")]
        done = subprocess.run(
            arguments, env={**os.environ, "OMP_NUM_THREADS": threads}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
        drawn = np.load(tmp_path / "a.npy").astype(int)
        assert np.abs(drawn - np.asarray(codec.decode(data)).astype(int)).max() <= 1


def test_cut_files_are_drawn_on_request(codec, photo):
    data = codec.encode(photo, quality=50)
    part = codec.decompress(data[: len(data) // 2], allow_partial=True)
    whole = codec.decompress(data)
    assert part.partial
    assert not whole.partial
    assert 0 < part.block_tokens < whole.block_tokens
    assert part.image.size == photo.size


def test_quality_stops_are_inverted(codec):
    code = codec.model.code
    for quality in np.linspace(0, 100, 41):
        assert quality_of_block_tokens(code, block_tokens_of_quality(code, quality)) == pytest.approx(quality)
    assert block_tokens_of_quality(code, 0) == QUALITY_STOPS[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 101}, "quality 101 is out of range: 0 to 100"),
        ({"tokens": 0}, "tokens 0 is too small"),
        ({"tokens": 1366}, "tokens 1366 is out of range: 1 to 1365"),
        ({"target_bpp": -1}, "target bpp -1 is too small"),
        ({"quality": 50, "tokens": 9}, "not quality and tokens"),
    ],
)
def test_targets_that_make_no_sense(codec, options, message):
    with pytest.raises(UsageError, match=message):
        codec.encode(np.zeros((4, 4, 3), np.uint8), **options)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.int64)])
def test_arrays_of_another_kind_are_refused(codec, array):
    with pytest.raises(ImageError, match=r"give uint8 \(height, width\)"):
        codec.encode(array)


def test_a_background_is_drawn_on(codec):
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    drawn = codec.decode(codec.encode(image, background="#0000ff", tokens=1365))
    assert drawn.mode == "RGB"
    blue = np.asarray(drawn).mean((0, 1))
    assert blue[2] > 200 > 60 > max(blue[0], blue[1])
    opaque = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    assert codec.encode(opaque) == codec.encode(opaque.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1", "LA"])
def test_other_modes_are_converted(codec, photo, mode):
    small = photo.crop((0, 0, 64, 48)).convert("L")
    image = Image.fromarray(np.asarray(small).astype(np.uint16) * 257) if mode == "I;16" else small.convert(mode)
    decoded = np.asarray(codec.decode(codec.encode(image, tokens=1365)).convert("L")).astype(float)
    reference = np.asarray(small if mode == "I;16" else image.convert("L")).astype(float)
    assert np.abs(decoded - reference).mean() < (60 if mode == "1" else 16)


def test_orientation_is_applied(codec, photo):
    tall = photo.crop((0, 0, 64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = tall.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    assert codec.encode(turned) == codec.encode(tall)


def test_big_images_are_refused_by_their_size():
    with pytest.raises(ImageError, match=r"100x100 is 10,000 pixels, more than 9,999"):
        Codec(device="cpu", max_pixels=9999).encode(np.zeros((100, 100, 3), np.uint8))


@pytest.mark.parametrize("value", [0, 108, 255])
def test_flat_greys_stay_grey(codec, value):
    decoded = np.asarray(codec.decode(codec.encode(np.full((200, 300, 3), value, np.uint8)))).astype(int)
    assert (decoded == decoded[..., :1]).all()
    assert abs(decoded.mean() - value) < 6


def test_a_grey_photo_stays_grey(codec, photo):
    grey = photo.convert("L").convert("RGB")
    decoded = np.asarray(codec.decode(codec.encode(grey))).astype(int)
    assert (decoded == decoded[..., :1]).all()
    assert abs(decoded.mean() - np.asarray(grey).mean()) < 1


@pytest.mark.parametrize("colour", list(itertools.product((0, 255), repeat=3)))
def test_strong_colours_keep_their_hue(codec, colour):
    """At every corner of the RGB cube, from the first token on: an encoder may run away on what photographs do not have."""
    image = np.full((256, 256, 3), colour, np.uint8)
    for tokens in (1, 85, 1365):
        mean = np.asarray(codec.decode(codec.encode(image, tokens=tokens))).mean((0, 1))
        assert np.abs(mean - colour).max() < 50, (tokens, mean)


@pytest.mark.parametrize("colour", [(128, 128, 128), (60, 60, 60), (180, 150, 120)])
def test_flat_areas_come_back_without_dots(codec, colour):
    """What all cells of 16x16 pixels have in common, in levels: a former model left a pattern there of up to one."""
    flat = Image.new("RGB", (256, 256), colour)
    pixels = np.asarray(codec.decode(codec.encode(flat, tokens=469))).astype(float)
    cells = pixels.reshape(16, 16, 16, 16, 3).transpose(0, 2, 1, 3, 4)[2:-2, 2:-2]
    pattern = (cells - cells.mean((2, 3), keepdims=True)).mean((0, 1))
    assert np.sqrt((pattern**2).mean()) < 0.5
