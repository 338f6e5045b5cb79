"""Help, the manual page, completion and the MIME type."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from bitstream.container import File, write_file
from cli.main import main
from cli.manual import manual
from tests.helpers import ROOT
from tests.helpers.commands import run

MAN = ROOT / "docs" / "tessera.1"
MIME = ROOT / "docs" / "tessera-mime.xml"
SPACE = "{http://www.freedesktop.org/standards/shared-mime-info}"


def test_help_comes_at_once_and_imports_nothing_large():
    large = {
        "torch", "numpy", "rich", "PIL", "safetensors", "codec.codec", "codec.parallel.ray_cluster", "ray", "benchmarks.bench",
    }  # fmt: skip
    code = (
        "import sys; from cli.main import main; main(['--help'], standalone_mode=False); "
        f"sys.exit(','.join({large} & set(sys.modules)) or 0)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (outcome.returncode, outcome.stderr) == (0, "")
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


def test_the_man_page_is_current():
    assert MAN.read_text() == manual(), "run: python -m cli.manual docs/tessera.1"


def test_the_man_page_has_every_command_and_option():
    page = MAN.read_text().replace("\\-", "-")
    for command in main.commands.values():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in page, option
    assert "tessera models check" in page


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_the_man_page_is_sound():
    outcome = subprocess.run(["groff", "-man", "-ww", "-z", MAN], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_sound(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(run("completion", shell).stdout)
    assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


def test_the_mime_type_is_that_of_real_files():
    (kind,) = ElementTree.parse(MIME).getroot().findall(f"{SPACE}mime-type")
    assert kind.get("type") == "image/x-tessera"
    assert [glob.get("pattern") for glob in kind.findall(f"{SPACE}glob")] == ["*.tsr"]
    (match,) = kind.findall(f"{SPACE}magic/{SPACE}match")
    value = match.get("value").encode().decode("unicode_escape").encode("latin-1")
    data = write_file(File(20, 10, b"\x00\x01", 3, b"abc"))
    assert len(value) == 2
    assert data[int(match.get("offset")) :].startswith(value)


@pytest.mark.skipif(not shutil.which("update-mime-database"), reason="shared-mime-info is not installed")
def test_the_mime_database_takes_it(tmp_path):
    (tmp_path / "packages").mkdir()
    shutil.copy(MIME, tmp_path / "packages")
    environment = {**os.environ, "XDG_DATA_DIRS": str(tmp_path.parent)}
    subprocess.run(["update-mime-database", tmp_path], check=True, capture_output=True, env=environment)
    assert "50:image/x-tessera:*.tsr" in (tmp_path / "globs2").read_text()
    assert b"\xd4T" in (tmp_path / "magic").read_bytes()
