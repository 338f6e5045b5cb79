"""References in memory: images from which others are coded as a difference. Each is found, checked, and decoded once. No torch.

A file identifies its reference by a hash, and has a hint: the name of the reference's file. Decoding looks in the folder of the
file and in a folder that the caller names; a hint cannot lead to another folder. A reference may have a reference itself.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.container import MAGIC, File
from bitstream.reference import hash_pixels
from codec.errors import FileError, TesseraError, UsageError
from codec.image.opening import ImageInput
from codec.image.source import read_source
from codec.models.base import Model, ReferenceImage
from codec.options import DEFAULT_EFFORT, REFINEMENT_STEPS, EncodeOptions
from codec.reading import read_tsr
from codec.results import Encoded, Stored
from codec.system.inputs import FileInput, folder_of, open_file, path_of
from codec.system.process import fork_safe_lock

if TYPE_CHECKING:
    from codec.codec import Codec

ReferenceInput: TypeAlias = ImageInput | FileInput | Encoded | Stored
LOADING = fork_safe_lock()  # several threads load a reference only once
MAX_IMAGES, MAX_PIXELS = 4, 64_000_000  # kept in memory; the last one may be larger
MAX_CHAIN = 1000  # references of references


def check_reference(model: Model, options: EncodeOptions) -> None:
    """Raises UsageError if the model does not support references, or other options contradict them."""
    if options.get("effort", DEFAULT_EFFORT) in REFINEMENT_STEPS:
        msg = f"effort above {DEFAULT_EFFORT} and a reference contradict each other: give one of them"
        raise UsageError(msg)
    if not model.refers:
        msg = f"{model.name} does not support references: leave out the reference"
        raise UsageError(msg)


@dataclass(frozen=True, eq=False)
class _Found:
    """A reference before the network computes its base."""

    content: File | NDArray[np.uint8]  # a .tsr file, or pixels (H, W, 3)
    hash: bytes
    name: str = ""  # file name without its folder; may be empty
    folder: str | None = None


class References:
    """A cache of the references that a codec used most recently."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._images: OrderedDict[tuple[bytes, str], ReferenceImage] = OrderedDict()  # keys: hash, fingerprint of the model
        self._last: tuple[Any, _Found] | None = None  # what was read last, and its key

    def open(self, source: ReferenceInput, model: Model) -> ReferenceImage:
        """The reference for encoding with `model`.

        Raises the errors of `Codec.decode` or `read_source` if it cannot be read."""
        with LOADING:
            return self._load(self._read(source), None, model)

    def of(self, stored: Stored) -> ReferenceImage:
        """The reference of a file. Raises FileError if it is missing or a different image."""
        assert stored.file.reference
        with LOADING:
            key = stored.file.reference.hash, stored.model.fingerprint
            if key in self._images and not _is_file(stored.reference):
                return self._images[key]
            return self._load(self._find(stored.file, stored.folder, stored.reference), stored.reference, stored.model)

    def _load(self, found: _Found, places: Any, model: Model) -> ReferenceImage:
        """Loads a reference. References that it depends on are loaded first. `places` is the `given` of `_find`."""
        chain = [(found, model)]
        while isinstance(found.content, File) and found.content.reference:
            model = self._codec.model_of(found.content)
            if (found.content.reference.hash, model.fingerprint) in self._images:
                break
            if len(chain) == MAX_CHAIN:
                msg = f"its reference depends on more than {MAX_CHAIN} others: encode it again, with another reference"
                raise FileError(msg)
            found = self._find(found.content, found.folder, places if _is_folder(places) else None)
            chain.append((found, model))
        while chain:
            image = self._image(*chain.pop())
        return image

    def _image(self, found: _Found, model: Model) -> ReferenceImage:
        """A reference whose own reference is in memory."""
        key = found.hash, model.fingerprint
        if key not in self._images:
            tokenizer: Any = self._codec.tokenizer(model)
            content: Any = found.content
            if isinstance(content, File):
                size = content.height, content.width
                stored = self._codec.read(content)
                own: Any = self._codec.tokenizer(stored.model)
                content = stored.prefix
                if reference := stored.file.reference:
                    before = self._images[reference.hash, stored.model.fingerprint]
                    content = own.add_reference(content, reference, before)
                if stored.model.fingerprint != model.fingerprint:
                    plain = {"detail": 0.0} if "detail" in stored.model.decode_options else {}
                    content = own.detokenize([content], **plain)[0]
            else:
                size = content.shape[:2]
            base = tokenizer.base_of(content)
            of_pixels = not isinstance(found.content, File)
            pixels = partial(_same, content) if isinstance(content, np.ndarray) else partial(tokenizer.pixels_of, base)
            self._images[key] = ReferenceImage(found.hash, of_pixels, found.name, size, base, cache(pixels))
            self._forget()
        self._images.move_to_end(key)
        return replace(self._images[key], name=found.name)

    def _forget(self) -> None:
        """Forgets the references that were not used for the longest time."""
        while len(self._images) > 1:
            pixels = sum(image.size[0] * image.size[1] for image in self._images.values())
            if len(self._images) <= MAX_IMAGES and pixels <= MAX_PIXELS:
                break
            self._images.popitem(last=False)

    def _find(self, file: File, folder: str | None, given: Any) -> _Found:
        """Finds the reference of a file: `given` if it is a file, otherwise a file with the hinted name in `folder`, or in
        `given` if that is a folder."""
        wanted = file.reference
        assert wanted
        if given is not None and not _is_folder(given):
            found = self._read(given)
            if found.hash != wanted.hash:
                name = f" ({wanted.name})" if wanted.name else ""
                msg = f"this is not the reference that the file was encoded with{name}"
                raise FileError(msg, ("reference",))
            return found
        problem = "is missing" if wanted.name else "has no name"
        for place in dict.fromkeys([folder, given]):
            if wanted.name and place is not None and (path := Path(place, wanted.name)).is_file():
                found = self._read(path)
                if found.hash == wanted.hash:
                    return found
                problem = "is a different image"
        msg = f"its reference {problem}" if not wanted.name else f"its reference {wanted.name} {problem}"
        raise FileError(msg, ("reference",))

    def _read(self, source: ReferenceInput) -> _Found:
        """A reference from its file. The last one is not read again."""
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        key = _state(path) if path is not None else source
        if self._last is not None and (key == self._last[0] if path is not None else key is self._last[0]):
            return self._last[1]
        try:
            found = self._parse(source)
        except TesseraError as error:
            msg = f"the reference: {error}"
            raise type(error)(msg, error.advice) from error
        self._last = key, found
        return found

    def _parse(self, source: Any) -> _Found:
        limit = self._codec.max_pixels
        if isinstance(source, Stored):
            return _Found(source.file, source.file.hash, folder=source.folder)
        if isinstance(source, np.ndarray | Image.Image):
            pixels = read_source(source, {}, limit).pixels
            return _Found(pixels, hash_pixels(pixels))
        if isinstance(source, Encoded):
            source = source.data
        with open_file(source) as stream:
            stream.seek(0)  # a file that is open may have been read before
            is_tsr = stream.read(len(MAGIC)) == MAGIC
            stream.seek(0)
        content = read_tsr(source, limit) if is_tsr else read_source(source, {}, limit).pixels
        hashed = content.hash if isinstance(content, File) else hash_pixels(content)
        path = path_of(source)
        return _Found(content, hashed, os.path.basename(path or ""), folder_of(source))


def _state(path: str | bytes) -> tuple[Any, ...]:
    """Identifies the content of a path."""
    try:
        state = Path(os.fsdecode(path)).stat()
    except (OSError, ValueError):
        return (path,)
    return os.path.realpath(path), state.st_mtime_ns, state.st_size


def _is_folder(given: Any) -> bool:
    return isinstance(given, str | os.PathLike) and os.path.isdir(given)


def _is_file(given: Any) -> bool:
    return given is not None and not _is_folder(given)


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels
