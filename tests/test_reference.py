"""Images with a reference: smaller files, cut files, squares, motion, and references that are missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

import codec as library
import tessera.pillow  # registers .tsr
from bitstream.container import CRC_BYTES, File, read_file, read_header, write_file
from bitstream.errors import FormatError
from bitstream.reference import NAME_MAX, Reference, pack_squares, read_reference, write_reference
from codec.codec import Codec
from codec.errors import FileError, TargetError, TesseraError, UsageError
from codec.metrics import psnr
from codec.pyramid.reference import find_motion, moved
from codec.pyramid.tokenizer import Reconstruction
from codec.references import MAX_IMAGES
from tests.helpers import reference_decoder
from tests.helpers.commands import records, run

SIZE = (160, 120)


def noisy(image: Image.Image, seed: int = 0) -> Image.Image:
    """The image, a little brighter and with noise."""
    pixels = np.asarray(image) * 1.02 + np.random.default_rng(seed).normal(0, 1.5, np.asarray(image).shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def quality_of(codec: Codec, data: bytes, original: Image.Image, **options: object) -> float:
    return psnr(np.asarray(codec.decode(data, **options).image), np.asarray(original))


@pytest.fixture(scope="module")
def first(photo) -> Image.Image:
    return photo.crop((200, 100, 200 + SIZE[0], 100 + SIZE[1]))


@pytest.fixture(scope="module")
def reference(codec, first) -> bytes:
    return codec.encode(first, quality=75).data


# The file


names = st.text(max_size=40).filter(lambda name: not set("/\\:\0") & set(name) and name not in (".", ".."))


@given(
    st.binary(min_size=8, max_size=8),
    st.booleans(),
    st.tuples(*2 * [st.integers(-(1 << 15), (1 << 15) - 1)]),
    st.tuples(*3 * [st.integers(-128, 127)]),
    st.one_of(st.just(b""), st.binary(min_size=18, max_size=18)),
    names,
    st.binary(max_size=20),
)
def test_files_with_a_reference_are_read_as_written(hashed, of_pixels, motion, offsets, squares, name, payload):
    reference = Reference(hashed, of_pixels, motion, offsets, squares, name)
    file = File(700, 800, b"ab", 5, payload, ((2, b"section"),), reference=reference)
    data = write_file(file)
    back = read_file(data)
    assert back.complete
    assert (back.reference, back.payload, back.sections) == (reference, payload, file.sections)
    assert back.header_bytes + back.section_bytes + len(payload) == len(data)
    stored = reference_decoder.read_reference(data)
    assert stored == {
        "pixels": of_pixels, "hash": hashed.hex(), "motion": list(motion), "offsets": list(offsets), "name": name,
        "uses": reference.uses(700, 800).ravel().astype(int).tolist(),
    }  # fmt: skip
    assert reference_decoder.hash_of_file(data) == back.hash.hex()


def test_the_name_is_no_part_of_the_hash():
    file, other = (File(9, 9, b"ab", 1, b"x", reference=Reference(bytes(8), name=name)) for name in ("a", "b"))
    assert file.hash == other.hash != File(9, 9, b"ab", 1, b"x").hash


@pytest.mark.parametrize("name", ["../a.tsr", "/etc/passwd", "..", ".", "a\\b", "c:x", "a\0b", "n" * (NAME_MAX + 1)])
def test_a_name_cannot_lead_to_another_folder(name):
    plain = write_reference(Reference(bytes(8)))
    assert write_reference(Reference(bytes(8), name=name)) == plain
    with pytest.raises(FormatError):
        read_reference(plain + name.encode(), 9, 9)


@pytest.mark.parametrize(
    "content", [b"", b"\x08" + bytes(8), b"\0short", b"\x02" + bytes(12), b"\x04" + bytes(8), b"\0" * 9 + b"\xff"]
)
def test_damaged_references_are_refused(content):
    with pytest.raises(FormatError):
        read_reference(content, 300, 300)


def test_squares_are_packed():
    uses = np.random.default_rng(0).random((3, 5)) < 0.5
    assert np.array_equal(Reference(bytes(8), squares=pack_squares(uses)).uses(300, 180), uses)
    assert pack_squares(np.ones((3, 5), np.bool_)) == b""


# Encoding and decoding


def test_an_image_that_resembles_another_takes_few_bytes(codec, first, reference):
    image = noisy(first)
    alone, small = codec.encode(image), codec.encode(image, reference=reference)
    assert len(small.data) < len(alone.data) / 4
    assert quality_of(codec, small.data, image, reference=reference) >= quality_of(codec, alone.data, image)
    assert small.quality == alone.quality
    assert codec.encode(image, reference=reference, tokens=85).quality is None


def test_the_second_decoder_reads_the_same_tokens(codec, first, reference):
    encoded = codec.encode(noisy(first), reference=reference, tokens=20)
    prefix = codec.read(encoded.data).prefix
    levels = [{"side": level.side, "digits": level.digits, "part": level.part} for level in codec.model.code.levels]
    with codec.model.arrays() as file:
        arrays = {name: file.get_tensor(name) for name in file.keys() if name.startswith("prior.")}  # noqa: SIM118
    for ours, theirs in zip(prefix.digits, reference_decoder.decode(encoded.data, levels, arrays), strict=True):
        assert np.array_equal(ours, theirs)
    assert reference_decoder.hash_of_file(reference) == encoded.file.reference.hash.hex()


def test_a_cut_file_falls_back_on_the_reference(codec, first, reference):
    image = noisy(first)
    data = codec.encode(image, reference=reference, target_size=200).data
    start = read_file(data).header_bytes
    base = quality_of(codec, reference, image)
    for size in range(start):
        with pytest.raises(FormatError):
            codec.read(data[:size], allow_partial=True)
    for size in range(start, len(data), 20):
        assert quality_of(codec, data[:size], image, reference=reference, allow_partial=True) > base - 1
    empty = codec.decode(data[:start], reference=reference, allow_partial=True)
    assert empty.image == codec.decode(reference).image
    assert empty.partial


@pytest.mark.parametrize("target", [{"target_size": 150}, {"target_bpp": 0.1}, {"tokens": 30}, {"target_psnr": 27}])
def test_targets_are_met(codec, first, reference, target):
    image = noisy(first)
    encoded = codec.encode(image, reference=reference, **target)
    assert encoded.file.reference
    assert len(encoded.data) <= target.get("target_size", 0.1 * SIZE[0] * SIZE[1] / 8 if "target_bpp" in target else 1e6)
    if "tokens" in target:
        assert encoded.block_tokens == pytest.approx(30, abs=3)
    if "target_psnr" in target:
        assert encoded.reached
        assert quality_of(codec, encoded.data, image, reference=reference) == encoded.measured >= 27
    with pytest.raises(TargetError):
        codec.encode(image, reference=reference, target_size=20)


def test_alpha_and_metadata_are_as_ever(codec, first, reference):
    image = noisy(first).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    encoded = codec.encode(image, reference=reference, alpha_quality=100)
    decoded = codec.decode(encoded.data, reference=reference).image
    assert encoded.file.reference
    assert decoded.getchannel("A") == image.getchannel("A")


def test_an_image_unlike_its_reference_is_coded_by_itself(codec, photo, reference):
    other = photo.crop((0, 240, SIZE[0], 240 + SIZE[1])).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    encoded = codec.encode(other, reference=reference)
    assert encoded.file.reference is None
    assert encoded.notes
    assert encoded.data == codec.encode(other).data


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_squares_use_the_reference_if_they_resemble_it(photo, runtime):
    before = photo.crop((0, 100, 500, 300))
    after = before.copy()
    after.paste(photo.crop((200, 100, 350, 300)).transpose(Image.Transpose.ROTATE_180), (256, 0))  # within a block
    with Codec(device="cpu", runtime=runtime) as codec:
        reference = codec.encode(before, quality=75)
        encoded = codec.encode(after, quality=25, reference=reference)
        uses = encoded.file.reference.uses(*after.size)
        assert uses.shape == (4, 8)
        assert uses[:, [0, 1, 2, 3, 7]].all()
        assert not uses[:, 4:6].any()
        alone = codec.encode(after, quality=25).data
        assert len(encoded.data) < 0.5 * len(alone)
        assert quality_of(codec, encoded.data, after, reference=reference) > quality_of(codec, alone, after) - 0.01
        decoded = np.asarray(codec.decode(encoded.data, reference=reference).image)
    assert psnr(decoded[:, 256:400], np.asarray(after)[:, 256:400]) > 20


def test_a_change_of_light_costs_a_few_bytes(codec, first, reference):
    darker = Image.fromarray((np.asarray(first) * 0.98 - 5).clip(0, 255).astype(np.uint8))
    encoded = codec.encode(darker, quality=30, reference=reference)
    assert encoded.file.reference.offsets[0] < 0
    assert len(encoded.data) < len(codec.encode(first, quality=30, reference=reference).data) + 8
    assert quality_of(codec, encoded.data, darker, reference=reference) > 25


def test_new_squares_and_squares_of_the_reference_do_not_mix(codec, photo):
    tokenizer, layout = codec.tokenizer(), codec.model.code.layout(512, 256)
    uses = np.ones((16, 32), np.bool_)
    uses[4:8, 8:16] = False
    base = replace(tokenizer.base_of(np.asarray(photo.crop((0, 100, 512, 356)))), uses=uses)
    own = [base.own(index) for index in range(len(layout.levels))]
    assert [int(mask.sum()) for mask in own[:5]] == [1, 1, 2, 8, 32]  # tokens of 256 to 16 pixels that cover new cells
    latents = []
    for changes in own, [~mask for mask in own]:
        decoded = Reconstruction(tokenizer.backend, [layout], [base])
        for index, change in enumerate(changes[:5]):
            digits = np.ones((layout.levels[index].digits, *layout.grids[index]), np.int8) * change
            decoded.add(index, decoded.predict(index), [digits], [layout.masks[index][None]])
        latents.append(decoded.latents)
    new, shared = ~uses, uses
    assert np.abs(latents[0] - base.latents)[:, :, shared].max() < 1e-4  # tokens of new squares change nothing else
    assert np.abs(latents[1] - base.latents)[:, :, shared].max() > 1
    assert np.abs(latents[0])[:, :, new].max() > 1
    assert np.abs(latents[0] - latents[1])[:, :, new].max() > 1


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_the_motion_is_found(photo, runtime):
    before, after = (photo.crop((x, y, x + 200, y + 150)) for x, y in ((200, 100), (193, 104)))
    with Codec(device="cpu", runtime=runtime) as codec:
        reference = codec.encode(before, quality=75)
        encoded = codec.encode(after, reference=reference, target_size=150)
        assert encoded.file.reference.motion == (-4, 7)
        alone = codec.encode(after, target_size=150)
        assert quality_of(codec, encoded.data, after, reference=reference) > quality_of(codec, alone.data, after) + 2


@pytest.mark.parametrize("motion", [(0, 0), (5, -3), (-40, 77)])
def test_motion_is_exact_in_large_images(photo, motion):
    pixels = np.asarray(photo.resize((1500, 1100)))
    assert find_motion(pixels, moved(pixels, motion, 1100, 1500)) == motion


def test_a_reference_may_have_another_size(codec, photo, first):
    larger = photo.crop((190, 90, 400, 260))
    encoded = codec.encode(first, reference=larger, quality=25)
    assert encoded.file.reference.of_pixels
    assert encoded.file.reference.motion == (-10, -10)
    assert len(encoded.data) < len(codec.encode(first, quality=25).data) / 2
    assert codec.decode(encoded.data, reference=larger).image.size == SIZE


def test_references_of_all_kinds(codec, first, reference, tmp_path):
    (tmp_path / "a.tsr").write_bytes(reference)
    encoded, image = codec.encode(first, quality=75), noisy(first)
    kinds = [reference, tmp_path / "a.tsr", str(tmp_path / "a.tsr"), encoded, codec.read(reference)]
    with (tmp_path / "a.tsr").open("rb") as file:
        files = [codec.encode(image, reference=kind, target_size=200).data for kind in (*kinds, file)]
        assert all(read_file(data).reference for data in files)
        for kind, data in zip((*kinds, file), files, strict=True):
            assert quality_of(codec, data, image, reference=kind) > 25
    of_pixels = codec.encode(image, reference=np.asarray(first), target_size=200)
    assert codec.decode(of_pixels.data, reference=first).image.size == SIZE


def test_a_reference_may_have_a_reference(codec, first, tmp_path):
    images = [noisy(first, seed) for seed in range(3)]
    names = [tmp_path / f"{index}.tsr" for index in range(3)]
    for image, name, before in zip(images, names, [None, *names], strict=False):
        name.write_bytes(codec.encode(image, reference=before, target_size=1500 if before is None else 200).data)
    assert read_file(names[2].read_bytes()).reference.name == "1.tsr"
    with Codec(device="cpu") as fresh:
        assert quality_of(fresh, names[2], images[2]) > 24
    names[0].unlink()
    with pytest.raises(FileError, match=r"0\.tsr"), Codec(device="cpu") as fresh:
        fresh.decode(names[2])


def test_a_reference_that_is_missing_or_wrong_is_refused(codec, first, reference, tmp_path):
    (tmp_path / "a.tsr").write_bytes(reference)
    data = codec.encode(noisy(first), reference=tmp_path / "a.tsr", target_size=200).data
    (tmp_path / "b.tsr").write_bytes(data)
    assert codec.decode(tmp_path / "b.tsr").image.size == SIZE
    assert codec.decode(data, reference=tmp_path).image.size == SIZE
    with Codec(device="cpu") as fresh:
        for options in ({}, {"reference": tmp_path / "none.tsr"}, {"reference": codec.encode(first, quality=50)}):
            with pytest.raises(FileError):
                fresh.decode(data, **options)
        with pytest.raises(FileError, match=r"a\.tsr") as info:
            fresh.decode(data)
        assert info.value.advice == ("reference",)
        (tmp_path / "a.tsr").write_bytes(codec.encode(first, quality=50).data)
        with pytest.raises(FileError, match=r"a\.tsr"):
            fresh.decode(tmp_path / "b.tsr")


def test_options_that_contradict_a_reference(codec, first, reference):
    with pytest.raises(UsageError):
        codec.encode(first, reference=reference, effort=5)
    (sequence,) = codec.tokenize([noisy(first)], reference=reference)
    with pytest.raises(TypeError):
        codec.write(sequence, quality=50)


def test_many_images_share_a_reference_that_is_decoded_once(first, reference, monkeypatch):
    images = [noisy(first, seed) for seed in range(4)]
    with Codec(device="cpu") as codec:
        loaded = []
        original = type(codec.tokenizer()).base_of
        monkeypatch.setattr(type(codec.tokenizer()), "base_of", lambda *a: loaded.append(1) or original(*a))
        outcomes = list(codec.encode_all(images, reference=reference, target_size=200))
        assert all(outcome.result.file.reference for outcome in outcomes)
        decoded = list(codec.decode_all([outcome.result.data for outcome in outcomes], reference=reference))
        assert [outcome.error for outcome in decoded] == [None] * 4
        assert len(loaded) == 1
        for seed in range(MAX_IMAGES + 2):
            codec.encode(first, reference=noisy(first, seed), target_size=200)
        assert len(codec._references._images) == MAX_IMAGES


def test_old_readers_refuse_the_flag(reference, codec, first):
    data = codec.encode(noisy(first), reference=reference, target_size=200).data
    assert data[2] & 8
    header = read_header(data)
    assert header.reference_bytes == 9
    for bit in range(8 * header.header_bytes):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TesseraError):
            codec.read(bytes(flipped))
    assert header.header_bytes > CRC_BYTES


# The command and Pillow


def test_the_command_and_pillow_find_the_reference(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first.save("a.png")
    noisy(first).save("b.png")
    assert run("encode", "a.png", "-q", "75").exit_code == 0
    (record,) = records(run("encode", "b.png", "--reference", "a.tsr", "--json", "--target-size", "200"))
    assert (record["status"], record["reference"]) == ("done", "a.tsr")
    (record,) = records(run("info", "b.tsr", "--json"))
    assert record["reference"] == record["reference"] | {"name": "a.tsr", "pixels": False, "motion": [0, 0], "squares": 6}
    assert run("decode", "b.tsr", "-o", "c.png").exit_code == 0
    with Image.open("b.tsr") as opened, Image.open("c.png") as decoded:
        assert np.array_equal(np.asarray(opened), np.asarray(decoded))
    first.save("d.tsr", target_size=200, reference=Path("a.tsr"))
    assert read_file(Path("d.tsr").read_bytes()).reference.name == "a.tsr"
    Path("far").mkdir()
    moved_file = Path("b.tsr").rename("far/b.tsr")
    outcome = run("decode", moved_file)
    assert outcome.exit_code == 1
    assert "a.tsr" in outcome.stderr
    assert "--reference" in outcome.stderr
    assert run("decode", moved_file, "--reference", "a.tsr").exit_code == 0
    assert run("decode", moved_file, "-o", "again.png").exit_code == 0  # the reference is in the output's folder
    assert run("tokens", moved_file).exit_code == 1
    library._shared.cache_clear()  # it has the reference in memory
    with Image.open(moved_file) as opened, pytest.raises(OSError, match=r"a\.tsr"):
        opened.load()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert tessera.pillow.FORMAT == "TSR"


def test_a_model_without_references_refuses_them(first, reference, monkeypatch):
    with Codec(device="cpu") as codec:
        data = codec.encode(noisy(first), reference=reference, target_size=200).data
        monkeypatch.setattr(type(codec.model), "refers", False)
        with pytest.raises(UsageError):
            codec.encode(first, reference=reference)
        with pytest.raises(FormatError):
            codec.decode(data, reference=reference)


def test_an_image_coded_against_itself_takes_no_tokens(codec, first):
    alone = codec.encode(first, quality=50)
    again = codec.encode(first, quality=50, reference=alone)
    assert len(again.data) < 40
    assert np.array_equal(*(np.asarray(codec.decode(file.data, reference=alone).image) for file in (alone, again)))
