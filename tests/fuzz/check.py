"""Checks that must hold for any bytes: only our errors, bounded time and memory, and no changed byte goes unnoticed."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import re
import resource
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import tessera.pillow  # registers .tsr
from bitstream.codebook_tokens import uniform_code
from bitstream.container import read_file
from bitstream.sequence import AnyCode
from codec.codec import Codec
from codec.errors import TesseraError
from codec.image.source import restore_image
from codec.reading import read_tokens
from tests.helpers.commands import run
from tests.helpers.digits import made_up_code

CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path(__file__).parent / "findings"
MAX_PIXELS = 1 << 17  # the cost of an image is that of its pixels, so this keeps small files cheap
SECONDS = 1.0  # processor time for one check of one input
COMMANDS = (("info", "--json", "--allow-partial"), ("tokens",), ("decode", "--allow-partial", "--format", "ppm"))
# Codes of other families, by the stream id of their files in the corpus. Their tokens alone are read: no model has these ids.
CODES: dict[bytes, AnyCode] = {
    b"\xf2\x01": uniform_code(16, 512),
    b"\xf2\x02": made_up_code((8, 8, 8, 5, 5, 5), block_tokens=12),
    b"\xf2\x03": made_up_code((2,) * 8, cell=16),
    b"\xf2\x04": made_up_code((16384,), cell=8),
}
MEMORY = 100 << 20  # bytes above the peak of the process after it has warmed up


@dataclass(frozen=True)
class Finding:
    """An input that fails a check."""

    kind: str  # crash, hang, memory, exception or silent
    detail: str
    data: bytes


def corpus() -> list[bytes]:
    """The files that mutations start from, in order of their names."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.tsr"))]


class Checker:
    """Does with bytes what users do, and returns what went wrong."""

    def __init__(self, commands: bool = True) -> None:
        self.commands = [self._run_commands] if commands else []
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above, and refuses twice as much
        self.codec = Codec(device="cpu", max_pixels=MAX_PIXELS)
        self.known = {*corpus()}
        forget_peak()
        for data in self.known:  # loads weights, tables and buffers before anything is measured
            self.check(data, forged=False, decode=True)
        self.base = peak()

    def check(self, data: bytes, *, forged: bool, decode: bool) -> list[Finding]:
        """All findings for these bytes. Bytes that are `forged` have a valid checksum and may mean anything; others must be
        refused, or recognised as incomplete. `decode` takes longer and runs the network."""
        findings = []
        for step in (
            self._read,
            self._read_partial,
            self._open_with_pillow,
            self._read_tokens,
            *([self._decode, *self.commands] if decode else []),
        ):
            start = time.process_time()
            try:
                if problem := step(data, forged, decode):
                    findings.append(Finding("silent", problem, data))
            except MemoryError as error:
                findings.append(Finding("memory", f"{step.__name__}: {error!r}", data))
            except Exception as error:
                findings.append(Finding("exception", f"{step.__name__}: {error!r}", data))
            if (spent := time.process_time() - start) > SECONDS:
                findings.append(Finding("hang", f"{step.__name__}: {spent:.1f} s", data))
        if hasattr(self, "base") and (risen := peak() - self.base) > MEMORY:
            findings.append(Finding("memory", f"{risen >> 20} MiB above the base", data))
            self.base = peak()
        return findings

    def _read(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            stored = self.codec.read(data)
            restore_image(np.zeros((stored.file.height, stored.file.width, 3), np.uint8), stored.file)
        except TesseraError:
            return None
        return None if forged or data in self.known else "changed bytes were read without an error"

    def _read_partial(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            stored = self.codec.read(data, allow_partial=True)
        except TesseraError:
            return None
        if forged or data in self.known:
            return None
        lost = bool(stored.file.missing) or stored.prefix.length < stored.file.length
        return None if stored.partial and lost else "changed bytes were read as a complete file"

    def _open_with_pillow(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if decode:
                    image.load()
        except (OSError, Image.DecompressionBombError):
            return None
        changed = image.format == tessera.pillow.FORMAT and not forged and data not in self.known
        return "changed bytes were decoded by Pillow" if changed and decode else None

    def _read_tokens(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            file = read_file(data)
            if file.stream_id not in CODES or file.width * file.height > MAX_PIXELS:
                return None
            prefix = read_tokens(file, CODES[file.stream_id], allow_partial=True)
        except TesseraError:
            return None
        if forged or data in self.known or file.missing or prefix.length < file.length:
            return None
        return "changed bytes were read as complete tokens"

    def _decode(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            decoded = self.codec.decode(data, allow_partial=True, reference=CORPUS)
        except TesseraError:
            return None
        if decoded.image.size != (decoded.file.width, decoded.file.height):
            return f"an image of {decoded.image.size} for {decoded.file.width}x{decoded.file.height}"
        return None

    def _run_commands(self, data: bytes, forged: bool, decode: bool) -> str | None:
        gc.collect()  # frees the model that the previous command loaded: commands are processes of their own
        with tempfile.TemporaryDirectory() as folder:
            for name, *options in COMMANDS:
                output = Path(folder) / name
                to_file = [] if name == "info" else ["-o", output]
                outcome = run(name, "-", *options, *to_file, "--max-pixels", MAX_PIXELS, data=data)
                if outcome.exception and not isinstance(outcome.exception, SystemExit):
                    raise outcome.exception
                if outcome.exit_code == 0:
                    complete = name == "tokens" or (name == "info" and json.loads(outcome.stdout)["whole"])
                    if complete and not forged and data not in self.known:
                        return f"tessera {name} took changed bytes for a complete file"
                elif outcome.exit_code != 1 or output.exists() or not re.fullmatch("Error: .+\n", outcome.stderr):
                    return f"tessera {name} ended with {outcome.exit_code}, {outcome.stderr!r}"
        return None


def forget_peak() -> None:
    """Resets the peak of memory (Linux, proc_pid_clear_refs(5)), so that earlier peaks do not hide later ones."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes of memory that this process has had since `forget_peak`, or ever if the system cannot reset it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
