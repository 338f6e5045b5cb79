"""Results kept on disk: an interrupted benchmark continues where it stopped, and a repeated one only adds what is new."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from benchmarks.measurements import Sample
from codec.errors import TesseraError


class Cache:
    """Samples by a key of everything that they depend on, in one SQLite file below `folder`; without one, in memory.

    Safe to use from several threads and processes. Raises TesseraError where the folder cannot be used."""

    def __init__(self, folder: Path | None) -> None:
        self.lock = threading.Lock()
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            place = str(folder / "samples.sqlite") if folder else ":memory:"
            self.base = sqlite3.connect(place, timeout=60, check_same_thread=False)
            with self.base:
                self.base.execute("create table if not exists samples (key text primary key, value text not null)")
        except (OSError, sqlite3.Error) as error:
            msg = f"the cache {folder} cannot be used ({error}): name another with --cache, or go without by --no-cache"
            raise TesseraError(msg) from error

    def get(self, key: str) -> tuple[bool, Sample | None]:
        """Whether the key is known, and its sample; None is an image that has no file there."""
        with self.lock:
            row = self.base.execute("select value from samples where key = ?", (key,)).fetchone()
        if row is None:
            return False, None
        plain = json.loads(row[0])
        return True, plain and Sample(**plain | {"data": base64.b85decode(plain["data"])})

    def put(self, key: str, sample: Sample | None) -> None:
        plain = sample and vars(sample) | {"data": base64.b85encode(sample.data).decode(), "metrics": dict(sample.metrics)}
        with self.lock, self.base:
            self.base.execute("insert or replace into samples values (?, ?)", (key, json.dumps(plain)))

    def all(self) -> dict[str, Sample | None]:
        """What `get` would find."""
        with self.lock:
            keys = [key for (key,) in self.base.execute("select key from samples")]
        return {key: self.get(key)[1] for key in keys}

    def close(self) -> None:
        self.base.close()


def key_of(*parts: Any) -> str:
    """A key of plain data."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
