"""The images on the page of `tessera bench --report`: divider, grid and blind test."""

from __future__ import annotations

import dataclasses
import re

import pytest

from benchmarks.records import Pixels, Sample
from benchmarks.report import Gallery, write_report
from tests.helpers.browser import opened
from tests.helpers.study import EVIL, NAMES, decoded, made_up, original


@pytest.fixture
def page(chromium, report):
    """The page for tests that change it."""
    with opened(chromium, report, viewport={"width": 1280, "height": 900}) as page:
        yield page


def colour(page, side: str) -> list[int]:
    """The central pixel of the image on one side of the divider."""
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


def mode(page, name: str) -> None:
    page.locator("#images").get_by_role("button", name=name).click()


def panel_colour(page, selector: str) -> list[int]:
    """The central pixel of the image in a panel."""
    image = page.locator(f"{selector} img")
    image.evaluate("image => image.decode()")
    return image.evaluate(
        """image => {
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(image, -40, -30);
            return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }"""
    )


def test_the_grid_shows_up_to_four_images_with_numbers(page):
    mode(page, "Grid")
    panels = page.locator("#grid .panel")
    assert [panels.nth(n).locator("select").input_value() for n in range(4)] == ["original", "tessera", "webp", "webp-scaled"]
    assert panel_colour(page, "#grid .panel:nth-child(2)") == pytest.approx([200, 40, 40], abs=6)
    assert "76 bytes" in panels.nth(1).locator(".facts").inner_text()
    assert panels.nth(1).locator("dd.best").all_inner_texts() == ["0.400"]  # WebP has the best PSNR, MS-SSIM is equal
    panels.nth(0).locator("select").select_option("jpeg")
    assert panels.nth(0).locator(".none").inner_text() == "JPEG has no file at this rate for this image"
    panels.nth(0).locator("select").select_option("")
    assert panels.nth(0).locator(".window").is_hidden()
    page.locator("[data-rate='2']").click()
    assert "153 bytes" in panels.nth(1).locator(".facts").inner_text()


def views(page) -> list[dict[str, float]]:
    """The position of each panel's image relative to its window, and its magnification."""
    out = []
    for window in page.locator("#grid .window").all():
        outer, inner = window.bounding_box(), window.locator("img").bounding_box()
        out.append({"x": inner["x"] - outer["x"], "y": inner["y"] - outer["y"], "zoom": inner["width"] / outer["width"]})
    return out


def test_panels_are_magnified_and_moved_together(page):
    mode(page, "Grid")
    window = page.locator("#grid .window").nth(1)
    window.scroll_into_view_if_needed()
    box = window.bounding_box()
    page.mouse.dblclick(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    for one in views(page):
        assert one["zoom"] == pytest.approx(2, abs=0.01)
        assert one["x"] == pytest.approx(-0.25 * box["width"], abs=1)  # the point below the pointer stays
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 70, box["y"] + 90, steps=4)
    page.mouse.up()
    for one in views(page):
        assert one["x"] == pytest.approx(-0.25 * box["width"] - 30, abs=1)
        assert one["y"] == pytest.approx(-0.5 * box["height"] - 10, abs=1)
    page.mouse.move(box["x"] + 2000, box["y"])
    window.press("ArrowRight")
    assert views(page)[3]["x"] == pytest.approx(-0.35 * box["width"] - 30, abs=1)
    window.press("0")
    assert [one["zoom"] for one in views(page)] == pytest.approx([1, 1, 1, 1], abs=0.01)
    page.locator("[data-zoom='4']").click()
    assert [one["zoom"] for one in views(page)] == pytest.approx([4, 4, 4, 4], abs=0.01)


RED = pytest.approx([200, 40, 40], abs=6)  # the image of Tessera


def test_the_blind_test_shows_names_only_at_its_end(page):
    mode(page, "Blind test")
    total = int(page.locator("#round").inner_text().split()[-1])
    assert total == 3 * 3  # images, and pairs of the codecs in the grid
    wins = 0
    for number in range(total):
        assert page.locator("#round").inner_text() == f"{number + 1} of {total}"
        assert page.locator("#test .panels").inner_text().split() == ["A", "Original", "B"]
        assert not {"Tessera", "WebP"} & set(page.locator("#test .panels img").evaluate_all("all => all.map(i => i.alt)"))
        left, right = (panel_colour(page, f"[data-side={side}]") for side in "AB")
        answer = "A is closer" if left == RED else "B is closer" if right == RED else "No difference"
        wins += answer != "No difference"
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
    """The share of the width that the left image covers."""
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


def test_the_divider_follows_a_finger(chromium, report):
    with opened(chromium, report, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True) as page:
        page.locator(".view").scroll_into_view_if_needed()
        box = page.locator(".view").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + 20)
        assert clip(page) == pytest.approx(0.8, abs=0.01)


def test_choosing_a_codec_changes_image_and_label(page):
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


def test_a_codec_without_a_file_shows_a_note(page):
    page.locator("#right").select_option("jpeg")
    assert page.locator(".none.right").inner_text() == "JPEG has no file at this rate for this image"
    assert page.locator(".side.right img").is_hidden()
    page.locator("[data-rate='2']").click()
    assert page.locator(".side.right img").is_visible()
    assert page.locator(".facts.right dd").first.inner_text() == "153 bytes"


def test_images_can_have_any_name(page):
    assert page.locator("#thumbnails button").all_inner_texts() == list(NAMES)
    page.locator("#thumbnails button").nth(1).click()
    page.locator("#left").select_option("original")
    assert colour(page, "left") == pytest.approx([100, 100, 100], abs=4)
    assert page.locator(".side.left img").get_attribute("alt") == f"{EVIL}, Original"


def test_shown_rates_are_few_and_low():
    budgets = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.7)
    assert Gallery(made_up(budgets=budgets), original, decoded, 4).rates == [0.01, 0.04, 0.08, 0.25]
    assert Gallery(made_up(budgets=budgets[:4]), original, decoded, 4).rates == list(budgets[:4])


def test_images_beyond_the_limit_are_counted_but_not_shown(tmp_path):
    calls = []
    write_report(made_up(), tmp_path / "small.html", original, decoded, limit=1, progress=lambda: calls.append(1))
    text = (tmp_path / "small.html").read_text()
    assert calls == [1]
    assert re.findall(r'id="image-(\d)"', text) == ["0"]
    assert "2 more images are in the numbers, but not shown" in text


def test_equal_files_are_decoded_once(tmp_path):
    samples = {key: dataclasses.replace(sample, data=b"same") for key, sample in made_up().samples.items()}
    decoded_images = []

    def counting(image: str, codec: str, sample: Sample) -> Pixels:
        decoded_images.append(image)
        return decoded(image, codec, sample)

    write_report(made_up(samples=samples), tmp_path / "page.html", original, counting)
    assert decoded_images == list(NAMES)


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
