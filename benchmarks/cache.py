"""The cache of samples: an interrupted benchmark continues where it stopped, and a repeated one measures only new items."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from benchmarks.records import Sample
from codec.errors import TesseraError


class Cache:
    """Samples by key in one SQLite file in `folder`; None: in memory. Several threads and processes may use it.

    Raises TesseraError if the folder cannot be used."""

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
            path = str(folder / "samples.sqlite") if folder else ":memory:"
            self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)  # seconds to wait for other processes
            with self._database:
                self._database.execute("create table if not exists samples (key text primary key, value text not null)")
        except (OSError, sqlite3.Error) as error:
            msg = f"the cache {folder} cannot be used ({error}): choose another with --cache, or use --no-cache"
            raise TesseraError(msg) from error

    def get(self, key: str) -> tuple[bool, Sample | None]:
        """Returns `(found, sample)`. The sample is None if no file fits the rate."""
        with self._lock:
            row = self._database.execute("select value from samples where key = ?", (key,)).fetchone()
        if row is None:
            return False, None
        plain = json.loads(row[0])
        return True, plain and Sample(**plain | {"data": base64.b85decode(plain["data"])})

    def put(self, key: str, sample: Sample | None) -> None:
        plain = sample and vars(sample) | {"data": base64.b85encode(sample.data).decode(), "metrics": dict(sample.metrics)}
        with self._lock, self._database:
            self._database.execute("insert or replace into samples values (?, ?)", (key, json.dumps(plain)))

    def all(self) -> dict[str, Sample | None]:
        """All known keys and their samples."""
        with self._lock:
            keys = [key for (key,) in self._database.execute("select key from samples")]
        return {key: self.get(key)[1] for key in keys}

    def close(self) -> None:
        self._database.close()


def key_of(*parts: Any) -> str:
    """A cache key. `parts` are plain data: everything that a sample depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
