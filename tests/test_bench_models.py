"""`tessera bench --codecs NAME`: installed models beside other codecs, at every length and at one."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.bench import Bench, BenchOptions, run_locally
from benchmarks.codecs.registry import BenchCodecOptions, model_names, open_codec
from benchmarks.codecs.tessera import TesseraCodec
from benchmarks.ray_bench import run_on_ray
from benchmarks.records import Point, Series
from benchmarks.report import colour_of, mark_of
from codec.models.published import CODEBOOK
from codec.models.registry import installed_folder
from codec.titok.config import TitokConfig
from codec.titok.model import TitokModel
from tests.helpers.commands import records, run
from tests.helpers.study import made_up

SIZES = {"side": 32, "codebook": 64, "pixel_codebook": 20, "pixel_code": 8, "pixel_width": 32}
CONFIGS = {"piece": TitokConfig(8, True, 16, 1, 2, **SIZES), "titok": TitokConfig(6, False, 16, 1, 2, **SIZES)}
QUICK = ("--bpp", "0.03,0.05,0.1,0.4,1", "--metrics", "psnr", "--no-cache", "--no-speed", "-j", "1")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    """A user's data folder with two installed models of random weights: `piece` has prefixes, `titok` has one length."""
    folder = tmp_path_factory.mktemp("data")
    for name, config in CONFIGS.items():
        torch.manual_seed(5)
        weights = {key: value.numpy() for key, value in TitokModel.build(config).state_dict().items()}
        path = folder / "tessera" / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        TitokModel.save(path, config, weights, TitokModel.new_code(config), {})
    return folder


@pytest.fixture(autouse=True)
def models(data_folder, monkeypatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(data_folder))


@pytest.fixture
def own_folder(data_folder, tmp_path, monkeypatch) -> None:
    """A copy of the data folder, to change."""
    shutil.copytree(data_folder, tmp_path / "own")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))


@pytest.fixture(scope="module")
def image(tmp_path_factory, photo) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    photo.crop((100, 60, 228, 156)).save(path)  # 4 x 3 blocks
    return path


def test_models_are_in_every_output(image, tmp_path):
    names = ("tessera", "titok", "piece", "piece@3", "webp")
    outputs = {"--csv": "a.csv", "--json-dir": "json", "--plot": "a.svg", "--report": "a.html"}
    options = [word for option, name in outputs.items() for word in (option, tmp_path / name)]
    result = run("bench", image, "--codecs", "webp,titok,piece,piece@3,tessera", "--anchor", "tessera", *QUICK, *options)
    assert result.exit_code == 0, result.output
    assert {path.stem for path in (tmp_path / "json").iterdir()} == {*names, "study"}
    rows = [row for row in csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())) if row["image"] == "mean"]
    assert list(dict.fromkeys(row["codec"] for row in rows)) == list(names)
    rates = {name: [float(row["bpp"]) for row in rows if row["codec"] == name] for name in names}
    assert len(set(rates["titok"])) == len(set(rates["piece@3"])) == 1
    assert len(set(rates["piece"])) > 1
    assert all(float(row["bpp"]) <= float(row["point"].split()[0]) for row in rows)
    page, plot = ((tmp_path / name).read_text() for name in ("a.html", "a.svg"))
    for name in names[1:4]:
        assert name in page
        assert f"<!-- {name} -->" in plot  # in the legend
    settings = json.loads((tmp_path / "json" / "study.json").read_text())["settings"]
    assert "3 tokens per block" in settings["piece@3"]
    bd_rate = json.loads((tmp_path / "json" / "titok.json").read_text())["bd_rate"]["psnr-rgb"]
    assert bd_rate["percent"] is None
    assert "1 of the 3 points" in bd_rate["note"]


def test_one_length_is_that_of_encode(image):
    result = run("bench", image, "--codecs", "piece@3,titok", *QUICK, "--csv", "-")
    assert result.exit_code == 0, result.output
    sizes = {row["codec"]: int(row["bytes"]) for row in csv.DictReader(io.StringIO(result.stdout)) if row["bytes"]}
    for name, options in {"piece@3": ("--tokens", 3), "titok": ()}.items():
        encode = run(
            "encode", image, "-o", image.with_suffix(".tsr"), "-f", "--json", "--model", name.partition("@")[0], *options
        )
        assert records(encode)[0]["bytes"] == sizes[name]


def test_one_length_is_one_setting_of_its_own(image):
    result = run("bench", image, "--own-settings", "--codecs", "piece,piece@3,titok", *QUICK[2:], "--json")
    assert result.exit_code == 0, result.output
    assert [len(record["labels"]) for record in records(result)] == [1 if "@" in name or name == "titok" else 11 for name in
                                                                    ("piece", "piece@3", "titok")]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ("webp,nosuch", "titok"),
        ("nosuch@3", "piece"),
        ("detailflow-32", "tessera models import detailflow-32"),
        ("titok@3", "6 tokens per block"),
        ("piece@9", "1 to 8"),
        ("piece@0", "1 to 8"),
        ("piece@x", "number"),
        ("webp@3", "webp"),
        ("titok-scaled", "titok"),
    ],
)
def test_unknown_names_and_lengths_are_refused_at_the_start(names, word, image):
    result = run("bench", image, "--codecs", names, *QUICK)
    assert (result.exit_code, result.stdout) == (2, "")
    assert word in result.stderr


def test_a_name_of_a_codec_is_never_a_model(own_folder):
    folder = installed_folder()
    for name in ("webp", "mine-quick"):
        shutil.copy(folder / "piece.safetensors", folder / f"{name}.safetensors")
    assert model_names() == ["standard", "piece", "titok"]
    assert open_codec("webp", BenchCodecOptions()).title == "WebP"


def test_a_damaged_model_is_named(image, own_folder):
    (installed_folder() / "cut.safetensors").write_bytes(b"cut")
    result = run("bench", image, "--codecs", "webp,cut", *QUICK)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cut.safetensors" in result.stderr


def test_one_network_is_in_memory_at_a_time(image):
    options = BenchOptions({"a": str(image), "b": str(image)}, ["titok", "webp", "piece"], (0.4,), metrics=["psnr"])
    bench = Bench.open(options, lambda line: None)
    study = bench.study()
    names = [study.tasks()[index][1].name for index in study.order()]
    assert names == ["webp", "webp", "titok", "titok", "piece", "piece"]
    study.collect(map(study.run_task, study.order()))
    models = [codec for codec in study.codecs if isinstance(codec, TesseraCodec)]
    assert [len(model.codec._tokenizers) for model in models] == [0, 1]
    titok = next(model for model in models if model.name == "titok")
    titok.decode(titok.encode(np.zeros((32, 32, 3), np.uint8), 100))
    assert [len(model.codec._tokenizers) for model in models] == [1, 0]


def test_another_decoder_has_another_description(own_folder):
    """Otherwise the cache would hold the images of the old one: both have the same stream id."""
    first = open_codec("piece", BenchCodecOptions(device="cpu")).description
    config = CONFIGS["piece"]
    torch.manual_seed(6)
    weights = {key: value.numpy() for key, value in TitokModel.build(config).state_dict().items()}
    weights |= {CODEBOOK: load_file(installed_folder() / "piece.safetensors")[CODEBOOK]}
    TitokModel.save(installed_folder() / "piece.safetensors", config, weights, TitokModel.new_code(config), {})
    second = open_codec("piece", BenchCodecOptions(device="cpu")).description
    assert second != first
    assert second.split(", ")[:3] == first.split(", ")[:3]


def test_the_anchor_has_a_curve():
    def series(name: str, rates: list[float]) -> Series:
        return Series(name, name, "", tuple(Point(f"{rate:g}", 1, rate, {"psnr": 20 + rate}) for rate in rates))

    curves = {"tessera": series("tessera", [1, 2, 3]), "titok": series("titok", [1, 1, 1]), "piece": series("piece", [1, 2, 3])}
    bench = Bench(BenchOptions({}, ["webp"]), [None], [], [], {}, {})  # type: ignore[list-item]
    assert bench._default_anchor(curves) == "piece"
    assert bench._default_anchor({key: curves[key] for key in ("tessera", "titok")}) == "titok"
    assert bench._default_anchor({"tessera": curves["tessera"]}) == ""
    assert len(curves["titok"].complete(1)) == 1


def test_a_single_point_is_seen_in_a_plot(tmp_path):
    from benchmarks.export import write_plot

    points = tuple(Point(f"{rate:g} bpp", 1, rate, {"psnr": 20.0}) for rate in (0.1, 0.2))
    same = (Point("0.1 bpp", 1, 0.05, {"psnr": 30.0}), Point("0.2 bpp", 1, 0.05, {"psnr": 30.0}))
    write_plot([Series("webp", "WebP", "", points), Series("titok", "titok", "", same)], ["psnr"], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as plot:
        pixels = np.asarray(plot.convert("RGB")).astype(int)
    colour = np.array([0x00, 0x72, 0xB2])  # the second of the palette
    legend = int(0.9 * len(pixels))
    assert (np.abs(pixels[:legend] - colour).sum(-1) < 30).sum() > 60


def test_colours_and_marks_together_tell_many_codecs_apart():
    names = ["tessera", *(f"model-{index}" for index in range(30))]
    results = made_up(series=tuple(Series(name, name, "", ()) for name in (*names, "model-3-scaled")))
    looks = [(colour_of(results, name), mark_of(results, name)) for name in names]
    assert looks[0] == (0, 0)
    assert len(set(looks)) == len(names)
    assert {colour for colour, _ in looks[1:]} == set(range(1, 10))
    assert (colour_of(results, "model-3-scaled"), mark_of(results, "model-3-scaled")) == looks[4]


def test_workers_of_a_cluster_measure_models_in_any_order(image, monkeypatch):
    """The last image is finished first."""

    def in_reverse(items, start, cluster, pack, max_chunk):
        task = start(None)
        for index in reversed(range(len(items))):
            ((_, result),) = task.do([pack(items[index], 0)])
            yield index, result

    monkeypatch.setattr("benchmarks.ray_bench.run_on_cluster", in_reverse)
    smaller = image.with_name("b.png")
    Image.open(image).crop((0, 0, 64, 64)).save(smaller)
    options = BenchOptions(
        {"a": str(image), "b": str(smaller)}, ["titok", "piece@3"], (0.1, 0.4), metrics=["psnr"], speed=False
    )
    results = []
    for run_study in (run_locally, lambda options, study: run_on_ray(options, study, None)):
        bench = Bench.open(options, lambda line: None)
        study = bench.study()
        results.append(bench.run(study, run_study(options, study), lambda: None, lambda line: None))
    assert results[0].samples == results[1].samples
    assert {(image, codec) for image, codec, _ in results[0].samples} == {(i, c) for i in "ab" for c in ("titok", "piece@3")}
