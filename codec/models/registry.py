"""Models by name: bundled ones, installed ones, and any model file by its path. No torch.

Only the table `FAMILIES` names the families of models. `codec.models.installing` imports and removes models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name

from codec.errors import FileError, ModelError
from codec.models.base import Model, read_metadata
from codec.system.files import data_folder

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
        model.config  # noqa: B018 (must parse)
    except ModelError as error:
        error.about(path)
        raise
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
    models = [model for path in model_files() if (model := open_if_intact(path))]
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


def open_if_intact(path: Path) -> Model | None:
    """The model in a file; None if an installed one is damaged, since the others can still be used."""
    try:
        return open_model(path)
    except ModelError:
        if path.parent == BUNDLED:
            raise
        return None
