"""The command with a FlexTok: a tiny network in a checkpoint of the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessera
from bitstream.container import read_file
from codec.codec import Codec
from codec.errors import UsageError
from codec.models.installing import import_model
from codec.system.context import network_context
from tests.helpers.commands import encoded, records, run
from tests.helpers.flextok import write_checkpoint


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """A data folder with an installed model, `flex`."""
    folder = tmp_path_factory.mktemp("flextok")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        outcome = run(
            "models", "import", write_checkpoint(folder / "checkpoint"), "--name", "flex", "--accept-licence", "--steps", 2
        )
    assert outcome.exit_code == 0, outcome.output
    return folder / "data"


@pytest.fixture(autouse=True)
def model(data_folder, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(data_folder))


@pytest.fixture
def image(tmp_path, photo) -> Path:
    photo.crop((200, 100, 280, 150)).save(tmp_path / "a.png")  # 3 x 2 blocks of 32x32
    return tmp_path / "a.png"


def test_import_needs_the_licence_to_be_accepted(tmp_path):
    outcome = run("models", "import", write_checkpoint(tmp_path / "b"), "--name", "b")
    assert outcome.exit_code == 1
    assert "--accept-licence" in outcome.output


def test_a_model_is_checked_with_one_step(monkeypatch):
    from codec.flextok.network import Flextok

    steps: list[int] = []
    decode = Flextok.detokenize
    monkeypatch.setattr(Flextok, "detokenize", lambda *a, **options: steps.append(options["steps"]) or decode(*a, **options))
    outcome = run("models", "check", "flex")
    assert outcome.exit_code == 0, outcome.output
    assert steps == [1]


def test_an_image_is_coded_at_two_lengths(image, tmp_path):
    sizes = []
    for tokens in (1, 8):
        record = encoded(image, "--model", "flex", "--tokens", tokens)
        assert (record["model"], record["tokens"]) == ("flex", tokens)
        assert run("decode", tmp_path / "a.tsr", "-o", tmp_path / "b.png", "-f", "--steps", 1).exit_code == 0
        with Image.open(tmp_path / "b.png") as decoded:
            assert decoded.size == (80, 50)
        sizes.append((tmp_path / "a.tsr").stat().st_size)
    assert sizes == sorted(set(sizes))
    (record,) = records(run("info", tmp_path / "a.tsr", "--json"))
    assert (record["model"], record["tokens"], record["length"]) == ("flex", 8, 48)


def test_sampling_is_repeatable_and_has_options(image):
    with Codec("flex", device="cpu") as codec:
        data = codec.encode(image, tokens=2).data
        default = np.asarray(codec.decode(data).image)

        def same(**options) -> bool:
            return np.array_equal(np.asarray(codec.decode(data, **options).image), default)

        assert same(steps=2, guidance=7.5, seed=0)
        for changed in ({"steps": 3}, {"guidance": 1.0}, {"seed": 4}):
            assert not same(**changed)


def test_files_of_different_options_are_decoded_together(image):
    with Codec("flex", device="cpu") as codec:
        data = codec.encode(image, tokens=2).data
        stored = [codec.read(data, steps=steps, seed=seed) for steps, seed in ((1, 0), (2, 0), (1, 9))]
        assert [len(file.decode_options) for file in stored] == [2, 2, 2]
        together = codec.detokenize(stored)
        for file, pixels in zip(stored, together, strict=True):
            assert np.abs(codec.detokenize([file])[0].astype(int) - pixels).max() <= 1


def test_progress_moves_with_the_steps(image):
    shares: list[float] = []
    with Codec("flex", device="cpu") as codec, network_context(1, shares.append):
        codec.decode(codec.encode(image, tokens=2).data, steps=5)
    assert len(shares) >= 5
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(("name", "value"), [("steps", 2), ("guidance", 2.0)])
def test_other_models_refuse_options_of_sampling(photo, tmp_path, name, value):
    data = tessera.encode(photo.crop((0, 0, 32, 32)))
    with pytest.raises(UsageError, match=name) as caught:
        tessera.decode(data, **{name: value})
    assert caught.value.advice == (name,)
    (tmp_path / "a.tsr").write_bytes(data)
    assert run("decode", tmp_path / "a.tsr", f"--{name}", value).exit_code == 2


def test_values_out_of_range_are_refused(image, tmp_path):
    encoded(image, "--model", "flex", "--tokens", 1)
    for flags in (("--steps", 0), ("--steps", 1.5), ("--guidance", 0.5), ("--seed", -1), ("--seed", 2**32)):
        assert run("decode", tmp_path / "a.tsr", *flags).exit_code == 2, flags


def test_a_target_takes_few_decodings(image, monkeypatch):
    from codec.flextok.tokenizer import FlextokTokenizer

    calls: list[int] = []
    decode = FlextokTokenizer.detokenize

    def counted(tokenizer, prefixes, **options):
        calls.append(len(prefixes))
        return decode(tokenizer, prefixes, steps=1)

    monkeypatch.setattr(FlextokTokenizer, "detokenize", counted)
    for target in (8, 90):
        calls.clear()
        assert run("encode", image, "--model", "flex", "--target-psnr", target, "-f").exit_code == 0
        assert len(calls) <= 6


def test_a_truncated_file_decodes(image, tmp_path):
    file = tmp_path / "a.tsr"
    encoded(image, "--model", "flex")
    data = file.read_bytes()
    for keep in (-6, 30):  # some blocks have no tokens in the second
        file.write_bytes(data[:keep])
        outcome = run("decode", file, "-o", tmp_path / "b.png", "--allow-partial", "--steps", 1, "-f", "--json")
        assert outcome.exit_code == 0, outcome.output
        assert 0 < records(outcome)[0]["tokens"] < read_file(data).length / 6


def test_tokens_are_exported_and_imported(image, tmp_path):
    file, arrays = tmp_path / "a.tsr", tmp_path / "a.npz"
    encoded(image, "--model", "flex")
    assert run("tokens", file, "-o", arrays).exit_code == 0
    with np.load(arrays) as exported:
        assert (exported["digits"].dtype, exported["digits"].shape) == (np.int32, (3, 8, 2, 3))
    assert run("tokens", "--back", arrays, "--model", "flex", "-o", tmp_path / "b.tsr").exit_code == 0
    assert (tmp_path / "b.tsr").read_bytes() == file.read_bytes()


def test_tables_are_measured_on_photos(image, tmp_path, photo, data_folder):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(2):
        photo.crop((80 * index, 40, 80 * index + 128, 168)).save(folder / f"{index}.png")
    _, calibration = import_model(
        str(data_folder.parent / "checkpoint"), name="measured", photos=[folder], accept_licence=True, device="cpu"
    )
    assert calibration is not None
    assert calibration.bits < calibration.bits_before
    small, large = (len(tessera.encode(image, model=name)) for name in ("measured", "flex"))
    assert small < large
