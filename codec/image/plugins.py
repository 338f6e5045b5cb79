"""Formats that Pillow reads and writes with a plugin, a package of its own. No NumPy, no torch."""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

NOT_PHOTOGRAPHS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "TSR", "WMF")  # films, drawings, data and encoded files


@dataclass(frozen=True)
class Plugin:
    """A package that adds a format to Pillow."""

    format: str
    package: str
    module: str
    signature: re.Pattern[bytes]  # signature of the format's files
    endings: tuple[str, ...]


PLUGINS = (
    Plugin("AVIF", "pillow-avif-plugin", "pillow_avif", re.compile(rb"....ftyp(avif|avis)", re.DOTALL), (".avif",)),
    Plugin(
        "HEIC",
        "pillow-heif",
        "pillow_heif",
        re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL),
        (".heic", ".heif"),
    ),
    Plugin("JPEG XL", "pillow-jxl-plugin", "pillow_jxl", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), (".jxl",)),
)


def plugin_for(head: bytes = b"", ending: str = "") -> Plugin | None:
    """The plugin for files that start with `head`, or for files with this ending."""
    matches = (plugin for plugin in PLUGINS if ending in plugin.endings or (head and plugin.signature.match(head)))
    return next(matches, None)


def load_plugin(plugin: Plugin | None) -> None:
    """Registers a plugin with Pillow, if it is installed."""
    if plugin:
        with suppress(ImportError):
            register = getattr(importlib.import_module(plugin.module), "register_heif_opener", None)
            if register:
                register()


def readable_endings() -> frozenset[str]:
    """Endings of the image files that Pillow reads, some of them with a plugin."""
    Image.init()
    known = Image.registered_extensions().items()
    return _plugin_endings().union(end for end, name in known if name in Image.OPEN and name not in NOT_PHOTOGRAPHS)


def writable_endings() -> frozenset[str]:
    """Endings of the image files that Pillow writes, some of them with a plugin."""
    Image.init()
    known = (ending for ending, name in Image.registered_extensions().items() if name in Image.SAVE)
    return _plugin_endings().union(known) - {".tsr"}


def _plugin_endings() -> frozenset[str]:
    return frozenset(ending for plugin in PLUGINS for ending in plugin.endings)
