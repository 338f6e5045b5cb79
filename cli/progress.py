"""A bar on the terminal while a batch runs: pictures, speed, bytes, and the time that is left."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar:
    """A bar on standard error, below the lines that are said meanwhile. Colours follow NO_COLOR."""

    def __init__(self, total: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn(compact=True))
        self._console = Console(file=sys.stderr)
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("", total=total, speed="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def advance(self, pictures: float, speed: str | None = None) -> None:
        """So many pictures more, or such a part of one, are done."""
        if speed is not None:
            self._progress.update(self._task, speed=speed)
        self._progress.advance(self._task, pictures)
