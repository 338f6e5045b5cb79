"""An installation has one package, `tessera`, and imports no module of a user that is called cli or codec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PHOTO, ROOT

FOLDERS = ("cli", "codec", "bitstream", "benchmarks")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder that `pip install .` would make the contents of site-packages."""
    folder = tmp_path_factory.mktemp("build")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build_py", "--build-lib", folder / "lib"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "lib"


@pytest.fixture
def user(tmp_path) -> Path:
    """A folder of modules with the names of our folders, none of which can be imported."""
    for name in FOLDERS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('this is the {name} of the user')")
    return tmp_path


def python(folder: Path, path: list[Path], *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_all_modules_are_installed_in_one_package(installed):
    assert {path.name for path in installed.iterdir()} == {"tessera"}
    package = installed / "tessera"
    for name in ("py.typed", "pillow.py", "codec/weights/standard.safetensors", "codec/weights/standard.graphs.zip"):
        assert (package / name).exists()
    modules = {path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    missing = {module for module in modules if not (package / module).exists()}
    assert missing == {path.relative_to(ROOT) for path in (ROOT / "benchmarks" / "tools").glob("*.py")}


@pytest.mark.parametrize("checkout", [False, True], ids=["installed", "checkout"])
def test_the_command_ignores_modules_of_the_user(installed, user, checkout):
    root = ROOT if checkout else installed
    assert python(user, [user, root], "-m", "tessera", "encode", PHOTO, "-o", "photo.tsr", "-q", 0) == ""
    assert python(user, [user, root], "-m", "tessera", "models", "path").startswith(str(root))
    assert (user / "photo.tsr").stat().st_size < 1000


def test_the_library_ignores_modules_of_the_user(installed, user):
    code = f"import tessera; print(tessera.decode(tessera.encode({str(PHOTO)!r}, tokens=1)).size, tessera.Codec.__module__)"
    assert python(user, [user, installed], "-c", code) == "(600, 400) tessera.codec.codec\n"


def test_the_pillow_plugin_is_installed(installed, user):
    code = "import tessera.pillow; from PIL import Image; print(Image.registered_extensions()['.tsr'])"
    assert python(user, [user, installed], "-c", code) == "TSR\n"


@pytest.mark.parametrize("checkout", [False, True], ids=["installed", "checkout"])
def test_tessera_offers_its_names_lazily(installed, checkout):
    code = (
        "import sys, tessera; assert not {'numpy', 'PIL', 'codec', 'tessera.codec'} & sys.modules.keys(); "
        "assert all(getattr(tessera, name) for name in tessera.__all__) and set(dir(tessera)) >= {'encode', 'decode'}; "
        "assert not {'torch', 'onnxruntime'} & sys.modules.keys(); print(tessera.__version__)"
    )
    version = python(ROOT if checkout else installed, [], "-c", code)
    assert f'version = "{version.strip()}"' in (ROOT / "pyproject.toml").read_text()


def test_type_checkers_find_the_types():
    for package in ("tessera", "codec"):
        assert (ROOT / package / "py.typed").exists()
