"""Imported models: published checkpoints become model files, which `codec.models.registry` finds. No torch before an import."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.errors import ImageError, ModelError, naming
from codec.models.base import Model
from codec.models.catalogue import find_entry
from codec.models.published import Calibration, PublishedModel
from codec.models.registry import BUNDLED, FAMILIES, SUFFIX, family, installed_folder, model_files, open_if_intact, open_model
from codec.system.device import pick_device, require_torch

if TYPE_CHECKING:
    from codec.models.checkpoint import Checkpoint
    from codec.models.download import Progress


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
    from codec.models.checkpoint import open_checkpoint

    folder = installed_folder()
    if name := _known_name(source, name, accept_licence):  # checked before the download
        _refuse_taken(folder / f"{name}{SUFFIX}", replace)
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
            with naming(checkpoint.path):
                config = dataclasses.replace(recognised.checkpoint_config(checkpoint, variant), **(sampling or {}))
            target = folder / f"{name or config.name}{SUFFIX}"
            _refuse_taken(target, replace)  # before weights are read
            imported = recognised.import_checkpoint(checkpoint, Path(temporary), config)
            calibration = imported.calibrate(_squares(photos), pick_device(device)) if photos else None
            model = open_model(imported.path)
            _refuse_taken(target, replace)
            _refuse_conflict(model, target)
            os.replace(model.path, target)
    except OSError as error:
        msg = f"cannot be written ({error.strerror}): check space and permissions"
        raise ModelError(msg, file=folder) from error
    return open_model(target), calibration


def _known_name(source: str, name: str | None, accept_licence: bool) -> str | None:
    """`name`, or else the name in the catalogue. Raises ModelError if it is not a name, or if a licence in the catalogue is not
    accepted."""
    entry = None if Path(source).exists() else find_entry(source)
    name = name or (entry.name if entry else None)
    if entry and entry.research_only and not accept_licence:
        msg = f"its licence, at https://huggingface.co/{entry.repository}, allows research only"
        raise ModelError(msg, ("accept_licence",), file=source)
    if name is not None and not re.fullmatch(r"[\w-][\w.-]*", name):
        msg = f"{name!r} is not a name for a model: use letters, digits, dots, underscores and hyphens"
        raise ModelError(msg)
    return name


def _family_of(checkpoint: Checkpoint) -> type[PublishedModel]:
    """The family of a published checkpoint. Raises ModelError if none recognises it."""
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
        other = open_if_intact(path)
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
        for suffix in {suffix for kind in FAMILIES for suffix in family(kind).companions}:
            path.with_suffix(suffix).unlink(missing_ok=True)
    except OSError as error:
        msg = f"cannot be removed ({error.strerror}): check its permissions"
        raise ModelError(msg, file=path) from error
    return path
