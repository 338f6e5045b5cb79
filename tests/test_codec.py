"""One image through the codec: sizes, targets, modes and colours, in any process, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tessera
from codec.codec import Codec
from codec.errors import ImageError, TargetError, UsageError
from codec.image.source import read_source, restore_image
from codec.pyramid import tiles


def image_of(photo: Image.Image, width: int, height: int) -> Image.Image:
    """Real texture of any size."""
    return photo.resize((max(width, 300), max(height, 200))).crop((0, 0, width, height))


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (17, 255), (256, 256), (257, 513), (1500, 1000)])
@pytest.mark.parametrize("tokens", [1, 200, 1365])
def test_any_size_comes_back_in_its_size(codec, photo, size, tokens):
    image = image_of(photo, *size)
    decoded = codec.decode(codec.encode(image, tokens=tokens).data).image
    assert decoded.size == size
    assert decoded.mode == "RGB"
    error = np.asarray(decoded).astype(float) - np.asarray(image)
    assert np.sqrt(np.square(error).mean()) < {1: 90, 200: 45, 1365: 16}[tokens]


def test_the_library_as_the_readme_shows_it(photo):
    data = tessera.encode(photo, quality=50)
    assert isinstance(data, bytes)
    assert tessera.decode(data).size == photo.size
    with tessera.Codec(device="cpu") as c:
        files = [outcome.result.data for outcome in c.encode_all([photo, np.asarray(photo)], target_bpp=0.04)]
    assert files[0] == files[1]
    assert 8 * len(files[0]) / (photo.width * photo.height) <= 0.04


def test_encode_and_decode_are_made_of_public_steps(codec, photo):
    image = photo.crop((0, 0, 200, 150))
    source = read_source(image)
    (sequence,) = codec.tokenize([source])
    encoded = codec.write(sequence, source, quality=40)
    assert encoded == codec.encode(image, quality=40)
    stored = codec.read(encoded.data)
    (pixels,) = codec.detokenize([stored])
    decoded = codec.decode(encoded.data)
    assert restore_image(pixels, stored.file) == decoded.image
    assert (stored.file, stored.model.name) == (decoded.file, decoded.model)
    assert (replace(stored.file, header_bytes=0, file_bytes=0), decoded.model) == (encoded.file, encoded.model)
    assert stored.block_tokens == decoded.block_tokens == encoded.block_tokens
    assert stored.partial is decoded.partial is False


def test_quality_rises_with_tokens(codec, photo):
    sequence = codec.tokenize([photo])[0]
    original = np.asarray(photo).astype(float)
    errors = []
    for tokens in (1, 21, 85, 149, 341, 597, 853, 1109, 1365):
        data = codec.write(sequence, tokens=tokens).data
        errors.append(np.square(np.asarray(codec.decode(data).image) - original).mean())
    assert errors == sorted(errors, reverse=True)


def test_a_shorter_encoding_is_a_prefix_of_a_longer_one(codec, photo):
    small, large = (codec.encode(photo, tokens=tokens).data for tokens in (300, 900))
    limited = codec.decode(large, tokens=300)
    assert np.array_equal(np.asarray(limited.image), np.asarray(codec.decode(small).image))
    assert limited.block_tokens == pytest.approx(300, abs=1)


@pytest.mark.parametrize("size", range(40, 6000, 217))
def test_target_size_is_met(codec, photo, size):
    data = codec.encode(photo, target_size=size).data
    assert len(data) <= size
    assert len(data) >= min(0.97 * size, size - 16)


def test_a_size_that_nothing_fits_is_an_error_with_the_size_that_does(codec, photo):
    with pytest.raises(TargetError) as caught:
        codec.encode(photo, target_size=14)
    smallest = int(re.findall(r"\d+", str(caught.value))[-1])
    assert len(codec.encode(photo, target_size=smallest).data) == smallest


def test_a_target_beyond_all_tokens_gives_all_tokens(codec, photo):
    large, complete, best = ({"target_size": 10**9}, {"tokens": 1365}, {"quality": 100})
    assert codec.encode(photo, **large) == codec.encode(photo, **complete) == codec.encode(photo, **best)


def test_the_payload_costs_what_the_tables_say(codec, photo):
    """At most 4 bytes more, and a mean of 1.3e-4 bits per digit, after which the range coder rounds its 64-bit interval."""
    sequence = codec.tokenize([photo])[0]
    bits = sequence.bits().cumsum()
    for tokens in (1, 50, 341, 600, 1000, 1365):
        file = codec.write(sequence, tokens=tokens).file
        kept = zip(sequence.layout.levels, sequence.layout.split(file.length), strict=True)
        digits = sum(level.digits * count for level, count in kept)
        assert len(file.payload) <= (bits[file.length - 1] + 1.5e-4 * digits) / 8 + 4


def test_tiles_change_nothing_visible(photo):
    image = image_of(photo, 1100, 700)
    untiled, tiled = Codec(device="cpu"), Codec(device="cpu", tile=256)
    files = [codec.encode(image, tokens=1365).data for codec in (untiled, tiled)]
    digits = [np.concatenate([level.ravel() for level in untiled.read(file).prefix.digits]) for file in files]
    assert (digits[0] != digits[1]).mean() <= 1e-4
    images = [np.asarray(codec.decode(files[0]).image).astype(int) for codec in (untiled, tiled)]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_strips_of_levels_change_nothing_visible(photo, monkeypatch):
    """Images above 4 megapixels pass through the levels in strips."""
    image, codec = image_of(photo, 500, 1100), Codec(device="cpu")
    file = codec.encode(image, tokens=1365).data
    decoded = np.asarray(codec.decode(file).image).astype(int)
    calls = []
    backend = codec.tokenizer().backend
    update = backend.update
    monkeypatch.setattr(backend, "update", lambda *values: calls.append(values[1].shape[2]) or update(*values))
    monkeypatch.setattr(tiles, "STRIP_CELLS", 32 * 16)
    again = codec.encode(image, tokens=1365).data
    assert set(calls) == {17, 18, 32, 48}  # cells: a block with one or two halos, of fine and of coarse levels
    digits = [np.concatenate([level.ravel() for level in codec.read(data).prefix.digits]) for data in (file, again)]
    assert (digits[0] != digits[1]).mean() <= 1e-4
    assert np.abs(decoded - np.asarray(codec.decode(file).image)).max() <= 1


SCRIPT = """
import hashlib, os, sys, numpy
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
from codec.codec import Codec
codec = Codec(device="cpu")
digits = codec.read(sys.argv[1]).prefix.digits
print(hashlib.sha256(b"".join(level.tobytes() for level in digits)).hexdigest())
numpy.save(sys.argv[3], numpy.asarray(codec.decode(sys.argv[1]).image))
"""


def test_processes_and_threads_decode_alike(tmp_path, codec, photo):
    data = codec.encode(photo, quality=80).data
    (tmp_path / "a.tsr").write_bytes(data)
    digest = hashlib.sha256(b"".join(level.tobytes() for level in codec.read(data).prefix.digits)).hexdigest()
    for threads in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a.tsr"), threads, str(tmp_path / "a.npy")]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        assert process.stdout.strip() == digest
        decoded = np.load(tmp_path / "a.npy").astype(int)
        assert np.abs(decoded - np.asarray(codec.decode(data).image)).max() <= 1


def test_cut_files_are_decoded_on_request(codec, photo):
    data = codec.encode(photo, quality=50).data
    part = codec.decode(data[: len(data) // 2], allow_partial=True)
    complete = codec.decode(data)
    assert part.partial
    assert not complete.partial
    assert 0 < part.block_tokens < complete.block_tokens
    assert part.image.size == photo.size


@pytest.mark.parametrize(
    "options",
    [{"quality": 101}, {"tokens": 0}, {"tokens": 1366}, {"target_bpp": 0}, {"target_size": 0}, {"quality": 50, "tokens": 9}],
)
def test_impossible_options_are_refused(codec, options):
    with pytest.raises(UsageError):
        codec.encode(np.zeros((4, 4, 3), np.uint8), **options)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 3), np.int64)])
def test_arrays_of_other_types_are_refused(codec, array):
    with pytest.raises(ImageError):
        codec.encode(array)


def test_a_background_shows_through(codec):
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    decoded = codec.decode(codec.encode(image, background="#0000ff", tokens=1365).data).image
    assert decoded.mode == "RGB"
    red, green, blue = np.asarray(decoded).mean((0, 1))
    assert blue > 200 > 60 > max(red, green)
    opaque = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    assert codec.encode(opaque).data == codec.encode(opaque.convert("RGB")).data


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1", "LA"])
def test_other_modes_are_converted(codec, photo, mode):
    small = photo.crop((0, 0, 64, 48)).convert("L")
    image = Image.fromarray(np.asarray(small).astype(np.uint16) * 257) if mode == "I;16" else small.convert(mode)
    decoded = np.asarray(codec.decode(codec.encode(image, tokens=1365).data).image.convert("L")).astype(float)
    reference = np.asarray(small if mode == "I;16" else image.convert("L")).astype(float)
    assert np.abs(decoded - reference).mean() < (60 if mode == "1" else 16)


def test_orientation_is_applied(codec, photo):
    tall = photo.crop((0, 0, 64, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = tall.rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    assert codec.encode(turned).data == codec.encode(tall).data


def test_images_of_too_many_pixels_are_refused(photo):
    image = photo.crop((0, 0, 100, 100))
    data = Codec(device="cpu", max_pixels=10_000).encode(image, tokens=1).data
    small = Codec(device="cpu", max_pixels=9999)
    for call, value in ((small.encode, image), (small.encode, np.asarray(image)), (small.decode, data), (small.read, data)):
        with pytest.raises(ImageError) as caught:
            call(value)
        assert caught.value.advice == ("max_pixels",)


@pytest.mark.parametrize("value", [0, 108, 255])
def test_flat_greys_stay_grey(codec, value):
    decoded = np.asarray(codec.decode(codec.encode(np.full((200, 300, 3), value, np.uint8)).data).image).astype(int)
    assert (decoded == decoded[..., :1]).all()
    assert abs(decoded.mean() - value) < 6


def test_a_grey_photo_stays_grey(codec, photo):
    grey = photo.convert("L").convert("RGB")
    decoded = np.asarray(codec.decode(codec.encode(grey).data).image).astype(int)
    assert (decoded == decoded[..., :1]).all()
    assert abs(decoded.mean() - np.asarray(grey).mean()) < 1


@pytest.mark.parametrize("colour", list(itertools.product((0, 255), repeat=3)))
def test_strong_colours_keep_their_hue(codec, colour):
    """At every corner of the RGB cube, from the first token on: few photographs that an encoder learns from have these."""
    image = np.full((256, 256, 3), colour, np.uint8)
    for tokens in (1, 85, 1365):
        mean = np.asarray(codec.decode(codec.encode(image, tokens=tokens).data).image).mean((0, 1))
        assert np.abs(mean - colour).max() < 50, (tokens, mean)


@pytest.mark.parametrize("colour", [(128, 128, 128), (60, 60, 60), (180, 150, 120)])
def test_flat_areas_come_back_without_dots(codec, colour):
    """Networks may leave a pattern in every cell of 16x16 pixels. Half a level (of 255) is not visible."""
    flat = Image.new("RGB", (256, 256), colour)
    pixels = np.asarray(codec.decode(codec.encode(flat, tokens=469).data).image).astype(float)
    cells = pixels.reshape(16, 16, 16, 16, 3).transpose(0, 2, 1, 3, 4)[2:-2, 2:-2]
    pattern = (cells - cells.mean((2, 3), keepdims=True)).mean((0, 1))
    assert np.sqrt((pattern**2).mean()) < 0.5
