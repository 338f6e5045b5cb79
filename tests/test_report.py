"""The page of `tessera bench --report`, opened from a file in a headless browser without a network."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from itertools import combinations

import pytest

from benchmarks.records import Pixels, Point, Sample, Series, Speed
from benchmarks.report import Gallery, Tables, in_script, write_report
from codec.errors import TesseraError
from tests.helpers.browser import opened
from tests.helpers.study import CODECS, NAMES, decoded, made_up, metrics_at, original, sample_at


@pytest.fixture(scope="module")
def still(chromium, report):
    """The page for tests that do not change it."""
    with opened(chromium, report, viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture
def page(chromium, report):
    """The page for tests that change it."""
    with opened(chromium, report, viewport={"width": 1280, "height": 900}) as page:
        yield page


def curves(page) -> int:
    return page.locator("#chart .scatterlayer .trace path.js-line").count()


def test_curves_have_only_complete_points(still):
    assert curves(still) == 3  # JPEG has no rate at which all images fit
    assert still.locator("#chart .scatterlayer .points path").count() == 3 + 2 + 3
    assert still.locator("#legend button:disabled").inner_text() == "JPEG"
    dashes = still.locator("#chart path.js-line").evaluate_all("lines => lines.map(line => line.style.strokeDasharray)")
    assert [dash not in ("", "none", "0px") for dash in dashes].count(True) == 1


def test_hovering_shows_codec_rate_and_value(still):
    box = still.locator("#chart .scatterlayer .trace:last-child .points path").first.bounding_box()
    still.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    lines = still.locator("#chart .hoverlayer .hovertext .line").all_text_contents()
    assert [line.strip() for line in lines] == ["Tessera", "at most 0.05 bpp", "mean 0.0500 bpp", "LPIPS 0.450"]


def test_a_metric_switches_the_chart_and_the_table(page):
    table = page.locator("#table table:visible")
    assert page.locator("#chart .ytitle").text_content() == "LPIPS (lower is better)"
    assert table.locator("td").first.inner_text() == "0.450"
    page.locator("#table").get_by_role("button", name="PSNR").click()
    assert page.locator("#chart .ytitle").text_content() == "PSNR (dB, higher is better)"
    assert table.locator("td").first.inner_text() == "24.00"
    assert page.locator("#curves [aria-pressed=true][data-switch]").inner_text() == "PSNR"


def test_the_legend_hides_and_shows_a_curve(page):
    button = page.locator("#legend").get_by_role("button", name="WebP", exact=True)
    button.click()
    assert curves(page) == 2
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert curves(page) == 3


def test_the_table_marks_the_best_and_counts_images_that_fit(still):
    rows = still.locator("#table table:visible tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert cells[1] == ["1 of 3 fit", "0.500", "0.400", "the <eye>"]
    assert cells[3] == ["0 of 3 fit", "0 of 3 fit", "2 of 3 fit", "the <eye>"]
    assert still.locator("#table table:visible td.best").all_inner_texts() == ["0.450", "0.400", "0.300"]


def test_bd_rates_and_speed_are_shown(still):
    assert still.locator("#bd h2").inner_text() == "BD-rate against WebP"
    texts = [re.sub(r"\s+", " ", text).strip() for text in still.locator("#bd tbody tr").all_inner_texts()]
    assert texts[0] == "Tessera \u221231.3 % over 0.300 to 0.550 +12.0 % over 25.00 to 27.50 dB none not measured"
    assert "none JPEG has 0 of the 3 points that are needed" in texts[2]
    rows = still.locator("#speed tbody tr")
    assert rows.nth(0).locator("td").all_inner_texts() == ["3.14", "2.5", "1.25", "640", "400 tokens per block"]


def test_rate_is_drawn_against_time_at_a_common_quality(page):
    """WebP has LPIPS 0.5 to 0.4 at 0.1 to 0.2 bpp, Tessera has 0.45 to 0.3 at 0.05 to 0.2."""
    note = "Bits per pixel for LPIPS 0.450, the quality that most codecs reach at the image's own size"
    assert page.locator("#times-note").inner_text().startswith(note)
    assert page.locator("#times .points path").count() == 2
    assert set(page.locator("#times .textpoint text").all_text_contents()) == {"Tessera", "WebP"}

    def positions() -> dict[str, float]:
        return {text.text_content(): text.bounding_box()["x"] for text in page.locator("#times .textpoint text").all()}

    assert page.locator("#times .xtitle").text_content() == "encoding, seconds per megapixel"
    encoding = positions()
    assert encoding["Tessera"] > encoding["WebP"]  # slower is to the right
    page.locator("#speed").get_by_role("button", name="Decoding").click()
    assert page.locator("#times .xtitle").text_content() == "decoding, seconds per megapixel"
    page.locator("#table").get_by_role("button", name="PSNR").click()
    assert page.locator("#times-note").inner_text().startswith("Bits per pixel for PSNR 2")


def test_titles_of_marks_at_one_point_do_not_overlap(chromium, tmp_path):
    series = tuple(dataclasses.replace(made_up().series[0], name=name, title=title) for name, title in CODECS.items())
    speeds = tuple(Speed(name, 1.0, 1.0, 1.0, 1.0, "") for name in CODECS)
    write_report(made_up(series=series, speeds=speeds), tmp_path / "page.html", original, decoded)
    with opened(chromium, tmp_path / "page.html", viewport={"width": 1280, "height": 900}) as page:
        texts = page.locator("#times .textpoint text").all()
        assert {text.text_content() for text in texts} == set(CODECS.values())
        for one, other in combinations([text.bounding_box() for text in texts], 2):
            apart = abs(one["y"] - other["y"]) > 12  # pixels, the height of letters
            assert apart or one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]


def test_settings_versions_and_failures_are_listed(still):
    text = still.locator("main").inner_text()
    for part in (
        "JPEG XL needs pillow-jxl-plugin",
        "broken.png",
        "not an image",
        "2.14.1",
        "1 thread on a <processor>",
        "method <6>",
    ):
        assert part in text
    assert still.locator("#how code").first.inner_text() == made_up().command
    still.context.grant_permissions(["clipboard-read", "clipboard-write"])
    still.locator("#copy").click()
    still.get_by_role("button", name="Copied").wait_for()
    assert still.evaluate("navigator.clipboard.readText()") == made_up().command


@pytest.mark.parametrize("width", [360, 1280])
def test_no_width_needs_sideways_scrolling(chromium, report, width):
    with opened(chromium, report, viewport={"width": width, "height": 800}) as page:
        page.locator("#right").select_option("webp-scaled")
        for metric in ("lpips", "ms_ssim"):
            page.locator(f"#curves [data-switch={metric}]").click()
            inside, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert inside <= window == width
        too_wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.className)"
        assert page.locator("section, .head, .view, .cards, .choice, .facts, .controls").evaluate_all(too_wide) == []
        for name in ("Grid", "Blind test"):
            page.locator("#images").get_by_role("button", name=name).click()
            parts = page.locator("section, .head, .panels, .panel, .facts, .answers, .controls")
            assert parts.evaluate_all(too_wide) == []


@pytest.fixture(scope="module")
def phone(chromium, report):
    with opened(chromium, report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        yield page


def test_a_cut_table_shows_a_hint_until_it_is_scrolled_to_its_end(phone):
    table = phone.get_by_role("region", name="BD-rate")
    hint = "box => getComputedStyle(box, '::before').display"
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    assert table.evaluate(hint) == "block"
    table.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    phone.wait_for_function("() => !document.querySelector('#bd .wide').classList.contains('more')")
    assert table.evaluate(hint) == "none"


def test_a_table_that_fits_shows_no_hint(still):
    assert still.locator(".wide.more").count() == 0


def test_the_toolbar_of_the_chart_covers_no_point_on_a_phone(phone):
    toolbar = phone.locator("#chart .modebar").bounding_box()
    for point in phone.locator("#chart .points path").all():
        assert point.bounding_box()["y"] >= toolbar["y"] + toolbar["height"]
    assert phone.locator("#chart .bglayer, #chart .gridlayer").first.bounding_box()["y"] >= toolbar["y"] + toolbar["height"] - 1


def test_every_point_on_a_phone_is_below_a_labelled_rate(phone):
    boxes = [label.bounding_box() for label in phone.locator("#chart .xtick text").all()]
    right = max(point.bounding_box()["x"] for point in phone.locator("#chart .points path").all())
    last = max(boxes, key=lambda box: box["x"])
    assert right <= last["x"] + last["width"] <= 360
    assert phone.locator("#chart .xgrid").count() == len(boxes)


def test_colours_follow_the_readers_preference(page):
    from playwright.sync_api import expect

    def look() -> list[str]:
        colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        assert page.locator("#chart .ytitle").evaluate("text => text.style.fill") == colours[0]
        line = page.locator("#chart path.js-line").last.evaluate("line => line.style.stroke")
        key = page.locator("#legend .bold i").evaluate("key => getComputedStyle(key, '::after').backgroundColor")
        assert line == key
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]

    ink, paper = look()
    assert ink < paper
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).color")
    expect(page.locator("#chart .ytitle")).to_have_css("fill", dark)  # the chart is redrawn after a moment
    ink, paper = look()
    assert ink > paper


def test_own_settings_show_points_and_near_files(chromium, tmp_path):
    """Without common rates the table lists points, and images of nearly the same bytes are compared."""
    rates = {"tessera": (0.05, 0.1), "webp": (0.06, 0.19)}
    points = {codec: tuple(Point(f"quality {r}", 3, r, metrics_at(codec, r)) for r in bpps) for codec, bpps in rates.items()}
    series = tuple(Series(codec, CODECS[codec], "", points[codec]) for codec in rates)
    samples = {(n, codec, f"quality {r}"): sample_at(codec, r, n) for n in NAMES for codec, bpps in rates.items() for r in bpps}
    results = made_up(budgets=(), series=series, samples=samples, deltas=(), speeds=())
    gallery = Gallery(results, original, decoded, 4)
    assert gallery.rates == [0.05, 0.06, 0.1, 0.19]
    assert gallery.sample(NAMES[0], "webp", 0.05).bpp == 0.06
    assert gallery.sample(NAMES[0], "webp", 0.1) is None

    write_report(results, tmp_path / "own.html", original, decoded)
    with opened(chromium, tmp_path / "own.html") as page:
        assert page.locator("#table tbody tr").count() == 4
        assert page.locator("#table tbody tr").nth(2).locator("td").all_inner_texts()[:3] == ["quality 0.06", "0.0600", "0.540"]
        assert page.locator("#rates [aria-pressed=true]").inner_text() == "0.06"
        assert page.locator(".tag.right").inner_text() == "WebP"


def test_a_benchmark_without_files_has_a_page(chromium, tmp_path):
    write_report(made_up(series=(), samples={}, deltas=(), speeds=()), tmp_path / "page.html", original, decoded)
    with opened(chromium, tmp_path / "page.html") as page:
        assert page.locator("h1").inner_text() == "0 image codecs at the same bytes"


def test_json_cannot_end_its_script_element():
    plain = {"name": "</script><!--<script>"}
    assert "<" not in in_script(plain)
    assert json.loads(in_script(plain)) == plain


def test_colours_follow_codecs():
    tables = Tables(made_up())
    assert [tables.colour(name) for name in ("tessera", "webp", "webp-scaled", "jpeg")] == [0, 1, 1, 2]


def test_a_failure_keeps_the_old_page(tmp_path):
    (tmp_path / "page.html").write_text("old")

    def broken(image: str, codec: str, sample: Sample) -> Pixels:
        raise TesseraError

    with pytest.raises(TesseraError):
        write_report(made_up(), tmp_path / "page.html", original, broken)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_a_missing_library_is_named_with_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(TesseraError, match=r"pip install '\.\[report\]'"):
        write_report(made_up(), tmp_path / "page.html", original, decoded)
    assert not list(tmp_path.iterdir())
