"""Running the command, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from click.testing import CliRunner, Result

from cli.main import main
from tests.helpers import ROOT

TESSERA = [sys.executable, "-m", "cli"]
TIMEOUT = 120  # seconds until a test that hangs fails
SURROUNDINGS = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments: object, data: bytes | None = None) -> Result:
    """The command's outcome, in this process; `data` is its standard input."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    options = {"env": SURROUNDINGS, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*TESSERA, *map(str, arguments)], **options)  # type: ignore[call-overload,no-any-return]


def finish(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The outcome of the command in a process of its own."""
    options = {"env": SURROUNDINGS, "capture_output": True, "text": True, "timeout": TIMEOUT, "check": False} | options
    return subprocess.run([*TESSERA, *map(str, arguments)], **options)  # type: ignore[call-overload,no-any-return]


def records(outcome: Result | subprocess.CompletedProcess[str]) -> list[dict]:
    """The JSON objects that a command wrote with `--json`."""
    return [json.loads(line) for line in outcome.stdout.splitlines()]


def encoded(image: Path, *options: object) -> dict:
    """The record of an image that is encoded to a .tsr file in the same folder."""
    outcome = run("encode", image, "-f", "--json", *options)
    assert outcome.exit_code == 0, outcome.stderr
    return records(outcome)[0]


def files_below(folder: Path) -> set[str]:
    """The names of all files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def wait_for_outputs(folder: Path, count: int, running: subprocess.Popen[str]) -> None:
    """Waits until a folder has so many .tsr files, while the command still runs."""
    end = time.monotonic() + TIMEOUT
    while len(list(folder.glob("*.tsr"))) < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
