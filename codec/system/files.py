"""Atomic file writes, and the per-user data and cache directories. No torch, no terminal.

with atomic_write(path) as temporary:
    temporary.write_bytes(data)
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codec.errors import FileError

try:
    import fcntl
except ImportError:  # Windows, which keeps temporaries of killed runs
    fcntl = None  # type: ignore[assignment]

ABORTED = "the run has ended"
TEMPORARY = re.compile(r"\.tessera-[0-9a-f]{16}\.tmp")  # a killed run may leave these behind


def data_folder() -> Path:
    """The folder for models and weights that the user installs. Raises FileError if the user has no home folder."""
    from platformdirs import user_data_path

    return _user_folder(user_data_path)


def cache_folder() -> Path:
    """The folder for results that can be computed again. Raises FileError if the user has no home folder."""
    from platformdirs import user_cache_path

    return _user_folder(user_cache_path)


def _user_folder(find: Callable[..., Path]) -> Path:
    with suppress(RuntimeError):  # raised by newer platformdirs; older ones return a path that begins with "~"
        if (folder := find("tessera", appauthor=False)).is_absolute():
            return folder
    msg = "the user has no home folder: set HOME"
    raise FileError(msg)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of an empty temporary file, which becomes `path` at the end of the block, or is removed after an error.

    Creates missing folders. Raises FileError if the file cannot be written."""
    with Writer().atomic_write(os.fspath(path)) as temporary:
        yield temporary


class ExistsError(FileError):
    """The output exists, and replacing it was not requested."""


class Writer:
    """Writes files atomically, from any thread, until it is aborted.

    Each file is written under a temporary name in its folder and then renamed. The temporary is locked while its writer
    lives, so that `remove_stale_temporaries` recognises the files of killed runs."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may abort while its own thread holds it
        self._temporaries: set[Path] = set()
        self._aborted = False

    def write(self, path: str, data: bytes, replace: bool = False, original: os.stat_result | None = None) -> None:
        """Writes a file and creates missing folders. A device or a named pipe is written to directly.

        With `replace`, follows a link and replaces its target. Without it, raises ExistsError if a file or link of that name
        exists, even if it appears at the last moment. The file gets the times and the permissions of `original`, without
        its setuid, setgid and sticky bits. Raises FileError."""
        if os.path.exists(path) and not Path(path).is_file():
            try:
                Path(path).write_bytes(data)
            except OSError as error:
                raise _write_error(path, error) from error
        else:
            with self.atomic_write(path, replace) as temporary:
                if original:
                    os.chmod(temporary, 0o600)  # an original that others may not read stays secret
                temporary.write_bytes(data)
                if original:
                    os.utime(temporary, ns=(original.st_atime_ns, original.st_mtime_ns))
                    os.chmod(temporary, original.st_mode & 0o777)

    @contextmanager
    def atomic_write(self, path: str, replace: bool = True) -> Iterator[Path]:
        """See the function `atomic_write`, and `write` for `replace`."""
        try:
            target = Path(os.path.realpath(path) if replace else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary, handle = self._create_temporary(target.parent)
            try:
                if replace and target.exists():
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                yield temporary
                with self._lock:
                    if self._aborted:
                        raise FileError(ABORTED)
                    (os.replace if replace else _rename_to_new)(temporary, target)
                    self._temporaries.discard(temporary)
            except FileExistsError as error:
                msg = f"the output {path} has appeared in the meantime"
                raise ExistsError(msg, ("force",)) from error
            finally:
                os.close(handle)
                self._remove(temporary)
        except OSError as error:
            raise _write_error(path, error) from error

    def _create_temporary(self, folder: Path) -> tuple[Path, int]:
        """The path of a new temporary file, and its open and locked handle."""
        while True:
            path = folder / f".tessera-{os.urandom(8).hex()}.tmp"
            with self._lock:
                if self._aborted:
                    raise FileError(ABORTED)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                self._temporaries.add(path)
            if _lock_file(handle) is not False and os.fstat(handle).st_nlink:
                return path, handle
            os.close(handle)  # another run took it for a stale one before it was locked
            self._remove(path)

    def _remove(self, temporary: Path) -> None:
        with self._lock:
            if temporary in self._temporaries:
                self._temporaries.discard(temporary)
                temporary.unlink(missing_ok=True)

    def abort(self) -> None:
        """Removes all temporaries; no further file appears. May be called from a signal handler."""
        with self._lock:
            self._aborted = True
            for temporary in list(self._temporaries):
                self._remove(temporary)


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Renames a file. Raises FileExistsError if the new name exists."""
    if os.name == "nt":  # Windows never replaces a file when it renames one
        temporary.rename(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # this file system has no hard links: reserve the name with an empty file
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(temporary, target)
        return
    os.unlink(temporary)


def remove_stale_temporaries(folders: Iterable[str]) -> None:
    """Removes the temporaries of killed runs from folders. Temporaries of active runs are locked, and stay."""
    if fcntl is None:
        return
    for folder in folders:
        try:
            paths = [entry.path for entry in os.scandir(folder) if TEMPORARY.fullmatch(entry.name)]
        except OSError:  # writing to the folder will report the error
            continue
        for path in paths:
            _remove_unlocked(path)


def _remove_unlocked(path: str) -> None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # it is gone, or belongs to another user
        return
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) and _lock_file(handle) is True:
            Path(path).unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(handle)


def _lock_file(handle: int) -> bool | None:
    """Locks an open file. Returns False if another process holds the lock, None if the system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


def _write_error(path: str, error: OSError) -> FileError:
    return FileError(f"cannot write {path} ({error.strerror or error}): check space and permissions")
