"""Opening HTML pages in a headless Chromium, from files or from a web server on this machine and without the internet, for
tests of what a reader sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 120_000  # a machine may be busy
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one a test is skipped, but it fails if CI is set, so that CI cannot skip it unnoticed."""
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("Chromium is not installed")
    assert CHROMIUM, "Chromium is not installed: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, with types that do not depend on the system's tables, and without a log."""

    extensions_map = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"} | {
        ".wasm": "application/wasm", "": "application/octet-stream",
    }  # fmt: skip

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] = Handler) -> Iterator[str]:
    """The address of a web server for a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@contextmanager
def opened(
    browser: Any, page_source: Path | str, allowed_error: str = "", others: tuple[str, ...] = (), **options: Any
) -> Iterator[Any]:
    """Yields a page from a file or a local server. Requests to any address except files, that server and `others` are blocked.
    Fails if there was such a request, or an error message that does not contain `allowed_error`."""
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    address = page_source.as_uri() if isinstance(page_source, Path) else page_source
    own = address[: address.index("/", len("http://"))]
    wrong: list[str] = []

    def route(route: Any) -> None:
        if route.request.url.startswith((own, "data:", "blob:", *others)):
            route.continue_()
        else:
            wrong.append(f"requested {route.request.url}")
            route.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert [message for message in wrong if not allowed_error or allowed_error not in message] == []
