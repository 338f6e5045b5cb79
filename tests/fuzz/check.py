"""What must hold for any bytes at all, and the means to notice where it does not."""

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
from click.testing import CliRunner
from PIL import Image

import codec.pillow  # registers .tsr
from cli.main import main
from codec.codec import Codec
from codec.errors import TesseraError

CORPUS = Path(__file__).parent / "corpus"
FINDINGS = Path(__file__).parent / "findings"
MAX_PIXELS = 1 << 17  # an image may cost what its pixels cost, so the limit is what keeps a small file cheap
SECONDS = 1.0  # of processor time, for one thing that is done to one input
COMMANDS = (("info", "--json", "--allow-partial"), ("tokens",), ("decode", "--allow-partial", "--format", "ppm"))
MEMORY = 100 << 20  # bytes above what the process had when it was warm


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    kind: str  # crash, hang, memory, exception or silent
    detail: str
    data: bytes


def corpus() -> list[bytes]:
    """The files that mutations start from, in order of their names."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.tsr"))]


class Checker:
    """Does to bytes what users do, and says what went wrong."""

    def __init__(self, commands: bool = True) -> None:
        self.commands = [self._commands] if commands else []
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above, and refuses twice as much
        self.codec = Codec(device="cpu", max_pixels=MAX_PIXELS)
        self.known = {*corpus()}
        forget_peak()
        for data in self.known:  # warm: weights, tables and buffers are there before anything is measured
            self.check(data, forged=False, decode=True)
        self.base = peak()

    def check(self, data: bytes, *, forged: bool, decode: bool) -> list[Finding]:
        """All that is wrong with what these bytes do. `forged` ones have a right checksum and may say anything; others must be
        refused, or told apart from whole files. `decode` takes longer and runs the network."""
        findings = []
        for step in (self._read, self._partial, self._pillow, *([self._decode, *self.commands] if decode else [])):
            start = time.process_time()
            try:
                if trouble := step(data, forged, decode):
                    findings.append(Finding("silent", trouble, data))
            except MemoryError as error:
                findings.append(Finding("memory", f"{step.__name__}: {error!r}", data))
            except Exception as error:  # whatever it is, it should not have left
                findings.append(Finding("exception", f"{step.__name__}: {error!r}", data))
            if (spent := time.process_time() - start) > SECONDS:
                findings.append(Finding("hang", f"{step.__name__}: {spent:.1f} s", data))
        if hasattr(self, "base") and (risen := peak() - self.base) > MEMORY:
            findings.append(Finding("memory", f"{risen >> 20} MiB above the base", data))
            self.base = peak()
        return findings

    def _read(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            read = self.codec.read(data)
            self.codec.finish(np.zeros((read.file.height, read.file.width, 3), np.uint8), read.file)
        except TesseraError:
            return None
        return None if forged or data in self.known else "changed bytes were read without an error"

    def _partial(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            read = self.codec.read(data, allow_partial=True)
        except TesseraError:
            return None
        if forged or data in self.known:
            return None
        lost = bool(read.file.missing) or read.prefix.length < read.file.length
        return None if read.partial and lost else "changed bytes count as a whole file"

    def _pillow(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if decode:
                    image.load()
        except (OSError, Image.DecompressionBombError):
            return None
        ours = image.format == codec.pillow.FORMAT
        return "changed bytes were decoded by Pillow" if ours and decode and not forged and data not in self.known else None

    def _decode(self, data: bytes, forged: bool, decode: bool) -> str | None:
        try:
            made = self.codec.decompress(data, allow_partial=True)
        except TesseraError:
            return None
        if made.image.size != (made.file.width, made.file.height):
            return f"an image of {made.image.size} for {made.file.width}x{made.file.height}"
        return None

    def _commands(self, data: bytes, forged: bool, decode: bool) -> str | None:
        gc.collect()  # a command is a process of its own: the model that the one before loaded is gone
        with tempfile.TemporaryDirectory() as folder:
            for name, *flags in COMMANDS:
                out = Path(folder) / name
                output = [] if name == "info" else ["-o", str(out)]
                said = CliRunner().invoke(main, [name, "-", *flags, *output, "--max-pixels", str(MAX_PIXELS)], input=data)
                if said.exception and not isinstance(said.exception, SystemExit):
                    raise said.exception
                if said.exit_code == 0:
                    whole = name != "decode" and not (name == "info" and json.loads(said.stdout)["whole"] is False)
                    if whole and not forged and data not in self.known:
                        return f"tessera {name} took changed bytes for a whole file"
                elif said.exit_code != 1 or out.exists() or not re.fullmatch(r"Error: standard input: .+\n", said.stderr):
                    return f"tessera {name} ended with {said.exit_code}, {said.stderr!r}"
        return None


def forget_peak() -> None:
    """Lets the peak count from now on (Linux, proc_pid_clear_refs(5)): what came before must not hide what an input does."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of memory that this process has had at most since `forget_peak`, or at all where the system cannot forget."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
