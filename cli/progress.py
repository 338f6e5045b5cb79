"""The progress bar of all commands that take time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from cli.outputs import printable
from cli.report import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A progress bar on standard error, below printed lines: steps, a note such as the speed, and the time left.

    It is shown on a terminal only, unless it is `hidden`. NO_COLOR is honoured."""

    def __init__(self, total: int, title: str = "", *, hidden: bool = False) -> None:
        """`total` is the number of steps, or 0 if it is not known."""
        self._progress: Progress | None = None
        if not hidden and sys.stderr is not None and sys.stderr.isatty():
            self._progress, self._task = _shown(total, title)

    def __enter__(self) -> Bar:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def say(self, line: str) -> None:
        """Prints a line on standard error, above the bar."""
        if self._progress:
            from rich.text import Text

            self._progress.console.print(Text(printable(line)), soft_wrap=True)
        else:
            say(line)

    def advance(self, steps: float = 1, note: Callable[[], str] | None = None) -> None:
        """Moves the bar by a number of steps, which may be a fraction. `note` returns the new note."""
        if self._progress:
            if note is not None:
                self._progress.update(self._task, note=note())
            self._progress.advance(self._task, steps)

    def reach(self, done: int, total: int) -> None:
        """Moves the bar to `done` of `total` steps."""
        if self._progress:
            self._progress.update(self._task, completed=done, total=total)


def _shown(total: int, title: str) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    title_column = (TextColumn(title),) if title else ()
    note_column = TextColumn("{task.fields[note]}")
    columns = (*title_column, BarColumn(), MofNCompleteColumn(), note_column, TimeRemainingColumn(compact=True))
    progress = Progress(*columns, console=Console(file=sys.stderr), transient=True)
    return progress, progress.add_task("", total=total or None, note="")
