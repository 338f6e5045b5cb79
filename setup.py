"""Puts the repository's folders inside one package, `tessera`, when a distribution is built.

Under their own names, folders such as `cli` would clash with a user's modules. So the build moves them into `tessera` and
rewrites their imports: `from cli.main import` becomes `from tessera.cli.main import`. An editable installation keeps all names.

Imports could be written that way here too, with `package-dir` in pyproject.toml. That was tried: `pip install .`, editable
installations and pytest work. mypy does not read `package-dir`: it reports every such import as not found (537 of them), or,
with `ignore_missing_imports`, checks none of what they import. And `python -m tessera` no longer runs in a checkout that is not
installed.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("bitstream", "codec", "cli", "benchmarks")
NAMES = "|".join(FOLDERS)
REWRITES = (
    (rf"^(\s*)from (?=(?:{NAMES})\b)", r"\1from tessera."),
    (rf"^(\s*)import ({NAMES})$", r"\1from tessera import \2"),
)


class BuildInsideTessera(build_py):
    """Builds the folders as subpackages of `tessera`."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.package_dir = {f"tessera.{folder}": folder for folder in FOLDERS}
            self.packages = [_installed_name(name) for name in self.packages]
            self.package_data = {_installed_name(name): patterns for name, patterns in self.package_data.items()}

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        path, copied = super().build_module(module, module_file, package)
        text = Path(path).read_text()
        for pattern, replacement in REWRITES:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        Path(path).write_text(text)
        return path, copied


def _installed_name(package: str) -> str:
    return f"tessera.{package}" if package.split(".")[0] in FOLDERS else package


setup(cmdclass={"build_py": BuildInsideTessera})
