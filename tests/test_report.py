"""The page of `tessera bench --report`, as a reader meets it: opened from a file in a headless browser, without a network."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import browser, opened

from benchmarks.report import Gallery, Tables, in_script, write_report
from benchmarks.results import Delta, Picture, Pixels, Point, Results, Sample, Series, Speed
from bitstream.errors import TesseraError

BUDGETS = (0.05, 0.1, 0.2)
EVIL = "<script>alert('x')</script>.png"
NAMES = ("first.png", EVIL, "third & last.png")
CODECS = {"tessera": "Tessera", "webp": "WebP", "webp-scaled": "WebP, best scale", "jpeg": "JPEG"}
SIZE = (96, 64)


def label(rate: float) -> str:
    return f"{rate:g} bpp"


def fits(codec: str, picture: str, rate: float) -> bool:
    """WebP cannot make the first file of two pictures, JPEG hardly any file at all."""
    return {"webp": rate > 0.05 or picture == NAMES[0], "jpeg": rate > 0.1 and picture != NAMES[2]}.get(codec, True)


def metrics_at(codec: str, rate: float) -> dict[str, float]:
    better = {"tessera": 0.1, "webp-scaled": 0.05}.get(codec, 0)
    return {"lpips": 0.6 - rate - better, "psnr": 24 + 20 * rate - 10 * better, "ms_ssim": 0.8 + rate / 2}


def sample_at(codec: str, rate: float, picture: str) -> Sample:
    data = f"{codec} {rate} {picture}".encode().ljust(int(rate * SIZE[0] * SIZE[1] / 8), b".")
    scale = 0.5 if codec.endswith("scaled") else 1.0
    return Sample(data, f"quality {100 * rate:.0f}", scale, rate, metrics_at(codec, rate))


def made_up(**changes: object) -> Results:
    """Three pictures and four codecs at three rates, one codec missing, one picture unreadable."""
    samples = {
        (picture, codec, label(rate)): sample_at(codec, rate, picture)
        for picture in NAMES for codec in CODECS for rate in BUDGETS if fits(codec, picture, rate)
    }  # fmt: skip
    series = []
    for codec, title in CODECS.items():
        counts = [(rate, sum(fits(codec, picture, rate) for picture in NAMES)) for rate in BUDGETS]
        points = tuple(Point(label(rate), count, rate, metrics_at(codec, rate)) for rate, count in counts if count)
        series.append(Series(codec, title, f"{title} 1.0, method <6>", points, "the <eye>"))
    results = Results(
        command="tessera bench 'a <b>' --report out.html",
        pictures=tuple(Picture(name, f"/nowhere/{name}", *SIZE) for name in NAMES),
        metrics=("lpips", "psnr", "ms_ssim"),
        budgets=BUDGETS,
        series=tuple(series),
        missing={"jxl": "JPEG XL needs pillow-jxl-plugin"},
        failed={"broken.png": "is no picture"},
        anchor="webp",
        deltas=(
            Delta("tessera", "lpips", -31.26, 0.3, 0.55, ""),
            Delta("tessera", "psnr", 12.0, 25.0, 27.5, ""),
            Delta("jpeg", "lpips", None, None, None, "JPEG has 0 of the 3 points that are needed"),
        ),
        speeds=(
            Speed("tessera", 3.14159, 2.5, 1.25, 640.4, "400 tokens per block"),
            Speed("webp", 20.0, 100.0, 0.3, 60.0, "quality 20"),
        ),
        speed_note="1 thread on a <processor>",
        versions={"torch": "2.14.1"},
        settings={"Rates": "the best file that is no larger"},
        samples=samples,
    )
    return dataclasses.replace(results, **changes)


def original(name: str) -> Pixels:
    return np.full((SIZE[1], SIZE[0], 3), 40 + 60 * NAMES.index(name), np.uint8)


def decoded(picture: str, codec: str, sample: Sample) -> Pixels:
    """A flat colour that tells the codecs apart."""
    colours = {"tessera": (200, 40, 40), "webp": (40, 200, 40), "webp-scaled": (40, 40, 200), "jpeg": (200, 200, 40)}
    return np.full((SIZE[1], SIZE[0], 3), colours[codec], np.uint8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_report(made_up(), path, original, decoded)
    return path


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def still(chromium, path):
    """The page for tests that only read it."""
    with opened(chromium, path, viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture
def page(chromium, path):
    """The page for tests that use it."""
    with opened(chromium, path, viewport={"width": 1280, "height": 900}) as page:
        yield page


def curves(page) -> int:
    return page.locator("#chart .scatterlayer .trace path.js-line").count()


def colour(page, side: str) -> list[int]:
    """The middle pixel of the picture that a side shows."""
    return page.evaluate(
        """async (side) => {
            const image = document.querySelector(`.side.${side} img`);
            await image.decode();
            const canvas = document.createElement("canvas");
            const context = canvas.getContext("2d");
            context.drawImage(image, -40, -30);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        side,
    )


def test_curves_are_drawn_from_whole_points_alone(still):
    assert curves(still) == 3  # JPEG has no rate at which all pictures fit
    assert still.locator("#chart .scatterlayer .points path").count() == 3 + 2 + 3
    assert still.locator("#legend button:disabled").inner_text() == "JPEG"
    dashes = still.locator("#chart path.js-line").evaluate_all("lines => lines.map(line => line.style.strokeDasharray)")
    assert [dash not in ("", "none", "0px") for dash in dashes].count(True) == 1


def test_hovering_says_codec_rate_and_value(still):
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


def test_same_bytes_marks_the_best_and_says_what_did_not_fit(still):
    rows = still.locator("#table table:visible tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert cells[1] == ["1 of 3 fit", "0.500", "0.400", "the <eye>"]
    assert cells[3] == ["0 of 3 fit", "0 of 3 fit", "2 of 3 fit", "the <eye>"]
    assert still.locator("#table table:visible td.best").all_inner_texts() == ["0.450", "0.400", "0.300"]


def test_bd_rates_and_speed_are_given(still):
    assert still.locator("#bd h2").inner_text() == "BD-rate against WebP"
    texts = [re.sub(r"\s+", " ", text).strip() for text in still.locator("#bd tbody tr").all_inner_texts()]
    assert texts[0] == "Tessera \u221231.3 % over 0.300 to 0.550 +12.0 % over 25.00 to 27.50 dB none not measured"
    assert "none JPEG has 0 of the 3 points that are needed" in texts[2]
    rows = still.locator("#speed tbody tr")
    assert rows.nth(0).locator("td").all_inner_texts() == ["3.14", "2.5", "1.25", "640", "400 tokens per block"]


def test_rate_is_drawn_against_time_at_a_quality_that_both_reach(page):
    """WebP's curve runs from 0.1 to 0.2 bpp at LPIPS 0.5 to 0.4, Tessera's from 0.05 to 0.2 at 0.45 to 0.3."""
    note = "Bits per pixel for LPIPS 0.450, the quality that most codecs reach at the picture's own size"
    assert page.locator("#times-note").inner_text().startswith(note)
    assert page.locator("#times .points path").count() == 2
    assert set(page.locator("#times .textpoint text").all_text_contents()) == {"Tessera", "WebP"}

    def places() -> dict[str, float]:
        return {text.text_content(): text.bounding_box()["x"] for text in page.locator("#times .textpoint text").all()}

    assert page.locator("#times .xtitle").text_content() == "encoding, seconds per megapixel"
    encoding = places()
    assert encoding["Tessera"] > encoding["WebP"]  # slower is to the right
    page.locator("#speed").get_by_role("button", name="Decoding").click()
    assert page.locator("#times .xtitle").text_content() == "decoding, seconds per megapixel"
    page.locator("#table").get_by_role("button", name="PSNR").click()
    assert page.locator("#times-note").inner_text().startswith("Bits per pixel for PSNR 2")


def mode(page, name: str) -> None:
    page.locator("#pictures").get_by_role("button", name=name).click()


def shown(page, place: str) -> list[int]:
    """The middle pixel of the picture in a panel."""
    image = page.locator(f"{place} img")
    image.evaluate("image => image.decode()")
    return image.evaluate(
        """image => {
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(image, -40, -30);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )


def test_up_to_four_are_shown_with_their_numbers(page):
    mode(page, "Grid")
    panels = page.locator("#grid .panel")
    assert [panels.nth(n).locator("select").input_value() for n in range(4)] == ["original", "tessera", "webp", "webp-scaled"]
    assert shown(page, "#grid .panel:nth-child(2)") == pytest.approx([200, 40, 40], abs=6)
    assert "76 bytes" in panels.nth(1).locator(".facts").inner_text()
    assert panels.nth(1).locator("dd.best").all_inner_texts() == ["0.400"]  # PSNR is WebP's, MS-SSIM is alike
    panels.nth(0).locator("select").select_option("jpeg")
    assert panels.nth(0).locator(".none").inner_text() == "JPEG has no file at this rate for this picture"
    panels.nth(0).locator("select").select_option("")
    assert panels.nth(0).locator(".window").is_hidden()
    page.locator("[data-rate='2']").click()
    assert "153 bytes" in panels.nth(1).locator(".facts").inner_text()


def boxes(page) -> list[dict[str, float]]:
    """Where the pictures of the panels lie, against their windows."""
    out = []
    for window in page.locator("#grid .window").all():
        outer, inner = window.bounding_box(), window.locator("img").bounding_box()
        out.append({"x": inner["x"] - outer["x"], "y": inner["y"] - outer["y"], "width": inner["width"] / outer["width"]})
    return out


def test_panels_grow_and_move_in_step(page):
    mode(page, "Grid")
    window = page.locator("#grid .window").nth(1)
    window.scroll_into_view_if_needed()
    box = window.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    for one in boxes(page):
        assert one["width"] == pytest.approx(2, abs=0.01)
        assert one["x"] == pytest.approx(-0.25 * box["width"], abs=1)  # what was under the pointer stays there
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 70, box["y"] + 90, steps=4)
    page.mouse.up()
    for one in boxes(page):
        assert one["x"] == pytest.approx(-0.25 * box["width"] - 30, abs=1)
        assert one["y"] == pytest.approx(-0.5 * box["height"] - 10, abs=1)
    page.mouse.move(box["x"] + 2000, box["y"])
    window.press("ArrowRight")
    assert boxes(page)[3]["x"] == pytest.approx(-0.35 * box["width"] - 30, abs=1)
    window.press("0")
    assert [one["width"] for one in boxes(page)] == pytest.approx([1, 1, 1, 1], abs=0.01)
    page.locator("[data-zoom='4']").click()
    assert [one["width"] for one in boxes(page)] == pytest.approx([4, 4, 4, 4], abs=0.01)


RED = pytest.approx([200, 40, 40], abs=6)  # Tessera


def test_the_blind_test_tells_names_at_its_end_alone(page):
    mode(page, "Blind test")
    total = int(page.locator("#round").inner_text().split()[-1])
    assert total == 3 * 3  # pictures, and pairs of the codecs in the grid
    wins = 0
    for number in range(total):
        assert page.locator("#round").inner_text() == f"{number + 1} of {total}"
        assert page.locator("#test .panels").inner_text().split() == ["A", "Original", "B"]
        assert not {"Tessera", "WebP"} & set(page.locator("#test .panels img").evaluate_all("all => all.map(i => i.alt)"))
        left, right = (shown(page, f"[data-side={side}]") for side in "AB")
        answer = "A is closer" if left == RED else "B is closer" if right == RED else "No telling"
        wins += answer != "No telling"
        page.get_by_role("button", name=answer).click()
    rows = [row.inner_text().split("\t") for row in page.locator("#tally tbody tr").all()]
    assert rows[0] == ["Tessera", str(wins), "0", "0", str(wins)]
    assert [sum(int(row[column]) for row in rows) for column in (1, 4)] == [wins, 2 * total]
    page.get_by_role("button", name="Test again").click()
    page.get_by_role("button", name="Stop and show the tally").click()
    assert page.locator("#tally p").inner_text().startswith("No answer was given")
    mode(page, "Grid")
    page.locator("#grid select").nth(2).select_option("jpeg")
    page.locator("#grid select").nth(3).select_option("")
    mode(page, "Blind test")
    assert page.locator("#tally p").inner_text().startswith("There is nothing to compare")


def clip(page) -> float:
    """Share of the width that the left picture covers."""
    return page.evaluate(
        """() => {
            const box = document.querySelector(".view").getBoundingClientRect();
            const side = getComputedStyle(document.querySelector(".side.left")).clipPath;
            const right = side.match(/inset\\(0px ([^ ]+)/)[1];
            const width = document.querySelector(".layers").getBoundingClientRect().width;
            const probe = document.createElement("div");
            probe.style.width = right;
            document.querySelector(".layers").append(probe);
            const cut = probe.getBoundingClientRect().width;
            probe.remove();
            return (width - cut) / width;
        }"""
    )


def test_the_divider_follows_mouse_and_keys(page):
    view = page.locator(".view")
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    assert clip(page) == pytest.approx(0.5, abs=0.01)

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50, steps=3)
    page.mouse.up()
    assert clip(page) == pytest.approx(0.25, abs=0.01)
    divider = page.locator(".divider").bounding_box()
    assert divider["x"] + divider["width"] / 2 == pytest.approx(box["x"] + box["width"] / 4, abs=2)

    page.keyboard.press("ArrowRight")
    assert 0.255 < clip(page) < 0.3
    page.keyboard.press("End")
    assert clip(page) == pytest.approx(1, abs=0.01)
    assert page.locator("#split").get_attribute("aria-valuetext") == "100 % Tessera, 0 % WebP"


def test_magnified_the_divider_stays_under_the_pointer(page):
    page.locator("[data-zoom='4']").click()
    box = page.locator(".view").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    layers = page.locator(".layers").bounding_box()
    assert layers["width"] == pytest.approx(4 * box["width"], abs=1)
    edge = layers["x"] + layers["width"] * clip(page)
    assert edge == pytest.approx(box["x"] + box["width"] * 0.75, abs=2)
    before = layers["y"]
    page.keyboard.press("ArrowDown")
    assert page.locator(".layers").bounding_box()["y"] < before - 5


def test_the_divider_follows_a_finger(chromium, path):
    with opened(chromium, path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        page.locator(".view").scroll_into_view_if_needed()
        box = page.locator(".view").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + 20)
        assert clip(page) == pytest.approx(0.8, abs=0.01)


def test_another_codec_changes_picture_and_label(page):
    assert colour(page, "left") == pytest.approx([200, 40, 40], abs=6)
    assert colour(page, "right") == pytest.approx([40, 200, 40], abs=6)
    page.locator("#right").select_option("webp-scaled")
    assert colour(page, "right") == pytest.approx([40, 40, 200], abs=6)
    assert page.locator(".tag.right").inner_text() == "WebP, best scale"
    facts = page.locator(".facts.right").inner_text()
    for part in ("76 bytes", "0.1000 bpp", "0.450", "25.50 dB", "quality 10, shrunk to 0.5 of its size"):
        assert part in facts
    page.locator("#left").select_option("original")
    assert colour(page, "left") == pytest.approx([40, 40, 40], abs=6)
    page.locator("#swap").click()
    assert page.locator(".tag.left").inner_text() == "WebP, best scale"
    assert page.locator(".tag.right").inner_text() == "Original"


def test_a_codec_without_a_file_says_so(page):
    page.locator("#right").select_option("jpeg")
    assert page.locator(".none.right").inner_text() == "JPEG has no file at this rate for this picture"
    assert page.locator(".side.right img").is_hidden()
    page.locator("[data-rate='2']").click()
    assert page.locator(".side.right img").is_visible()
    assert page.locator(".facts.right dd").first.inner_text() == "153 bytes"


def test_another_picture_is_shown_whatever_its_name(page):
    assert page.locator("#thumbnails button").all_inner_texts() == list(NAMES)
    page.locator("#thumbnails button").nth(1).click()
    page.locator("#left").select_option("original")
    assert colour(page, "left") == pytest.approx([100, 100, 100], abs=4)
    assert page.locator(".side.left img").get_attribute("alt") == f"{EVIL}, Original"


def test_what_it_took_is_written_down(still):
    text = still.locator("main").inner_text()
    for part in (
        "JPEG XL needs pillow-jxl-plugin",
        "broken.png",
        "is no picture",
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
def test_no_width_needs_sideways_scrolling(chromium, path, width):
    with opened(chromium, path, viewport={"width": width, "height": 800}) as page:
        page.locator("#right").select_option("webp-scaled")
        for metric in ("lpips", "ms_ssim"):
            page.locator(f"#curves [data-switch={metric}]").click()
            inside, window = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert inside <= window == width
        too_wide = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.className)"
        assert page.locator("section, .head, .view, .cards, .choice, .facts, .controls").evaluate_all(too_wide) == []
        for name in ("Grid", "Blind test"):
            mode(page, name)
            parts = page.locator("section, .head, .panels, .panel, .facts, .answers, .controls")
            assert parts.evaluate_all(too_wide) == []


@pytest.fixture(scope="module")
def phone(chromium, path):
    with opened(chromium, path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        yield page


def test_a_table_that_is_cut_on_a_phone_says_so_until_its_end(phone):
    table = phone.get_by_role("region", name="BD-rate")
    hint = "box => getComputedStyle(box, '::before').display"
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    assert table.evaluate(hint) == "block"
    table.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    phone.wait_for_function("() => !document.querySelector('#bd .wide').classList.contains('more')")
    assert table.evaluate(hint) == "none"


def test_no_hint_where_a_table_fits(still):
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


def test_light_and_dark_follow_the_reader(page):
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
    expect(page.locator("#chart .ytitle")).to_have_css("fill", dark)  # the chart is drawn anew a little later
    ink, paper = look()
    assert ink > paper


def test_own_settings_show_points_and_near_files(chromium, tmp_path):
    """Codecs at settings of their own share no rate: the table lists points, and files of nearly the same bytes meet."""
    rates = {"tessera": (0.05, 0.1), "webp": (0.06, 0.19)}
    points = {codec: tuple(Point(f"quality {r}", 3, r, metrics_at(codec, r)) for r in given) for codec, given in rates.items()}
    series = tuple(Series(codec, CODECS[codec], "", points[codec]) for codec in rates)
    samples = {
        (n, codec, f"quality {r}"): sample_at(codec, r, n) for n in NAMES for codec, given in rates.items() for r in given
    }
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


def test_shown_rates_are_few_and_low():
    budgets = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.7)
    assert Gallery(made_up(budgets=budgets), original, decoded, 4).rates == [0.01, 0.04, 0.08, 0.25]
    assert Gallery(made_up(budgets=budgets[:4]), original, decoded, 4).rates == list(budgets[:4])


def test_pictures_beyond_the_limit_are_left_out_and_counted(tmp_path):
    seen = []
    write_report(made_up(), tmp_path / "small.html", original, decoded, limit=1, progress=lambda: seen.append(1))
    text = (tmp_path / "small.html").read_text()
    assert seen == [1]
    assert re.findall(r'id="picture-(\d)"', text) == ["0"]
    assert "2 more pictures are in the numbers" in text


def test_equal_files_are_decoded_once(tmp_path):
    samples = {key: dataclasses.replace(sample, data=b"same") for key, sample in made_up().samples.items()}
    asked = []

    def counted(picture: str, codec: str, sample: Sample) -> Pixels:
        asked.append(picture)
        return decoded(picture, codec, sample)

    write_report(made_up(samples=samples), tmp_path / "page.html", original, counted)
    assert asked == list(NAMES)


def test_an_exact_copy_has_an_infinite_psnr(chromium, tmp_path):
    perfect = {"lpips": 0.0, "psnr": float("inf"), "ms_ssim": 1.0}
    samples = {key: dataclasses.replace(sample, metrics=perfect) for key, sample in made_up().samples.items()}
    series = tuple(
        dataclasses.replace(one, points=tuple(dataclasses.replace(point, metrics=perfect) for point in one.points))
        for one in made_up().series
    )
    write_report(made_up(samples=samples, series=series), tmp_path / "page.html", original, decoded)
    with opened(chromium, tmp_path / "page.html") as page:
        assert "\u221e dB" in page.locator(".facts.left").inner_text()


def test_nothing_coded_still_makes_a_page(chromium, tmp_path):
    write_report(made_up(series=(), samples={}, deltas=(), speeds=()), tmp_path / "page.html", original, decoded)
    with opened(chromium, tmp_path / "page.html") as page:
        assert page.locator("h1").inner_text() == "0 image codecs at the same bytes"


def test_json_in_a_script_cannot_end_it():
    plain = {"name": "</script><!--<script>"}
    assert "<" not in in_script(plain)
    assert json.loads(in_script(plain)) == plain


def test_colours_follow_codecs():
    tables = Tables(made_up())
    assert [tables.colour(name) for name in ("tessera", "webp", "webp-scaled", "jpeg")] == [0, 1, 1, 2]


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    (tmp_path / "page.html").write_text("old")

    def broken(picture: str, codec: str, sample: Sample) -> Pixels:
        raise TesseraError

    with pytest.raises(TesseraError):
        write_report(made_up(), tmp_path / "page.html", original, broken)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_without_plotly_the_next_step_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(TesseraError, match=r"the page needs plotly.*: pip install '\.\[report\]'"):
        write_report(made_up(), tmp_path / "page.html", original, decoded)
    assert not list(tmp_path.iterdir())
