"""Files are written whole or not at all, and what killed programs leave behind is removed."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from codec.errors import FileError
from codec.system.files import TEMPORARY, Writer, remove_stale_temporaries
from tests.helpers.commands import files_below

LEFTOVER = ".tessera-0123456789abcdef.tmp"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_of_many_writers_that_do_not_replace_one_succeeds(tmp_path, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    written, start = [], threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            Writer().write(str(tmp_path / "a"), b"%d" % number)
        except FileError:
            return
        written.append(b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [(tmp_path / "a").read_bytes()]
    assert files_below(tmp_path) == {"a"}


def test_temporary_files_of_writers_that_live_are_kept(tmp_path):
    writer = Writer()
    temporary, handle = writer._create_temporary(tmp_path)
    assert TEMPORARY.fullmatch(temporary.name)
    link = tmp_path / ".tessera-fedcba9876543210.tmp"
    (tmp_path / LEFTOVER).write_bytes(b"half a file")
    (tmp_path / "elsewhere").write_bytes(b"kept")
    link.symlink_to(tmp_path / "elsewhere")
    remove_stale_temporaries([str(tmp_path), str(tmp_path / "none")])
    assert files_below(tmp_path) == {temporary.name, link.name, "elsewhere"}
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"
    os.close(handle)  # as when its program is killed
    remove_stale_temporaries([str(tmp_path)])
    assert not temporary.exists()


def test_writers_and_sweeps_at_once_lose_nothing(tmp_path):
    stop = threading.Event()

    def keep_sweeping() -> None:
        while not stop.is_set():
            remove_stale_temporaries([str(tmp_path)])

    def keep_writing(name: int) -> None:
        writer = Writer()
        for number in range(60):
            writer.write(str(tmp_path / f"{name}-{number}"), f"{name} {number}".encode())

    sweepers = [threading.Thread(target=keep_sweeping) for _ in range(2)]
    writers = [threading.Thread(target=keep_writing, args=(name,)) for name in range(3)]
    for thread in (*sweepers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in sweepers:
        thread.join()
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {f"{name}-{number}": f"{name} {number}" for name in range(3) for number in range(60)}


def test_an_aborted_writer_writes_nothing(tmp_path):
    writer = Writer()
    temporary, handle = writer._create_temporary(tmp_path)
    writer.abort()
    os.close(handle)
    with pytest.raises(FileError):
        writer.write(str(tmp_path / "a"), b"late")
    assert not temporary.exists()
    assert list(tmp_path.iterdir()) == []
