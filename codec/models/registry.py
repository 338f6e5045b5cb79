"""Finding models: those that are bundled, those that the user has installed, and any model file by its path. No torch.

The table `FAMILIES` is all that the rest of the code knows of the families of models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from codec.errors import ModelError
from codec.models.base import Calibrated, Model, read_metadata
from codec.pyramid.model import PyramidModel
from codec.pyramid.runtime.graph_templates import graph_templates_path
from codec.system.device import require_torch
from codec.system.files import data_folder
from codec.titok.model import TitokModel

if TYPE_CHECKING:
    from codec.training.trainer import Trainer

FAMILIES: dict[str, type[Model]] = {family.kind: family for family in (PyramidModel, TitokModel)}
BUNDLED = Path(__file__).parent.parent / "weights"
DEFAULT = "standard"
ENDING = ".safetensors"
# What wrote files of models that are no longer shipped, by stream id
FORMER = dict.fromkeys(
    ("44ef", "d0cb", "b1a1", "3fd2", "ed43"), "a standard model from before the first release, which this version no longer has"
)


def installed_folder() -> Path:
    """Where the user's own models lie."""
    return data_folder() / "models"


def model_files() -> list[Path]:
    """Files of the bundled models, then of those that the user has installed."""
    return [path for folder in (BUNDLED, installed_folder()) for path in sorted(folder.glob(f"*{ENDING}"))]


def open_model(name: str | os.PathLike[str] = DEFAULT) -> Model:
    """A bundled or installed model by its name, or any model file by its path. Raises ModelError where there is none."""
    path = Path(name)
    if path.suffix != ENDING and not path.is_file():
        known = {path.stem: path for path in reversed(model_files())}
        if path.name != str(name) or path.name not in known:
            msg = f"{name}: no such model: known are {', '.join(sorted(known)) or 'none'}; or give the path of a {ENDING} file"
            raise ModelError(msg)
        path = known[path.name]
    if not path.is_file():
        msg = f"{name}: no such file: check the name"
        raise ModelError(msg)
    metadata = read_metadata(path)
    family = FAMILIES.get(metadata["kind"])
    if family is None:
        msg = f"{path}: a model of kind {metadata['kind']!r}, and this release knows {', '.join(FAMILIES)}: update tessera"
        raise ModelError(msg)
    model = family(path, metadata)
    try:
        model.config  # noqa: B018 (it must parse)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path}: not a Tessera model ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    return model


def model_for(stream_id: bytes) -> Model:
    """The bundled or installed model that wrote files of this stream id. Raises ModelError where there is none, or where there
    are several that differ."""
    models = [model for path in model_files() if (model := _whole(path))]
    found = [model for model in models if model.stream_id == stream_id]
    if not found:
        known = ", ".join(f"{model.stream_id.hex()} ({model.name})" for model in models) or "none"
        maker = FORMER.get(stream_id.hex(), "a model that is not installed")
        msg = f"made by {maker} (stream id {stream_id.hex()}; installed: {known})"
        raise ModelError(msg, ("model",))
    if len({model.fingerprint for model in found}) > 1:
        names = " and ".join(model.name for model in found)
        msg = f"made by one of {names}, which share the stream id {stream_id.hex()}"
        raise ModelError(msg, ("model",))
    return found[0]


def import_model(
    source: str,
    name: str | None = None,
    variant: str | None = None,
    replace: bool = False,
    calibrate: Callable[[Model], Calibrated | None] = lambda _: None,
) -> tuple[Model, Calibrated | None]:
    """Installs a published checkpoint (a file, a folder, or the name of a repository) in the user's folder, under `name` or its
    own; `calibrate` may measure its tables first. Raises ModelError, and installs nothing, for what is no checkpoint of a
    known layout, or where the name is taken and not to be replaced."""
    require_torch("importing a model")
    folder = installed_folder()
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name):
        msg = f"{name!r} is not a name for a model: use letters, digits, dots and hyphens"
        raise ModelError(msg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
            found = (family.import_checkpoint(source, Path(temporary), variant) for family in FAMILIES.values())
            model = next(model for model in found if model)
            done = calibrate(model)
            model = open_model(model.path)
            target = folder / f"{name or model.name}{ENDING}"
            _refuse_taken(model, target, replace)
            os.replace(model.path, target)
    except OSError as error:
        msg = f"{folder}: cannot be written ({error.strerror}): check space and permissions"
        raise ModelError(msg) from error
    return open_model(target), done


def _refuse_taken(model: Model, target: Path, replace: bool) -> None:
    """Raises ModelError where a model's name is taken, or its stream id by a model of another meaning."""
    if (BUNDLED / target.name).exists():
        msg = f"{target.stem} is the name of a bundled model: give another"
        raise ModelError(msg)
    if target.exists() and not replace:
        msg = f"a model called {target.stem} is installed already"
        raise ModelError(msg, ("force",))
    for path in model_files():
        other = _whole(path)
        if other and path != target and other.stream_id == model.stream_id and other.fingerprint != model.fingerprint:
            msg = f"its stream id {model.stream_id.hex()} is that of {other.name} by chance: measure its tables on other photos"
            raise ModelError(msg)


def remove_model(name: str) -> Path:
    """Removes a model that the user has installed -> where it was. Raises ModelError where there is none of that name."""
    path = installed_folder() / f"{name}{ENDING}"
    if path.name != f"{name}{ENDING}" or not path.is_file():
        installed = ", ".join(sorted(path.stem for path in installed_folder().glob(f"*{ENDING}"))) or "none"
        msg = f"{name}: no such model among those you have installed: {installed}"
        raise ModelError(msg)
    try:
        path.unlink()
        graph_templates_path(path).unlink(missing_ok=True)
    except OSError as error:
        msg = f"{path}: cannot be removed ({error.strerror}): check its permissions"
        raise ModelError(msg) from error
    return path


def trainer_of(family: str) -> type[Trainer]:
    """The trainer of a family, by its name in `tessera train --family`. Imports torch."""
    from codec.pyramid.training import PyramidTrainer
    from codec.titok.training import TitokTrainer

    return {trainer.family: trainer for trainer in (PyramidTrainer, TitokTrainer)}[family]


def _whole(path: Path) -> Model | None:
    """A model; None for a damaged one that the user has installed, which should not stand in the way of the others."""
    try:
        return open_model(path)
    except ModelError:
        if path.parent == BUNDLED:
            raise
        return None
