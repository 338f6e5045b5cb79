"""The viewer in a browser: its images are within 1/255 of those of torch, from complete, cut and damaged files and from files
of another model. Needs `make viewer`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageCms

from bitstream.container import read_file
from codec.image.profiles import SPACES, make_profile, recognise
from codec.models.registry import open_model
from tests.helpers import GOLDEN, PHOTO
from tests.helpers.browser import TIMEOUT_MS, Handler, opened, served
from tests.helpers.viewer import BUILT, NAMES, alike, drawn, make_site, with_checksum

WIDE = GOLDEN / "wide-bytes.tsr"
TOKENS = read_file(WIDE.read_bytes()).length

SMALL = (150, 100, 246, 164)
VISIBLE = "#view:not([hidden])"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The viewer as built, with the pages and modules of this checkout, and some files."""
    folder = tmp_path_factory.mktemp("site")
    make_site(folder)
    (folder / "models").symlink_to(BUILT / "models")
    graphs = open_model(BUILT / "models" / open_model().stream_id.hex() / "model.safetensors")
    assert graphs.metadata["exported"] == open_model().digest, "the viewer was built for another model: make viewer"
    (folder / "photo.webp").symlink_to(PHOTO)
    for name in NAMES:
        (folder / f"{Path(name).name}.tsr").symlink_to(GOLDEN / f"{name}.tsr")
    return folder


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with served(site) as address:
        yield address


@pytest.fixture(scope="module")
def bench(chromium, address) -> Iterator[Any]:
    """An empty page with the functions of viewer_page.js."""
    with opened(chromium, f"{address}test.html") as page:
        yield page


@pytest.mark.parametrize("name", NAMES)
def test_golden_images_equal_those_of_torch(bench, codec, name):
    data = (GOLDEN / f"{name}.tsr").read_bytes()
    (drawing,) = drawn(bench, data)
    with Image.open(GOLDEN / f"{name}.png") as golden:
        assert alike(drawing, golden)
    expected = codec.decode(data).image
    assert drawing.info.get("icc_profile") == expected.info.get("icc_profile")
    assert dict(drawing.getexif()) == dict(expected.getexif())
    assert drawing.info.get("xmp") == expected.info.get("xmp")


def test_every_prefix_equals_that_of_torch(bench, codec):
    """In both directions, so that states cached for one prefix are used for the next."""
    data = (GOLDEN / "wide-bytes.tsr").read_bytes()
    sizes = (len(data), 40, 120, 200, 24)
    for size, drawing in zip(sizes, drawn(bench, data, *sizes), strict=True):
        assert alike(drawing, codec.decode(data[:size], allow_partial=True).image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_transparent_images(bench, codec, photo, mode):
    image = photo.crop(SMALL).convert("RGB")
    y, x = np.mgrid[: image.height, : image.width]
    image.putalpha(Image.fromarray(((np.hypot(x - 48, y - 32) * 8).clip(0, 255)).astype(np.uint8)))
    data = codec.encode(image.convert(mode), tokens=100, alpha_quality=30).data
    (drawing,) = drawn(bench, data)
    assert alike(drawing, codec.decode(data).image)


@pytest.mark.parametrize("number", sorted(SPACES))
def test_colour_spaces_keep_their_meaning(bench, codec, photo, number):
    mode = SPACES[number].mode
    image = photo.crop(SMALL).convert(mode)
    data = codec.encode(Image.fromarray(np.asarray(image)), tokens=20).data if number == 0 else None
    if data is None:
        image.info["icc_profile"] = make_profile(SPACES[number])
        data = codec.encode(image, tokens=20).data
    (drawing,) = drawn(bench, data)
    assert alike(drawing, codec.decode(data).image)
    profile = drawing.info.get("icc_profile")
    assert (profile is None) == (number == 0)
    if profile:
        assert recognise(profile, mode) == number
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        assert description.casefold().strip() == SPACES[number].name.casefold()


def test_tiles_equal_the_untiled_image(bench, codec, photo):
    data = codec.encode(photo.resize((600, 40)), tokens=300).data
    folder = f"models/{open_model().stream_id.hex()}"
    result = bench.evaluate("([text, folder]) => tiled(text, folder)", [base64.b64encode(data).decode(), folder])
    assert result["values"] == 600 * 40 * 3
    assert result["distance"] <= 1


def shown_tokens(page: Any) -> int:
    """Waits for an image, and returns the number of its tokens."""
    page.wait_for_selector(VISIBLE)
    page.wait_for_selector("#status-text:has-text('bits per pixel')")
    return int(page.locator("#view").get_attribute("data-tokens"))


def facts(page: Any) -> dict[str, str]:
    terms, texts = (page.locator(f"#facts {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(terms, texts, strict=True))


def test_a_link_opens_a_file_and_its_original(chromium, address):
    with opened(chromium, f"{address}?src=wide-bytes.tsr&original=photo.webp") as page:
        tokens = shown_tokens(page)
        panel = facts(page)
        assert panel["Size"] == "300 × 80"
        assert panel["File"] == f"{WIDE.stat().st_size} bytes"
        assert panel["Rate"] == f"{WIDE.stat().st_size * 8 / 24_000:#.3g} bits per pixel"
        assert panel["Model"] == f"standard ({open_model().stream_id.hex()})"
        assert page.locator("#image").get_attribute("alt") == "The image in wide-bytes.tsr"
        assert page.evaluate("[image.naturalWidth, image.naturalHeight]") == [300, 80]
        assert page.locator("#save").get_attribute("download") == "wide-bytes.png"
        with page.expect_download() as saving:
            page.locator("#save").click()
        with Image.open(saving.value.path()) as saved:
            assert (saved.format, saved.size) == ("PNG", (300, 80))
        # the slider of bytes, and the divider, by keyboard
        page.locator("#size").focus()
        page.keyboard.press("Home")
        assert page.locator("#shown").text_content() == page.locator("#size").get_attribute("min") + " bytes"
        page.wait_for_selector("#view[data-tokens='0']")
        page.keyboard.press("End")
        page.wait_for_selector(f"#view[data-tokens='{tokens}']")
        before = page.locator("#edge").bounding_box()["x"]
        page.locator("#wipe").focus()
        page.keyboard.press("Home")
        assert page.locator("#edge").bounding_box()["x"] < before - 100
        assert page.locator("#tessera-tag").text_content() == f"Tessera, {WIDE.stat().st_size} bytes"


def test_the_picker_opens_a_file_and_its_original(chromium, address, site):
    with opened(chromium, address) as page:
        assert page.locator("#empty").is_visible()
        page.locator("#files").set_input_files(site / "cut-out.tsr")
        shown_tokens(page)
        assert facts(page)["Description"] == "a cut-out"
        assert facts(page)["Colours"] == "its own profile"
        assert page.locator("#wipe").is_hidden()
        page.locator("#files").set_input_files(PHOTO)
        page.wait_for_selector("#original:not([hidden])")
        assert page.locator("#original-tag").text_content() == "original, 60.1 kB"


def drop(page: Any, name: str, data: bytes) -> None:
    page.evaluate(
        """([name, text]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }""",
        [name, base64.b64encode(data).decode()],
    )


def test_a_cut_file_is_shown_with_a_notice(chromium, address):
    with opened(chromium, address) as page:
        drop(page, "half.tsr", (GOLDEN / "wide-bytes.tsr").read_bytes()[:150])
        tokens = shown_tokens(page)
        assert page.locator("#notice").is_visible()
        assert f"{tokens} of {TOKENS} tokens" in page.locator("#notice").text_content()


def test_a_file_without_an_image_has_an_error(chromium, address):
    good = (GOLDEN / "wide-bytes.tsr").read_bytes()
    flipped = bytearray((GOLDEN / "sections" / "cut-out.tsr").read_bytes())
    flipped[50] ^= 1
    with opened(chromium, address) as page:
        for data, words in (
            (bytes(flipped), "damaged"),
            (with_checksum(good[:3] + b"\xab\xcd" + good[5:]), "abcd"),
            (b"GIF89a", "not a .tsr file"),
            (good[:8], "header"),
            (b"\xd4\x54\x12\xab\xcd" + b"\0\xff\xff\xff" * 2 + bytes(4), "megapixels"),
        ):
            drop(page, "strange.tsr", data)
            page.wait_for_selector(f"#problem:has-text('{words}')")
            assert page.locator("#problem b").text_content() == "strange.tsr"
            assert page.locator("#problem").get_attribute("role") == "alert"
            assert page.locator("#view").is_hidden() and page.locator("#panel").is_hidden()
        drop(page, "good.tsr", good)
        assert shown_tokens(page) == TOKENS
        assert page.locator("#problem").is_hidden()


def test_only_given_addresses_are_fetched(chromium, address, site):
    """Neither the page nor the worker, which reads the file, may fetch from elsewhere. Files of another site are shown."""
    with served(site, Sharing) as other:
        given = f"{other}odd;%20good.tsr"
        (site / "odd; good.tsr").symlink_to(WIDE)
        link = f"{address}?src={quote(given)}&original={quote(other)}photo.webp"
        with opened(chromium, link, allowed_error="Content Security Policy", others=(other,)) as page:
            assert shown_tokens(page) == TOKENS
            page.wait_for_function("document.getElementById('original').naturalWidth > 0")
            fetching = "(url) => fetch(url).then(() => 'fetched', () => 'refused')"
            loading = """(url) => new Promise((done) => Object.assign(new Image(), {
                src: url, onload: () => done("fetched"), onerror: () => done("refused") }))"""
            for context in (page, *page.workers):
                assert context.evaluate(fetching, given) == "fetched"
                assert context.evaluate(fetching, f"{address}page.css") == "fetched"
                assert context.evaluate(fetching, f"{other}pixel.tsr") == "refused"
            assert len(page.workers) > 0
            assert page.evaluate(loading, f"{address}photo.webp") == "fetched"
            assert page.evaluate(loading, f"{other}example.webp") == "refused"


def test_a_missing_file_has_an_error(chromium, address):
    with opened(chromium, f"{address}?src=nowhere.tsr", allowed_error="404") as page:
        page.wait_for_selector("#problem:has-text('404')")


class Sharing(Handler):
    """A server whose files other sites may read."""

    def end_headers(self) -> None:
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()


@pytest.fixture
def slow_server(site) -> Iterator[tuple[str, Event]]:
    """Address of a server that holds the second half of a.tsr back until the event is set, and the event."""
    go = Event()
    data = (GOLDEN / "wide-bytes.tsr").read_bytes()

    class Slow(Handler):
        def do_GET(self) -> None:  # noqa: N802 (the name that http.server calls)
            if not self.path.startswith("/a.tsr"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:150])
            self.wfile.flush()
            go.wait(TIMEOUT_MS / 1000)
            self.wfile.write(data[150:])
            return None

    with served(site, Slow) as address:
        yield address, go
        go.set()


def test_an_image_sharpens_during_its_download(chromium, slow_server):
    address, go = slow_server
    with opened(chromium, f"{address}?src=a.tsr") as page:
        early = shown_tokens(page)
        assert facts(page)["File"] == "150 bytes so far"
        assert page.locator("#size").is_disabled()
        assert page.locator("#size").get_attribute("max") == str(WIDE.stat().st_size)
        assert page.locator("#notice").is_hidden()
        go.set()
        page.wait_for_selector(f"#view[data-tokens='{TOKENS}']")
        assert 0 < early < TOKENS
        assert facts(page)["File"] == f"{WIDE.stat().st_size} bytes"
        assert page.locator("#size").is_enabled()


EMBEDDED = """<!doctype html><link rel="icon" href="data:,"><script type="module" src="tessera.js"></script>
<img id="first" data-tsr="wide-bytes.tsr" alt="a cup"><img id="bad" data-tsr="nowhere.tsr">
<div style="height: 4000px"></div><img id="low" data-tsr="pixel.tsr" loading="lazy">"""


def test_elements_of_any_page(chromium, address, site):
    (site / "embedded.html").write_text(EMBEDDED)
    with opened(chromium, f"{address}embedded.html", allowed_error="404") as page:
        page.wait_for_function("first.dataset.tsrState === 'done'")
        page.wait_for_function("first.naturalWidth === 300 && first.naturalHeight === 80")
        assert page.evaluate("[first.width, first.height, first.alt]") == [300, 80, "a cup"]
        page.wait_for_function("bad.dataset.tsrState === 'failed'")
        assert "404" in page.evaluate("bad.dataset.tsrProblem")
        assert page.evaluate("low.dataset.tsrState") is None
        page.evaluate("low.scrollIntoView()")
        page.wait_for_function("low.dataset.tsrState === 'done'")
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p><img id=late data-tsr=odd-good.tsr></p>')")
        page.wait_for_function("late.dataset.tsrState === 'done'")
        size = page.evaluate("import('./tessera.js').then(({ decode }) => decode('pixel.tsr')).then(({ type }) => type)")
        assert size == "image/png"


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_window(chromium, address, width):
    with opened(
        chromium, f"{address}?src=wide-bytes.tsr&original=photo.webp", viewport={"width": width, "height": 700}
    ) as page:
        shown_tokens(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for name in ("#image", "#size", "#save", "#facts"):
            box = page.locator(name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
