"""Writing outputs: '-' for pipes, nothing half-written, nothing replaced unasked."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bitstream.errors import FileError

try:
    import fcntl
except ImportError:  # Windows, where leftovers of killed runs stay
    fcntl = None  # type: ignore[assignment]

STANDARD = "-"
MISSING = "no such file: check the name"
CLOSED = "standard output is closed: let it lead to a file or a pipe"
TEMPORARY = re.compile(r"\.tessera-[0-9a-f]{16}\.tmp")  # what a killed run may leave behind
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def check_output(path: str, force: bool, source: str, *, makes_folders: bool = False) -> None:
    """Raises FileError, before any work, where an output could not or should not be written."""
    if path == STANDARD:
        if sys.stdout is None or sys.stdout.isatty():
            state = "closed" if sys.stdout is None else "a terminal, which binary data would garble"
            msg = f"standard output is {state}: use -o FILE, or pipe it on"
            raise FileError(msg)
        return
    try:
        problem = _problem(path, force, source, makes_folders)
    except OSError as error:
        problem = f"the output {path} cannot be written ({error.strerror}): name another"
    if problem:
        raise FileError(problem)


def _problem(path: str, force: bool, source: str, makes_folders: bool) -> str | None:
    target = Path(path)
    if is_folder(path):
        return f"the output {path} is a folder: name a file"
    if not makes_folders and not target.parent.is_dir():
        return f"the folder of the output {path} does not exist: make it first"
    if target.exists() and source != STANDARD and os.path.exists(source) and os.path.samefile(target, source):
        return f"the output {path} is the input: name another file"
    if force:
        return None
    if target.is_file():  # a device or a named pipe loses nothing
        return f"the output {path} exists: use -f to replace it"
    if target.is_symlink() and not target.exists():
        return f"the output {path} is a link to a file that does not exist: use -f to write that file"
    return None


def is_folder(path: str) -> bool:
    """Whether a path names a folder, by what it is or by a slash at its end."""
    return path != STANDARD and (os.path.isdir(path) or os.path.basename(path) == "")


class Writer:
    """Writes files whole or not at all, from any thread.

    A file is made under another name in the same folder and then gets its own. The temporary is locked while its writer lives,
    so that `sweep` can tell those whose writer was killed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._temporaries: set[Path] = set()
        self._ended = False

    def write(self, path: str, data: bytes, replace: bool = False) -> None:
        """Writes a file, or standard output for '-'; makes the folder that it lies in.

        With `replace`, a link is followed and the file that it leads to is replaced; without, any file or link of that name
        is an error, even one that appears at the last moment. Raises FileError."""
        if path == STANDARD:
            write_standard(data)
            return
        try:
            before = Path(path).stat() if os.path.exists(path) else None
            if before and not stat.S_ISREG(before.st_mode):  # a device or a named pipe
                Path(path).write_bytes(data)
                return
            target = Path(os.path.realpath(path) if replace else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._finish(target, data, before, replace)
            except FileExistsError as error:
                msg = f"the output {path} has appeared in the meantime: use -f to replace it"
                raise FileError(msg) from error
        except OSError as error:
            msg = f"cannot write {path} ({error.strerror}): check space and permissions"
            raise FileError(msg) from error

    def _finish(self, target: Path, data: bytes, before: os.stat_result | None, replace: bool) -> None:
        temporary, handle = self._make(target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                if replace and before:
                    os.chmod(temporary, stat.S_IMODE(before.st_mode))
                stream.write(data)
                stream.flush()
                with self._lock:
                    self._refuse_after_end()
                    (os.replace if replace else _rename_new)(temporary, target)
                    self._temporaries.discard(temporary)
        except BaseException:
            self._remove(temporary)
            raise

    def _make(self, folder: Path) -> tuple[Path, int]:
        """A new temporary, open and locked."""
        while True:
            path = folder / f".tessera-{os.urandom(8).hex()}.tmp"
            with self._lock:
                self._refuse_after_end()
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                self._temporaries.add(path)
            if _lock(handle) is not False and os.fstat(handle).st_nlink:
                return path, handle
            os.close(handle)  # another run took it for a leftover before it was locked
            self._remove(path)

    def _refuse_after_end(self) -> None:
        if self._ended:
            msg = "the run has ended"
            raise FileError(msg)

    def _remove(self, temporary: Path) -> None:
        with self._lock:
            if temporary in self._temporaries:
                self._temporaries.discard(temporary)
                temporary.unlink(missing_ok=True)

    def end(self) -> None:
        """Ends all writing at once: temporaries are removed, and no further output appears."""
        with self._lock:
            self._ended = True
            for temporary in list(self._temporaries):
                self._remove(temporary)


def _rename_new(temporary: Path, target: Path) -> None:
    """Gives a file a name that nothing else has. Raises FileExistsError where something has it."""
    if os.name == "nt":  # where a rename never replaces
        temporary.rename(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links in this file system: take the name first, with an empty file
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(temporary, target)
        return
    os.unlink(temporary)


def write_output(path: str, data: bytes, replace: bool = True) -> None:
    """Writes one file whole or not at all, or standard output for '-', as `Writer.write` does. Raises FileError."""
    Writer().write(path, data, replace)


def write_standard(data: bytes) -> None:
    """Writes to standard output. Raises FileError, also where it is closed, its reader has gone or the disk is full."""
    if sys.stdout is None:
        raise FileError(CLOSED)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            msg = "standard output was closed before all was written: let the reader read to the end"
        else:
            msg = f"cannot write to standard output ({error.strerror}): check space and permissions"
        raise FileError(msg) from error


def silence(stream: IO[Any] | None) -> None:
    """Lets nothing more be written to a standard stream that cannot be written to: Python would fail again when it exits."""
    with suppress(AttributeError, OSError, ValueError):  # closed, or not a file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[union-attr]


def sweep(folders: Iterable[str]) -> None:
    """Removes the temporaries of killed runs from folders. One that a living run is writing is locked, and left alone."""
    if fcntl is None:
        return
    for folder in folders:
        try:
            leftovers = [entry.path for entry in os.scandir(folder) if TEMPORARY.fullmatch(entry.name)]
        except OSError:  # whether the folder can be written to is found out later
            continue
        for path in leftovers:
            _remove_unlocked(path)


def _remove_unlocked(path: str) -> None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # gone, or not ours to touch
        return
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) and _lock(handle) is True:
            Path(path).unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Locks an open file; False where someone else has, None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


def human(size: float) -> str:
    """Bytes as people say them: 734 B, 3.1 kB, 1.92 MB."""
    if size < 1000:
        return f"{size:.0f} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.2f} MB"


def printable(text: str) -> str:
    """Text as it can be shown on one line of any terminal. What a file's name may hold besides is escaped: bytes that are no
    text, control characters, marks that turn the direction of writing."""
    return UNPRINTABLE.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python hands it on
        return f"\\x{code - 0xDC00:02x}"
    return repr(chr(code))[1:-1]
