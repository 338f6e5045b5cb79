"""Images to bytes and back: `Codec.encode`, and its inverse `Codec.decode` below it.

    encode   read_source -> tokenize   -> write     image, pixels, tokens, bytes
    decode   read        -> detokenize -> restore   and back

`encode_all` and `decode_all` take many images through the same steps, in a pipeline (`codec.parallel.pipeline`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from bitstream.container import File, write_file
from bitstream.sequence import Prefix, TokenSequence
from codec.errors import FormatError, ModelError, TesseraError, UsageError
from codec.image.opening import ImageInput
from codec.image.source import Source, read_source, restore_image
from codec.models.base import Enough, Model, Referencer, Refiner
from codec.models.registry import DEFAULT, model_for, open_model
from codec.options import (
    DEFAULT_EFFORT,
    MAX_PIXELS,
    MODEL_OPTIONS,
    REFINEMENT_STEPS,
    CodecOptions,
    DecodeOptions,
    EncodeOptions,
    check_options,
    has_target,
    is_mode,
    with_target,
)
from codec.rate_control import Decoder, Distance, Target, choose_tokens, quality_of_block_tokens, refine_tokens
from codec.reading import read_tokens, read_tsr
from codec.references import References, check_reference
from codec.results import Decoded, Encoded, Stored
from codec.system.device import ONNX, PACKAGES, TORCH, pick_device, pick_runtime, require_torch
from codec.system.inputs import FileInput, folder_of
from codec.system.process import fork_safe_lock

if TYPE_CHECKING:
    from codec.image.writing import ImageFormat
    from codec.metrics.lpips import LPIPS
    from codec.models.base import Tokenizer
    from codec.parallel.pipeline import Outcome, Resources
    from codec.results import DecodedFile
    from codec.system.context import ProgressListener

LOADING = fork_safe_lock()  # several threads load a network only once


class Codec:
    """A model in memory, to encode and decode any number of images. Use it in a `with` statement, or let it be collected.

    `model` is the name of a bundled or installed model, or the path of a model file. By default, images are encoded with the
    standard model, and files are decoded with the model that wrote them. `device` is 'auto', 'cpu', 'cuda' or 'cuda:N'.
    `runtime` is 'onnx', 'torch' or 'auto': torch on CUDA and for features that need it, ONNX Runtime otherwise. `tile` is the
    largest side of the tiles that an image is computed in, in pixels, for models that work in tiles (default: 2048 to encode,
    1024 to decode). `lpips_weights` is an .npz file for LPIPS targets (default: the file that `tessera models fetch lpips`
    downloads, or torch's cache).

    Raises DeviceError if the device does not exist, UsageError if the runtime does not."""

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
        check_options(CodecOptions, {"runtime": runtime, "tile": tile, "max_pixels": max_pixels})
        self.device = pick_device("cpu" if device == "auto" and runtime == ONNX else device)
        self.runtime = runtime
        pick_runtime(runtime, self.device, (ONNX, TORCH), "")
        self.tile = tile
        self.max_pixels = max_pixels
        self.lpips_weights = Path(lpips_weights) if lpips_weights is not None else None
        self._model_name = model
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}  # keys: fingerprint of the model, runtime
        self._models: dict[bytes, Model] = {}  # keys: stream ids

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Frees the memory of networks. They are loaded again when they are needed."""
        self._tokenizers.clear()

    # One image, and its inverse

    def encode(self, image: ImageInput, **options: Unpack[EncodeOptions]) -> Encoded:
        """Encodes an image: a path, an open file or its bytes, a PIL image, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

        Raises ImageError if the image cannot be read or coded, TargetError if the target cannot be met, UsageError if the
        options contradict each other or the model, ModelError if the model cannot be used."""
        check_options(EncodeOptions, options)
        options = with_target(options)
        source = read_source(image, options, self.max_pixels)
        (sequence,) = self.tokenize([source], **options)
        return self.write(sequence, source, **options)

    def decode(self, file: FileInput | File, **options: Unpack[DecodeOptions]) -> Decoded:
        """Decodes a .tsr file: its bytes, its path, the file open for reading, or its parsed content.

        Raises FormatError if the file is damaged, TruncatedError if it is cut short, unless `allow_partial`, ModelError if the
        model that wrote it is not installed, ImageError if the image is too large."""
        check_options(DecodeOptions, options)
        stored = self.read(file, folder_of(file), **options)
        (pixels,) = self.detokenize([stored])
        return Decoded(stored.file, stored.block_tokens, stored.model.name, restore_image(pixels, stored.file))

    # Many images

    def encode_all(
        self,
        images: Iterable[ImageInput],
        *,
        resources: Resources | None = None,
        progress: ProgressListener | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Iterator[Outcome[Encoded]]:
        """Encodes many images in a pipeline of threads, in bounded memory; yields their outcomes as they complete.

        An image that fails does not stop the others: its outcome has the error. `images` is read only as far as needed, unless
        `reference` is 'first', 'previous' or 'auto': the images are then coded against each other."""
        from codec.parallel.pipeline import encode_all
        from codec.parallel.series import encode_series, members_of

        check_options(EncodeOptions, options)
        options = with_target(options)
        if is_mode(options.get("reference")):
            return encode_series(self, members_of(images), options, resources, progress)
        return encode_all(self, images, options, resources, progress)

    def decode_all(
        self,
        files: Iterable[FileInput],
        *,
        save_as: ImageFormat | str = ".png",
        background: str | None = None,
        resources: Resources | None = None,
        progress: ProgressListener | None = None,
        **options: Unpack[DecodeOptions],
    ) -> Iterator[Outcome[DecodedFile]]:
        """Decodes many .tsr files to image files, as `encode_all` encodes. `save_as` is their format, or its ending.
        Transparent images are composited on `background`, if one is given."""
        from codec.image.writing import image_format
        from codec.parallel.pipeline import decode_all

        check_options(DecodeOptions, options)
        save_as = image_format(save_as) if isinstance(save_as, str) else save_as
        return decode_all(self, files, options, save_as, background, resources, progress)

    # The steps

    def tokenize(self, images: Iterable[ImageInput | Source], **options: Unpack[EncodeOptions]) -> list[TokenSequence]:
        """The tokens of each image, most important first. Every rate is a prefix of this one encoding.

        Without a target, returns all tokens; with a target, the first tokens, enough for `write` to meet it. With an effort
        above the default, tokens are refined for the length that the target asks for. Images of similar size share network
        calls.

        Raises UsageError if the model cannot refine tokens, or has fewer than the target asks for."""
        check_options(EncodeOptions, options)
        self.model.check()  # a file with a wrong stream id could never be read
        sources = [image if isinstance(image, Source) else read_source(image, options, self.max_pixels) for image in images]
        pixels, code, target = [source.pixels for source in sources], self.model.code, Target.of(options)
        reference = options.get("reference")
        if reference is not None:
            check_reference(self.model, options)
        if steps := REFINEMENT_STEPS.get(options.get("effort", DEFAULT_EFFORT), 0):
            _check_refines(self.model)
            refiner = cast(Refiner, self.tokenizer(refining=True))
            pairs = zip(refiner.tokenize(pixels), sources, strict=True)
            return [refine_tokens(*pair, target, self._decoder, refiner, steps) for pair in pairs]
        enough = [target.enough(code, code.layout(s.width, s.height)) for s in sources] if has_target(options) else None
        if reference is not None:
            limits = enough or [Enough()] * len(sources)
            return [self._tokenize_against(reference, *pair, target) for pair in zip(sources, limits, strict=True)]
        return self.tokenizer().tokenize(pixels, enough)

    def detokenize(self, files: Iterable[Stored]) -> list[NDArray[np.uint8]]:
        """The inverse of `tokenize`: pixels (H, W, 3) of each file. Images of one model and similar size share network
        calls."""
        stored = list(files)
        pixels: dict[int, NDArray[np.uint8]] = {}
        groups: dict[Any, list[int]] = {}
        for index, file in enumerate(stored):
            groups.setdefault((file.model.fingerprint, *sorted(file.decode_options.items())), []).append(index)
        for indexes in groups.values():
            first = stored[indexes[0]]
            tokenizer: Any = self.tokenizer(first.model)  # some take options
            members = [stored[index] for index in indexes]
            prefixes = [self._with_reference(member) if member.file.reference else member.prefix for member in members]
            pixels |= zip(indexes, tokenizer.detokenize(prefixes, **first.decode_options), strict=True)
        return [pixels[index] for index in range(len(stored))]

    def write(self, sequence: TokenSequence, source: Source | None = None, /, **options: Unpack[EncodeOptions]) -> Encoded:
        """The file with the tokens that the target asks for, and with the metadata and transparency of `source`.

        Only the search for a PSNR or LPIPS target needs the network; it also needs `source`. Raises TargetError if no
        token fits, UsageError if `tokenize` had another target and the sequence has too few tokens."""
        check_options(EncodeOptions, options)
        target = Target.of(options)
        file, search = choose_tokens(sequence, source, target, self._decoder)
        block_tokens = sequence.layout.block_tokens_of(file.length)
        quality: float | None = quality_of_block_tokens(self.model.code, block_tokens)
        if file.reference:
            quality = target.value if target.kind == "quality" else None
        alone = options.get("reference") is not None and not file.reference
        return Encoded(
            write_file(file),
            file,
            block_tokens,
            quality,
            self.model.name,
            reached=search is None or search.reached,
            measured=search.value if search else None,
            notes=(
                *(source.notes if source else ()),
                *(["coded without the reference, which saves no bytes"] if alone else []),
            ),
        )

    def read(self, file: FileInput | File, folder: str | None = None, /, **options: Unpack[DecodeOptions]) -> Stored:
        """The inverse of `write`: the tokens of a file, at most `tokens` per block. No network is needed. `folder` is
        the folder of the file; a reference is looked for there.

        Raises the same errors as `decode`."""
        check_options(DecodeOptions, options)
        parsed = file if isinstance(file, File) else read_tsr(file, self.max_pixels)
        model = self.model_of(parsed)
        if parsed.reference and not model.refers:
            msg = f"the file has a reference, which {model.name} does not support: the file is damaged"
            raise FormatError(msg)
        prefix = read_tokens(parsed, model.code, options.get("allow_partial", False), options.get("tokens"))
        return Stored(parsed, prefix, model, _model_options(model, options), folder, options.get("reference"))

    # Models and networks

    @cached_property
    def model(self) -> Model:
        """The model that images are encoded with."""
        return open_model(self._model_name or DEFAULT)

    def tokenizer(self, model: Model | None = None, refining: bool = False) -> Tokenizer:
        """The network of a model, by default of `self.model`; it is loaded once. With `refining`, it is a `Refiner`.

        Raises UsageError if the model does not support tiles or the runtime."""
        model = model or self.model
        if self.tile is not None and not model.tiles:
            msg = f"{model.name} does not work in tiles: leave out their size"
            raise UsageError(msg, ("tile",))
        supported = (TORCH,) if refining else model.runtimes
        reason = ""
        if ONNX not in supported:
            reason = f"effort above {DEFAULT_EFFORT} needs torch" if refining else model.why_only_torch
        runtime = pick_runtime(self.runtime, self.device, supported, reason)
        key = model.fingerprint, runtime
        with LOADING:
            if key not in self._tokenizers:
                try:
                    self._tokenizers[key] = model.tokenizer(runtime, self.device, self.tile)
                except (TesseraError, MemoryError):
                    raise
                except Exception as error:  # a runtime that cannot be loaded raises errors of any kind
                    name = PACKAGES[runtime]
                    msg = f"{name} cannot be loaded ({error}): check its installation, and whether there is enough memory"
                    raise ModelError(msg) from error
        if runtime == TORCH:
            from codec.system.process import follow_context_threads

            follow_context_threads()
        return self._tokenizers[key]

    def model_of(self, file: File) -> Model:
        """The model that wrote a file. Raises ModelError if it is not installed, or is not this codec's model."""
        if self._model_name is not None or file.stream_id == self.model.stream_id:
            if file.stream_id != self.model.stream_id:
                ours, theirs = self.model.stream_id.hex(), file.stream_id.hex()
                msg = f"made by a model with stream id {theirs}, and {self.model.name} has {ours}"
                raise ModelError(msg, ("model",))
            return self.model
        if file.stream_id not in self._models:
            self._models[file.stream_id] = model_for(file.stream_id)
        return self._models[file.stream_id]

    # References

    @cached_property
    def _references(self) -> References:
        return References(self)

    def _tokenize_against(self, reference: Any, source: Source, enough: Enough, target: Target) -> TokenSequence:
        """The tokens of the difference between an image and a reference."""
        image, code = self._references.open(reference, self.model), self.model.code
        tokenizer = cast(Referencer, self.tokenizer())
        return tokenizer.tokenize_against(
            source.pixels, image, enough, target.typical(code, code.layout(source.width, source.height))
        )

    def _with_reference(self, stored: Stored) -> Prefix:
        """The tokens of a file, with its reference."""
        assert stored.file.reference
        tokenizer = cast(Referencer, self.tokenizer(stored.model))
        return tokenizer.add_reference(stored.prefix, stored.file.reference, self._references.of(stored))

    # Measures for targets

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.model, self.tokenizer, self._load_lpips)

    def _load_lpips(self) -> Distance:
        with LOADING:
            return self._lpips.distance

    @cached_property
    def _lpips(self) -> LPIPS:
        require_torch("LPIPS")
        from codec.metrics.lpips import LPIPS

        return LPIPS(self.lpips_weights).to(self.device).requires_grad_(False)


def _check_refines(model: Model) -> None:
    """Raises UsageError if tokens cannot be refined."""
    if not model.refines:
        msg = f"effort above {DEFAULT_EFFORT} needs a model that refines tokens, and {model.name} does not"
        raise UsageError(msg)


def _model_options(model: Model, options: DecodeOptions) -> dict[str, Any]:
    """The options of decoding that only some models have. Raises UsageError if the model does not have them."""
    given = {name: value for name, value in options.items() if name in MODEL_OPTIONS and value is not None}
    if unknown := tuple(name for name in given if name not in model.decode_options):
        msg = f"{model.name} has no {' or '.join(unknown)} to choose: leave out {' and '.join(unknown)}"
        raise UsageError(msg, unknown)
    return given
