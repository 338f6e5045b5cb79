"""What pyproject.toml cannot say: a built distribution has the repository's folders inside one package, `tessera`.

Names such as `cli` are fine in a checkout, but once installed they would clash with a user's own cli.py. So the files that are
installed say `from tessera.cli.main import` where the repository says `from cli.main import`. `import codec` works there too
(tessera/alias.py), unless the user has a module of that name. An editable installation builds nothing, and keeps all names.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("bitstream", "codec", "cli", "benchmarks")
OWN = "|".join(FOLDERS)
REWRITTEN = ((rf"^(\s*)from (?=(?:{OWN})\b)", r"\1from tessera."), (rf"^(\s*)import ({OWN})$", r"\1from tessera import \2"))


def inside(package: str) -> str:
    """What a package of the repository is called once installed."""
    return f"tessera.{package}" if package.split(".")[0] in FOLDERS else package


class Inside(build_py):
    """Builds the folders as subpackages of `tessera`."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            self.package_dir = {f"tessera.{folder}": folder for folder in FOLDERS}
            self.packages = [inside(name) for name in self.packages]
            self.package_data = {inside(name): patterns for name, patterns in self.package_data.items()}

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        if (package, module) == ("tessera", "alias"):
            return self.copy_file(module_file, str(Path(self.build_lib) / "codec.py"))
        built, copied = super().build_module(module, module_file, package)
        text = Path(built).read_text()
        for pattern, replacement in REWRITTEN:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        Path(built).write_text(text)
        return built, copied


setup(cmdclass={"build_py": Inside})
