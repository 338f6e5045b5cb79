"""`import codec` where Tessera is installed, as codec.py: the same modules as `tessera.codec`, under its name in a checkout."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera.codec import *  # noqa: F403

TARGET = "tessera.codec"


class Alias(MetaPathFinder, Loader):
    """Finds `codec.NAME` as `tessera.codec.NAME`, so that there is one copy of each module."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        mine = fullname.startswith("codec.") and sys.modules.get("codec") is sys.modules[TARGET]
        return ModuleSpec(fullname, self) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(TARGET + spec.name.removeprefix("codec"))
        self._own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own  # the import system has just put the alias's there


sys.meta_path.insert(0, Alias())
sys.modules[__name__] = importlib.import_module(TARGET)
