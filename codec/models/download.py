"""Download of checkpoints from Hugging Face: of each, the weights and config.json alone.

Files are verified, and kept in the user's cache for later imports. A download continues after an interruption. A file that
huggingface_hub has already downloaded is used from its own cache. No torch.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from codec.errors import ModelError
from codec.models.catalogue import CATALOGUE, find_entry
from codec.system.files import cache_folder

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # published names
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
CONFIG = "config.json"
PARTIAL = ".partial"  # suffix of an incomplete file
REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"  # OWNER/NAME
INSTALL = "pip install 'tessera-codec[hub]'"
CHUNK = 1 << 20  # bytes read at a time to verify a file
Progress = Callable[[int, int], object]  # bytes so far, and bytes in all


@dataclass(frozen=True)
class Downloaded:
    """A checkpoint on this machine."""

    repository: str
    weights: Path
    config: Path | None


@dataclass(frozen=True)
class HubFile:
    """A file in a repository, as the hub describes it."""

    name: str
    size: int  # bytes
    sha256: str | None  # hash of a file in Git LFS, as all weights are; None for other files
    git_id: str | None  # hash of other files: Git's SHA-1 of length and content

    def verify(self, path: Path) -> str:
        """How the file at `path` differs from this one, for an error message; empty if it does not."""
        if path.stat().st_size != self.size:
            return f"{path.stat().st_size:,} of {self.size:,} bytes"
        digest, expected = hashlib.sha256(), self.sha256
        if expected is None:
            digest, expected = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False), self.git_id
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
        if expected in (None, digest.hexdigest()):
            return ""
        return f"{digest.name.upper()} {digest.hexdigest()[:16]}, not {expected[:16]}"


def fetch_checkpoint(source: str, progress: Progress | None = None) -> Downloaded:
    """The files of a checkpoint, by its short name in the catalogue or by its repository. A file is downloaded unless it is
    already on this machine. If Hugging Face cannot be reached, files on this machine are used without verification.

    Raises ModelError if `source` is neither, if huggingface_hub is not installed, if there is no network or no such repository,
    or if a file is not the one that the hub describes."""
    entry = find_entry(source)
    repository, file = (entry.repository, entry.file) if entry else (source, None)
    _check_repository(source, repository)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        msg = f"no such file or folder, and fetching a repository needs huggingface_hub: {INSTALL}"
        raise ModelError(msg, file=source) from error
    with _quiet(huggingface_hub):
        try:
            info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        except Exception as error:  # errors of huggingface_hub, requests or httpx, which have no common base class
            problem = _unreachable(source, repository, error)
            if isinstance(error, HfHubHTTPError):
                raise problem from error
            for name in [file] if file else WEIGHTS_FILES:
                if weights := _local(repository, name):
                    return Downloaded(repository, weights, _local(repository, CONFIG))
            raise problem from error
        files = [_hub_file(sibling) for sibling in info.siblings or []]
        chosen = _weights_file(source, files, file)
        config = next((one for one in files if one.name == CONFIG), None)
        settings = _fetch(repository, config, str(info.sha)) if config else None
        return Downloaded(repository, _fetch(repository, chosen, str(info.sha), progress), settings)


def _check_repository(source: str, repository: str) -> None:
    """Raises ModelError unless `repository` looks like one."""
    owner, _, rest = repository.partition("/")
    if re.fullmatch(REPOSITORY, repository) and not Path(owner).exists() and Path(rest).suffix not in WEIGHTS_SUFFIXES:
        names = [entry.name for entry in CATALOGUE.values() if entry.repository == source]
        if len(names) > 1:
            msg = f"has several checkpoints: give the name of one, {' or '.join(names)}"
            raise ModelError(msg, file=source)
        return
    msg = "no such file or folder, and not the name of a repository (OWNER/NAME)"
    raise ModelError(msg, ("available",), file=source)


def _hub_file(sibling: Any) -> HubFile:
    """`sibling` is a `RepoSibling` of huggingface_hub."""
    lfs = sibling.lfs
    sha256 = (lfs.get("sha256") if isinstance(lfs, dict) else lfs.sha256) if lfs else None
    return HubFile(sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id)


def _weights_file(source: str, files: Sequence[HubFile], name: str | None) -> HubFile:
    """The file of weights in a repository: the named one, or the only one. Safetensors are preferred."""
    for suffixes in (WEIGHTS_SUFFIXES[:1], WEIGHTS_SUFFIXES):
        weights = [one for one in files if PurePosixPath(one.name).suffix in suffixes]
        chosen = [one for one in weights if one.name == name] if name else weights
        chosen = [one for one in chosen if one.name in WEIGHTS_FILES] or chosen
        if len(chosen) == 1:
            return chosen[0]
    if name:
        msg = f"{name} is not in the repository: download its weights yourself, and give the path of the file"
    elif weights:
        names = ", ".join(one.name for one in weights[:5])
        msg = f"has several files of weights, {names}: download one of them, and give its path"
    else:
        msg = f"no weights in the repository: a file such as {' or '.join(WEIGHTS_FILES)} is needed"
    raise ModelError(msg, file=source)


def _path(repository: str, name: str) -> Path:
    """The path of a downloaded file in the user's cache. Raises FileError if the user has no home folder."""
    return cache_folder() / "checkpoints" / repository.replace("/", "--") / name


def _local(repository: str, name: str, revision: str | None = None) -> Path | None:
    """A complete file on this machine, which may be in the cache of huggingface_hub."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, name, revision=revision)
    path = Path(cached) if isinstance(cached, str) else _path(repository, name)
    return path if path.is_file() else None


def _fetch(repository: str, file: HubFile, revision: str, progress: Progress | None = None) -> Path:
    """The path of a verified file, downloaded unless it is on this machine."""
    if (path := _local(repository, file.name, revision)) and not file.verify(path):
        return path
    _download(repository, file, revision, progress)
    return _path(repository, file.name)


def _download(repository: str, file: HubFile, revision: str, progress: Progress | None) -> None:
    """Downloads a file, or the rest of it after an interruption. Raises ModelError, and removes the file, if it is wrong."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path = _path(repository, file.name)
    url = hf_hub_url(repository, file.name, revision=revision)
    partial = path.with_name(path.name + PARTIAL)
    partial.parent.mkdir(parents=True, exist_ok=True)
    start = partial.stat().st_size if partial.exists() else 0
    if start > file.size:
        start = 0
    free = shutil.disk_usage(partial.parent).free
    if free < file.size - start:
        msg = f"{file.name} needs {file.size - start:,} bytes, and {partial.parent} has {free:,}: make space there"
        raise ModelError(msg)
    with _Counted(partial, start, file.size, progress) as stream:
        try:
            http_get(url, stream, resume_size=start, headers=build_hf_headers(), expected_size=file.size)
        except Exception as error:  # see fetch_checkpoint
            msg = (
                f"the download of {file.name} stopped after {stream.tell():,} of {file.size:,} bytes "
                f"({_cause(error)}): run the command again to continue it"
            )
            raise ModelError(msg, file=repository) from error
    if problem := file.verify(partial):
        partial.unlink()
        msg = f"{file.name} has {problem}; the download was altered: run the command again"
        raise ModelError(msg, file=repository)
    partial.replace(path)


class _Counted(io.FileIO):
    """A partial file, open at byte `start`, that reports how many bytes it has."""

    def __init__(self, path: Path, start: int, total: int, progress: Progress | None) -> None:
        super().__init__(path, "r+b" if path.exists() else "w+b")
        self.truncate(start)
        self.seek(start)
        self._total = total
        self._progress = progress

    def write(self, data: Any) -> int:
        count = super().write(data)
        if count != len(data):  # the disk is full: the next call raises the error
            count += super().write(memoryview(data)[count:])
        if self._progress:
            self._progress(self.tell(), self._total)
        return count


def _unreachable(source: str, repository: str, error: Exception) -> ModelError:
    """The error for a repository whose files cannot be listed."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, GatedRepoError):
        return ModelError(f"needs an account: accept the conditions at {page}, and set HF_TOKEN", file=source)
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(f"no such file or folder, and {repository} is not a public repository: check the name", file=source)
    advice = f"check the network; or download the files of {page} elsewhere, and give the path of their folder"
    problem = f"no such file or folder here, and Hugging Face cannot be reached ({_cause(error)})"
    return ModelError(f"{problem}: {advice}", file=source)


def _cause(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120].rstrip(".: ")


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Hides the progress bars and warnings of huggingface_hub: the command shows its own."""
    verbosity, shown = hub.logging.get_verbosity(), not hub.utils.are_progress_bars_disabled()
    hub.logging.set_verbosity_error()
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.logging.set_verbosity(verbosity)
        if shown:
            hub.utils.enable_progress_bars()
