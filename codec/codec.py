"""Images to bytes and back: the object that holds a model in memory, and what can be read of a file without one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.container import COLOURED, File, Sections, overhead, payload_max, read_file, write_file
from bitstream.range_coder import encode_tokens, fit_tokens
from bitstream.sequence import Prefix, TokenSequence
from codec.errors import ModelError, TargetError, TesseraError, UsageError
from codec.image.arguments import Data, ImageInput, data_of, image_of
from codec.image.colour import neutral
from codec.image.metadata import ALPHA, LABELS, fit_alpha, from_sections
from codec.image.profiles import SRGB
from codec.image.reading import KEEP, MAX_PIXELS, check_size, prepare, restore
from codec.metrics import psnr
from codec.models.base import Model
from codec.models.registry import DEFAULT, model_for, open_model
from codec.rate_control import DEFAULT_EFFORT, DEFAULT_TARGET, Target, quality_of_block_tokens, steps_of_effort
from codec.results import Decoded, Encoded, EncodeOptions, ImageOptions, Prepared, Read, all_or_nothing, read_tokens
from codec.search import SearchResult, shortest
from codec.system.device import ONNX, PACKAGES, TORCH, pick_device, pick_runtime, require_torch
from codec.system.process import fork_safe_lock

if TYPE_CHECKING:
    from codec.metrics.lpips import LPIPS
    from codec.models.tokenizer import Tokenizer

LOADING = fork_safe_lock()  # threads that come at once load a network once
ALPHA_SHARE = 3  # of a size that is asked for, the part that transparency may take before it loses quality
LPIPS_SIDE = 31  # pixels that AlexNet needs to have anything to look at


class Codec:
    """A model in memory, for many images. Use it in a `with` statement, or let it be collected.

    `model` is the name of a bundled or installed model, or the path of a model file; by default images are encoded with the
    standard model, and files decoded with the one that wrote them. `device` is 'auto', 'cpu', 'cuda' or 'cuda:N'. `runtime` is
    what networks are computed with: 'onnx', 'torch', or 'auto', which is torch on CUDA and for what only torch can do. `tile`
    is the largest side in pixels of the tiles that an image is worked on in, for models that have them; by default 2048 to
    encode and 1024 to decode. `lpips_weights` is the .npz that a target of LPIPS needs; by default what `tessera models fetch
    lpips` fetched, or what the torch cache has."""

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        *,
        runtime: str = "auto",
        tile: int | None = None,
        max_pixels: int = MAX_PIXELS,
        lpips_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self.device = pick_device("cpu" if device == "auto" and runtime == ONNX else device)
        self.runtime = runtime
        pick_runtime(runtime, self.device, (ONNX, TORCH), "")
        self.tile = tile
        self.max_pixels = max_pixels
        self.lpips_weights = Path(lpips_weights) if lpips_weights is not None else None
        self._chosen = model
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}  # by the model's fingerprint, and runtime
        self._models: dict[bytes, Model] = {}  # by stream id, which is all that a file has

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokenizers.clear()

    @cached_property
    def model(self) -> Model:
        """The model that images are encoded with."""
        return open_model(self._chosen or DEFAULT)

    def tokenizer(self, model: Model | None = None, refining: bool = False) -> Tokenizer:
        """The network of a model, by default the one that images are encoded with; it is loaded once. With `refining` it is a
        `codec.models.tokenizer.Refiner`. Raises UsageError for tiles or a runtime that it does not have."""
        chosen = model or self.model
        if self.tile is not None and not chosen.tiles:
            msg = f"{chosen.name} does not work in tiles: leave out their size"
            raise UsageError(msg, ("tile",))
        if refining:
            runtime = pick_runtime(self.runtime, self.device, (TORCH,), f"effort above {DEFAULT_EFFORT} needs torch")
        else:
            runtime = pick_runtime(self.runtime, self.device, chosen.runtimes, chosen.needs_torch)
        key = chosen.fingerprint, runtime
        with LOADING:
            if key not in self._tokenizers:
                self._tokenizers[key] = self._load(chosen, runtime)
        if runtime == TORCH:
            from codec.system.process import follow_context_threads

            follow_context_threads()
        return self._tokenizers[key]

    def _load(self, model: Model, runtime: str) -> Tokenizer:
        try:
            return model.tokenizer(runtime, self.device, self.tile)
        except (TesseraError, MemoryError):
            raise
        except Exception as error:  # what a runtime raises where it cannot be loaded is an open set
            name = PACKAGES[runtime]
            msg = f"{name} cannot be loaded ({error}): check its installation, and whether there is enough memory"
            raise ModelError(msg) from error

    def _model_of(self, file: File) -> Model:
        """The model that wrote a file. Raises ModelError if it is not there, or is not the one that was named."""
        if self._chosen is not None or file.stream_id == self.model.stream_id:
            if file.stream_id != self.model.stream_id:
                mine, theirs = self.model.stream_id.hex(), file.stream_id.hex()
                msg = f"made by a model with stream id {theirs}, and {self.model.name} has {mine}"
                raise ModelError(msg, ("model",))
            return self.model
        if file.stream_id not in self._models:
            self._models[file.stream_id] = model_for(file.stream_id)
        return self._models[file.stream_id]

    def prepare(self, image: ImageInput, options: ImageOptions = KEEP) -> Prepared:
        """An image -> what the network takes, and what else its file keeps. No network.

        `image` is a PIL image, a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the path of a file, or a file opened
        for reading bytes. Raises ImageError for an image that cannot be read or coded, or is too large."""
        return prepare(image_of(image, self.max_pixels), options, self.max_pixels)

    def tokenize(
        self, prepared: Iterable[Prepared], target: Target | None = None, effort: int = DEFAULT_EFFORT
    ) -> list[TokenSequence]:
        """The tokens of each image: one encoding, of which every rate is a prefix. This is the network's part.

        Without a `target` these are all tokens, and with one the first ones, as many as `cut` can need for it. Images of
        similar size share network calls. With an `effort` above the default of 3, tokens are refined for the length that
        `target` asks for, by default that of the default quality. Raises UsageError where the model cannot refine, or has
        fewer tokens than `target` asks for."""
        steps, wanted = steps_of_effort(effort), list(prepared)
        if steps and not self.model.refines:
            msg = f"effort {effort} needs a model that refines tokens, and {self.model.name} does not: use {DEFAULT_EFFORT}"
            raise UsageError(msg)
        pixels, code = [part.pixels for part in wanted], self.model.code
        if not steps:
            enough = [target.enough(code, code.layout(part.width, part.height)) for part in wanted] if target else None
            return self.tokenizer().tokenize(pixels, enough)
        made = zip(wanted, self.tokenizer(refining=True).tokenize(pixels), strict=True)
        return [self._refined(part, sequence, target or DEFAULT_TARGET, steps) for part, sequence in made]

    def _refined(self, part: Prepared, sequence: TokenSequence, target: Target, steps: int) -> TokenSequence:
        """A better sequence for the length that a target asks for."""
        try:
            length = self.cut(sequence, target, part).file.length
        except TargetError:  # it will be raised when the sequence is cut
            return sequence

        refiner: Any = self.tokenizer(refining=True)

        def squared_error(prefix: Prefix) -> float:
            decoded = neutral(refiner.detokenize([prefix])[0], part.greyness)
            return float(np.square(decoded.astype(np.float32) - part.pixels).sum(dtype=np.float64))

        sized = target.budget(part.width, part.height) is not None
        return refiner.refine(part.pixels, sequence, length, squared_error, sized, steps)

    def sequence(self, image: ImageInput) -> TokenSequence:
        """All tokens of one image."""
        return self.tokenize([self.prepare(image)])[0]

    def cut(self, sequence: TokenSequence, target: Target, part: Prepared | None = None) -> Encoded:
        """The file that a target asks for, with all that `part` keeps beside pixels. Raises TargetError where no token fits.

        No network, but where `target.searched`: such a target is looked for by decoding, and compared with the image."""
        layout, code = sequence.layout, self.model.code
        budget = target.budget(layout.width, layout.height)
        found = self._search(sequence, target, part) if target.searched else None
        sections, space, greyness = (part.sections, part.space, part.greyness) if part else ((), SRGB, COLOURED)
        file = File(layout.width, layout.height, self.model.stream_id, layout.tokens, b"", sections, space, greyness)
        shortest_length = 1 if code.tail_drop else layout.tokens
        if budget is None:
            length = found.length if found else target.length(code, layout)
            if length < shortest_length:
                raise UsageError(all_or_nothing(code, layout.block_tokens_of(length)))
            payload = encode_tokens(sequence, length)
        else:
            most = min(budget, payload_max(layout.width, layout.height))
            room = budget - overhead(file, most)
            if part and part.alpha is not None:
                sections = fit_alpha(sections, part.alpha, (room + len(dict(sections)[ALPHA])) // ALPHA_SHARE)
                file = replace(file, sections=sections)
                room = budget - overhead(file, most)
            length, payload = fit_tokens(sequence, room) if room >= 0 else (0, b"")
            if length < shortest_length:
                length, payload = shortest_length, encode_tokens(sequence, shortest_length)
        file = replace(file, length=length, payload=payload)
        data = write_file(file)
        if budget is not None and len(data) > budget:
            msg = f"a {layout.width}x{layout.height} image does not fit {budget} bytes: the smallest file has {len(data)}"
            if sections:
                msg += f", {file.section_bytes} of them for its {_listed(sections)}"
            raise TargetError(msg, _left_out_by(sections))
        block_tokens = layout.block_tokens_of(length)
        made = Encoded(data, read_file(data), block_tokens, quality_of_block_tokens(code, block_tokens))
        return replace(made, reached=found.reached, measured=found.value) if found else made

    def _search(self, sequence: TokenSequence, target: Target, part: Prepared | None) -> SearchResult:
        """The length that a target of quality asks for. Raises TargetError where LPIPS cannot be measured."""
        if part is None:
            msg = "a target of quality needs the image to compare with"
            raise TypeError(msg)
        original, greyness = part.pixels, part.greyness

        def decode(length: int) -> NDArray[np.uint8]:
            return self._decoded(sequence.first(length), greyness)

        bits = sequence.bits().cumsum()
        least = 1 if self.model.code.tail_drop else len(bits)
        if target.target_psnr is not None:
            return shortest(lambda n: psnr(decode(n), original), target.target_psnr, bits, least, higher_is_better=True)
        assert target.target_lpips is not None
        if min(part.width, part.height) < LPIPS_SIDE:
            msg = f"LPIPS needs sides of at least {LPIPS_SIDE} pixels, not {part.width}x{part.height}: use target psnr"
            raise TargetError(msg)
        with LOADING:
            distance = self._lpips.distance
        return shortest(lambda n: distance(decode(n), original), target.target_lpips, bits, least, higher_is_better=False)

    @cached_property
    def _lpips(self) -> LPIPS:
        require_torch("LPIPS")
        from codec.metrics.lpips import LPIPS

        return LPIPS(self.lpips_weights).to(self.device).requires_grad_(False)

    def read(self, data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Read:
        """The tokens of a file, at most `tokens` per block; a cut file needs `allow_partial`. No network.

        `data` is the file's bytes, its path, or the file opened for reading bytes. Raises FormatError, TruncatedError,
        ModelError or ImageError."""
        file = read_file(data_of(data))
        check_size(file.width, file.height, self.max_pixels)
        model = self._model_of(file)
        return Read(file, read_tokens(file, model.code, allow_partial, tokens), model)

    def detokenize(self, read: Iterable[Read]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`: pixels (H, W, 3) of each. This is the network's part; images of one model and similar
        size share its calls."""
        files = list(read)
        done: dict[int, NDArray[np.uint8]] = {}
        for model in {part.model.fingerprint: part.model for part in files}.values():
            mine = [place for place, part in enumerate(files) if part.model.fingerprint == model.fingerprint]
            done |= zip(mine, self.tokenizer(model).detokenize([files[place].prefix for place in mine]), strict=True)
        return [done[place] for place in range(len(files))]

    def _decoded(self, prefix: Prefix, greyness: int) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) that come back from the first tokens of an image that is being encoded."""
        return neutral(self.tokenizer().detokenize([prefix])[0], greyness)

    def finish(self, pixels: NDArray[np.uint8], file: File) -> Image.Image:
        """The image in the mode that it had, L, LA, RGB or RGBA; profile, EXIF and XMP are in its `info`. No network.

        Raises FormatError for damaged sections."""
        return restore(pixels, from_sections(file.sections, file.width, file.height, file.space), file.greyness)

    def compress(self, image: ImageInput, **options: Unpack[EncodeOptions]) -> Encoded:
        """An image, as `prepare` takes it -> its file and what it came to.

        Raises ImageError for an image that cannot be coded, TargetError for a target that cannot be met."""
        return self.compress_batch([image], **options)[0]

    def compress_batch(self, images: Iterable[ImageInput], **options: Unpack[EncodeOptions]) -> list[Encoded]:
        """`compress` for many images: all are in memory at once, and those of similar size share network calls."""
        given: dict[str, Any] = dict(options)
        effort = given.pop("effort", DEFAULT_EFFORT)
        kept = {field.name: given.pop(field.name) for field in fields(ImageOptions) if field.name in given}
        target = Target(**given)
        prepared = [self.prepare(image, ImageOptions(**kept)) for image in images]
        made = []
        for part, sequence in zip(prepared, self.tokenize(prepared, target, effort), strict=True):
            made.append(replace(self.cut(sequence, target, part), notes=part.notes))
        return made

    def decompress(self, data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Decoded:
        """The inverse of `compress`, from `data` as `read` takes it, with at most `tokens` per block.

        Raises FormatError, ModelError or ImageError, and TruncatedError for a cut file unless `allow_partial`."""
        return self.decompress_batch([data], allow_partial=allow_partial, tokens=tokens)[0]

    def decompress_batch(
        self, blobs: Iterable[Data], *, allow_partial: bool = False, tokens: float | None = None
    ) -> list[Decoded]:
        """`decompress` for many files at once."""
        read = [self.read(data, allow_partial=allow_partial, tokens=tokens) for data in blobs]
        return [
            Decoded(self.finish(pixels, part.file), part.file, part.block_tokens, part.partial, part.model.name)
            for part, pixels in zip(read, self.detokenize(read), strict=True)
        ]

    def encode(self, image: ImageInput, **options: Unpack[EncodeOptions]) -> bytes:
        """An image, as `prepare` takes it -> the bytes of its file. Raises what `compress` does."""
        return self.compress(image, **options).data

    def decode(self, data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Image.Image:
        """The inverse of `encode`. Parameters and errors are those of `decompress`."""
        return self.decompress(data, allow_partial=allow_partial, tokens=tokens).image

    def encode_batch(self, images: Iterable[ImageInput], **options: Unpack[EncodeOptions]) -> list[bytes]:
        """Many images -> their files, with the options of `encode`."""
        return [made.data for made in self.compress_batch(images, **options)]

    def decode_batch(
        self, blobs: Iterable[Data], *, allow_partial: bool = False, tokens: float | None = None
    ) -> list[Image.Image]:
        """The inverse of `encode_batch`."""
        return [made.image for made in self.decompress_batch(blobs, allow_partial=allow_partial, tokens=tokens)]


def _listed(sections: Sections) -> str:
    return " and ".join(LABELS[kind] for kind, _ in sections)


def _left_out_by(sections: Sections) -> tuple[str, ...]:
    """The options that leave these sections out."""
    kinds = {kind for kind, _ in sections}
    return (*(["strip"] if kinds - {ALPHA} else []), *(["background"] if ALPHA in kinds else []))
