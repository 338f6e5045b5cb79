"""Writing files whole or not at all: a name appears, or changes, only when all bytes are there. No torch, no terminal.

with replacing(path) as temporary:
    temporary.write_bytes(data)
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitstream.errors import FileError

try:
    import fcntl
except ImportError:  # Windows, where leftovers of killed runs stay
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\.tessera-[0-9a-f]{16}\.tmp")  # what a killed run may leave behind


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The name of an empty file to write to, which becomes `path` at the end, or is removed where an error ends the block.

    The folder is made where it is missing. Raises FileError where the file cannot be written."""
    with Writer().replacing(os.fspath(path)) as temporary:
        yield temporary


class Writer:
    """Writes files whole or not at all, from any thread, until it is ended.

    A file is made under another name in the same folder and then gets its own. The temporary is locked while its writer lives,
    so that `sweep` can tell those whose writer was killed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._temporaries: set[Path] = set()
        self._ended = False

    def write(self, path: str, data: bytes, replace: bool = False) -> None:
        """Writes a file; makes the folder that it lies in. A device or a named pipe is written to directly.

        With `replace`, a link is followed and the file that it leads to is replaced; without, any file or link of that name
        is an error, even one that appears at the last moment. Raises FileError."""
        if os.path.exists(path) and not Path(path).is_file():
            with _failing(path):
                Path(path).write_bytes(data)
            return
        with self.replacing(path, replace) as temporary:
            temporary.write_bytes(data)

    @contextmanager
    def replacing(self, path: str, replace: bool = True) -> Iterator[Path]:
        """As the function of this name; `replace` is as in `write`."""
        with _failing(path):
            target = Path(os.path.realpath(path) if replace else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary, handle = self._make(target.parent)
            try:
                if replace and target.exists():
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                yield temporary
                with self._lock:
                    self._refuse_after_end()
                    (os.replace if replace else _rename_new)(temporary, target)
                    self._temporaries.discard(temporary)
            except FileExistsError as error:
                msg = f"the output {path} has appeared in the meantime"
                raise FileError(msg, ("force",)) from error
            finally:
                os.close(handle)
                self._remove(temporary)

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


@contextmanager
def _failing(path: str) -> Iterator[None]:
    """Turns errors of the system into FileError."""
    try:
        yield
    except OSError as error:
        msg = f"cannot write {path} ({error.strerror or error}): check space and permissions"
        raise FileError(msg) from error
