"""What is installed: one package of our own, whose command and library do not care for a user's cli.py or codec.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PHOTO, ROOT

GENERAL = ("cli", "codec", "bitstream", "benchmarks")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What `pip install .` puts into site-packages."""
    place = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", place, "build_py", "--build-lib", place / "lib"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return place / "lib"


@pytest.fixture
def user(tmp_path) -> Path:
    """A folder with a user's modules, none of which may be imported."""
    for name in GENERAL:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('this is the {name} of the user')")
    return tmp_path


def python(folder: Path, path: list[Path], *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_package_is_installed_and_codec_under_its_short_name(built):
    assert {path.name for path in built.iterdir()} == {"tessera", "codec.py"}
    assert (built / "tessera" / "codec" / "weights" / "standard.safetensors").exists()
    assert (built / "tessera" / "codec" / "weights" / "standard.graphs.zip").exists()
    assert (built / "tessera" / "py.typed").exists()
    modules = {path.relative_to(ROOT) for folder in GENERAL for path in (ROOT / folder).rglob("*.py")}
    assert {module for module in modules if not (built / "tessera" / module).exists()} == {
        path.relative_to(ROOT) for path in (ROOT / "benchmarks" / "tools").glob("*.py")
    }


@pytest.mark.parametrize("checkout", [False, True], ids=["installed", "checkout"])
def test_the_command_ignores_modules_of_the_user(built, user, checkout):
    said = python(user, [user, ROOT if checkout else built], "-m", "tessera", "encode", PHOTO, "-o", "photo.tsr", "-q", 0)
    assert said == ""
    assert python(user, [user, ROOT if checkout else built], "-m", "tessera", "models", "path").startswith(
        str(ROOT if checkout else built)
    )
    assert (user / "photo.tsr").stat().st_size < 1000


def test_the_library_ignores_modules_of_the_user(built, user):
    code = "import tessera; print(tessera.decode(tessera.encode(r'{}', tokens=1)).size, tessera.Codec.__module__)"
    assert python(user, [user, built], "-c", code.format(PHOTO)) == "(600, 400) tessera.codec.api\n"


def test_import_codec_is_the_same_library(built, tmp_path):
    code = (
        "import codec, codec.pillow, sys, tessera.codec.api, tessera.codec.pillow; from codec.codec import Codec; "
        "assert codec is tessera.codec and codec.pillow is tessera.codec.pillow; "
        "assert Codec is codec.Codec is tessera.Codec; "
        "assert codec.pillow.__spec__.name == 'tessera.codec.pillow'; "
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('cli', 'bitstream', 'benchmarks')))"
    )
    assert python(tmp_path, [built], "-c", code) == "\n"
    nothing = "import codec\ntry: import codec.nothing\nexcept ModuleNotFoundError as error: print(error)"
    assert "nothing" in python(tmp_path, [built], "-c", nothing)
