"""Models by name: bundled ones, installed ones, and any model file by its path. No torch.

The table `FAMILIES` and the function `trainer_of` list the families of models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.errors import FileError, ImageError, ModelError, naming
from codec.models.base import Model, read_metadata
from codec.models.catalogue import find_entry
from codec.pyramid.runtime.graph_templates import graph_templates_path
from codec.system.device import pick_device, require_torch
from codec.system.files import data_folder

if TYPE_CHECKING:
    from codec.models.checkpoint import Checkpoint
    from codec.models.download import Progress
    from codec.models.published import Calibration, PublishedModel
    from codec.training.trainer import Trainer

FAMILIES = {  # by the kind of their model files: a subclass of `Model`, imported when a model of this kind is opened
    "tessera-pyramid-1": "pyramid.model:PyramidModel",
    "tessera-titok-1": "titok.model:TitokModel",
    "tessera-detailflow-1": "detailflow.model:DetailFlowModel",
    "tessera-flextok-1": "flextok.model:FlextokModel",
    "tessera-grid-1": "grid.model:GridModel",
}
CODEC = __name__.removesuffix(".models.registry")  # the package of the families, also inside an installed `tessera`
BUNDLED = Path(__file__).parent.parent / "weights"
DEFAULT = "standard"
SUFFIX = ".safetensors"


def open_model(name: str | os.PathLike[str] = DEFAULT) -> Model:
    """The model with this name, or in the file at this path. Raises ModelError if there is none."""
    path = Path(name)
    if path.suffix != SUFFIX and not path.is_file():
        match = next((path for path in model_files() if path.stem == str(name)), None)
        if match is None:
            known = ", ".join(sorted({path.stem for path in model_files()})) or "none"
            msg = f"unknown model: use {known}, or the path of a {SUFFIX} file"
            raise ModelError(msg, file=name)
        path = match
    if not path.is_file():
        msg = "no such file: check the name"
        raise ModelError(msg, file=name)
    metadata = read_metadata(path)
    if metadata["kind"] not in FAMILIES:
        msg = f"a model of kind {metadata['kind']!r}, and this release knows {', '.join(FAMILIES)}: update tessera"
        raise ModelError(msg, file=path)
    model = family(metadata["kind"])(path, metadata)
    try:
        with naming(path):
            model.config  # noqa: B018 (must parse)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"not a Tessera model ({type(error).__name__}: {str(error)[:200]})"
        raise ModelError(msg, file=path) from error
    return model


def family(kind: str) -> type[Model]:
    """The family of this kind, a key of FAMILIES."""
    return resolve_name(f"{CODEC}.{FAMILIES[kind]}")


def model_for(stream_id: bytes) -> Model:
    """The bundled or installed model that wrote files of this stream id.

    Raises ModelError if there is none, or if there are several with different fingerprints."""
    models = [model for path in model_files() if (model := _open_if_intact(path))]
    matching = [model for model in models if model.stream_id == stream_id]
    if not matching:
        known = ", ".join(f"{model.stream_id.hex()} ({model.name})" for model in models) or "none"
        msg = f"made by a model that is not installed (stream id {stream_id.hex()}; installed: {known})"
        raise ModelError(msg, ("model",))
    if len({model.fingerprint for model in matching}) > 1:
        names = " and ".join(model.name for model in matching)
        msg = f"made by one of {names}, which share the stream id {stream_id.hex()}"
        raise ModelError(msg, ("model",))
    return matching[0]


def model_files() -> Iterator[Path]:
    """The files of bundled models, then of installed models."""
    yield from sorted(BUNDLED.glob(f"*{SUFFIX}"))
    with suppress(FileError, OSError):  # without a home folder, or with one that cannot be read, there are none
        yield from sorted(installed_folder().glob(f"*{SUFFIX}"))


def installed_folder() -> Path:
    """Raises FileError if the user has no home folder."""
    return data_folder() / "models"


def _open_if_intact(path: Path) -> Model | None:
    """The model in a file; None if an installed one is damaged, since the others can still be used."""
    try:
        return open_model(path)
    except ModelError:
        if path.parent == BUNDLED:
            raise
        return None


def import_model(
    source: str,
    name: str | None = None,
    variant: str | None = None,
    replace: bool = False,
    photos: Sequence[Path] = (),
    device: str = "auto",
    accept_licence: bool = False,
    sampling: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> tuple[Model, Calibration | None]:
    """Installs a published checkpoint, and measures its coding tables on photos, if given.

    `source` is a file, a folder, a name of `codec.models.catalogue` or a repository; `name` defaults to the name in the
    catalogue or the model's own name. `photos` are image files, folders and tar files. `accept_licence` accepts the licence
    of a family that states one in `PublishedModel.licence`. `sampling` has defaults for decoding, by the names of
    `codec.options.SAMPLING`. `progress` is called with the bytes of the download so far and in all.

    Raises ModelError, and installs nothing, if the checkpoint is not supported, if its licence is not accepted, or if the name
    is taken and `replace` is false."""
    require_torch("importing a model")
    folder = installed_folder()
    entry = None if Path(source).exists() else find_entry(source)
    name = name or (entry.name if entry else None)
    if entry and entry.research_only and not accept_licence:  # before the download
        msg = f"its licence, at https://huggingface.co/{entry.repository}, allows research only"
        raise ModelError(msg, ("accept_licence",), file=source)
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name):
        msg = f"{name!r} is not a name for a model: use letters, digits, dots, underscores and hyphens"
        raise ModelError(msg)

    def check_name(own_name: str) -> None:
        _refuse_taken(folder / f"{name or own_name}{SUFFIX}", replace)

    from codec.models.checkpoint import open_checkpoint

    if name:
        check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import-", dir=folder) as temporary:
            checkpoint = open_checkpoint(source, progress)
            recognised = _family_of(checkpoint)
            if recognised.licence and not accept_licence:
                raise ModelError(recognised.licence, ("accept_licence",))
            if sampling and not recognised.samples:
                msg = f"decodes without sampling: leave out {' and '.join(sampling)}"
                raise ModelError(msg, file=checkpoint.source)
            imported = recognised.import_checkpoint(checkpoint, Path(temporary), variant, check_name, sampling or {})
            calibration = imported.calibrate(_squares(photos), pick_device(device)) if photos else None
            model = open_model(imported.path)
            target = folder / f"{name or model.name}{SUFFIX}"
            _refuse_taken(target, replace)
            _refuse_conflict(model, target)
            os.replace(model.path, target)
    except OSError as error:
        msg = f"cannot be written ({error.strerror}): check space and permissions"
        raise ModelError(msg, file=folder) from error
    return open_model(target), calibration


def _family_of(checkpoint: Checkpoint) -> type[PublishedModel]:
    """The family of a published checkpoint. Raises ModelError if none recognises it."""
    from codec.models.published import PublishedModel

    for candidate in map(family, FAMILIES):
        if issubclass(candidate, PublishedModel) and candidate.recognises(checkpoint):
            return candidate
    msg = "not a tokenizer of a known family"
    raise ModelError(msg, ("available",), file=checkpoint.path)


def _squares(photos: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    from codec.training.photos import find_photos, read_square

    try:
        for _, data in find_photos(photos):
            if (square := read_square(data)) is not None:
                yield square
    except OSError as error:
        msg = f"cannot be read ({error.strerror or error}): check its permissions"
        raise ImageError(msg, file=error.filename or "photos") from error


def _refuse_taken(target: Path, replace: bool) -> None:
    """Raises ModelError if a model's name is taken."""
    if (BUNDLED / target.name).exists():
        msg = f"{target.stem} is the name of a bundled model: give another"
        raise ModelError(msg)
    if target.exists() and not replace:
        msg = f"a model called {target.stem} is installed already"
        raise ModelError(msg, ("force",))


def _refuse_conflict(model: Model, target: Path) -> None:
    """Raises ModelError if another model has the stream id of this one with a different fingerprint."""
    for path in model_files():
        other = _open_if_intact(path)
        if other and path != target and other.stream_id == model.stream_id and other.fingerprint != model.fingerprint:
            msg = f"{other.name} has the same stream id {model.stream_id.hex()} by chance: measure the tables on other photos"
            raise ModelError(msg)


def remove_model(name: str) -> Path:
    """Removes an installed model and returns its former path. Raises ModelError if no model of this name is installed."""
    path = installed_folder() / f"{name}{SUFFIX}"
    if path.name != f"{name}{SUFFIX}" or not path.is_file():
        installed = ", ".join(sorted(path.stem for path in installed_folder().glob(f"*{SUFFIX}"))) or "none"
        msg = f"not an installed model; installed are: {installed}"
        if (BUNDLED / path.name).is_file():
            msg = "a bundled model cannot be removed"
        raise ModelError(msg, file=name)
    try:
        path.unlink()
        graph_templates_path(path).unlink(missing_ok=True)
    except OSError as error:
        msg = f"cannot be removed ({error.strerror}): check its permissions"
        raise ModelError(msg, file=path) from error
    return path


def trainer_of(family: str) -> type[Trainer]:
    """The trainer of the family of this name. Imports torch."""
    from codec.pyramid.training import PyramidTrainer
    from codec.titok.training import TitokTrainer

    return {trainer.family: trainer for trainer in (PyramidTrainer, TitokTrainer)}[family]
