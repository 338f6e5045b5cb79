"""Every command prints what its transcript shows and leaves the files that it names. The only tests of exact wording."""

from __future__ import annotations

import difflib
import re

import click
import pytest

from cli.main import main
from tests.transcripts.make import FOLDER, transcript

PATHS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_commands_print_what_the_transcript_shows(path):
    recorded = path.read_text()
    actual = transcript(recorded)
    if actual != recorded:
        diff = "\n".join(difflib.unified_diff(recorded.splitlines(), actual.splitlines(), "recorded", "now", lineterm=""))
        pytest.fail(f"{diff}\n\nIf this is intended: python -m tests.transcripts.make {path.stem}", pytrace=False)


def names(group: click.Group, path: str) -> list[str]:
    """All commands below a group, with the words before them."""
    below = [(f"{path} {name}", command) for name, command in group.commands.items()]
    return [name for name, _ in below] + [
        name for path, command in below if isinstance(command, click.Group) for name in names(command, path)
    ]


def test_every_command_shows_its_help_with_examples():
    text = (FOLDER / "help.txt").read_text()
    for name in ("tessera", *names(main, "tessera")):
        shown = re.search(rf"^\$ {name} --help\n((?:>.*\n)+)", text, re.MULTILINE)
        assert shown, name
        assert shown[1].count("\n>   tessera ") >= 2, name


def test_errors_are_lines_and_not_tracebacks():
    text = "".join(path.read_text() for path in PATHS)
    assert text.count("\n! Error: ") > 100
    assert "Traceback" not in text
    assert "a bug in tessera" not in text
