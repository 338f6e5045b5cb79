"""Pictures to bytes and back: the object that holds a model in memory, and what can be read of a file without one."""

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

from bitstream.coder import Sequence, Tokens, encode_tokens, first_tokens, fit_tokens, sequence_of
from bitstream.container import COLOURED, File, Sections, overhead, payload_max, read_file, write_file
from bitstream.errors import ModelError, TargetError
from bitstream.layout import Layout
from codec.forks import Lock
from codec.lengths import DEFAULT_EFFORT, DEFAULT_TARGET, Target, steps_of_effort
from codec.models import DEFAULT, Model, model_for, open_model
from codec.pictures.colours import neutral
from codec.pictures.images import KEEP, MAX_PIXELS, check_size, prepare, restore
from codec.pictures.inputs import Data, Picture, data_of, picture_of
from codec.pictures.metadata import ALPHA, LABELS, fit_alpha, from_sections
from codec.pictures.profiles import SRGB
from codec.results import Decoded, Encoded, EncodeOptions, PictureOptions, Prepared, Read, read_tokens
from codec.search import SearchResult, psnr, shortest

if TYPE_CHECKING:
    from torch import Tensor

    from codec.lpips import LPIPS

LOADING = Lock()  # threads that come at once load a network once
ALPHA_SHARE = 3  # of a size that is asked for, the part that transparency may take before it loses quality
LPIPS_SIDE = 31  # pixels that AlexNet needs to have anything to look at


class Codec:
    """A model in memory, for many pictures. Use it in a `with` statement, or let it be collected.

    `model` is a bundled model's name or the path of a model file; by default pictures are encoded with the standard model,
    and files decoded with the one that wrote them. `device` is 'auto', 'cpu', 'cuda' or 'cuda:N'. `tile` is the side in
    pixels of the tiles that a picture is worked on in; by default only those above 16 megapixels are cut. `lpips_weights` is
    the .npz that a target of LPIPS needs; by default what `tessera models fetch lpips` fetched, or what the torch cache has."""

    def __init__(
        self,
        model: str | None = None,
        device: str = "auto",
        *,
        tile: int | None = None,
        max_pixels: int = MAX_PIXELS,
        lpips_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        from codec.device import pick_device

        self.device = pick_device(device)
        self.tile = tile
        self.max_pixels = max_pixels
        self.lpips_weights = Path(lpips_weights) if lpips_weights is not None else None
        self._chosen = model
        self._networks: dict[bytes, Any] = {}
        self._models: dict[bytes, Model] = {}

    def __enter__(self) -> Codec:
        return self

    def __exit__(self, *_: object) -> None:
        self._networks.clear()

    @cached_property
    def model(self) -> Model:
        """The model that pictures are encoded with."""
        return open_model(self._chosen or DEFAULT)

    def _network(self, model: Model) -> Any:
        with LOADING:
            if model.stream_id not in self._networks:
                self._networks[model.stream_id] = model.network(self.device)
            return self._networks[model.stream_id]

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

    def prepare(self, image: Picture, options: PictureOptions = KEEP) -> Prepared:
        """A picture -> what the network takes, and what else its file keeps. No network.

        `image` is a PIL image, a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the path of a file, or a file opened
        for reading bytes. Raises ImageError for a picture that cannot be read or coded, or is too large."""
        return prepare(picture_of(image, self.max_pixels), options, self.max_pixels)

    def sequences(
        self, prepared: Iterable[Prepared], target: Target = DEFAULT_TARGET, effort: int = DEFAULT_EFFORT
    ) -> list[tuple[Layout, Sequence]]:
        """All tokens of each picture: one encoding, of which every rate is a prefix. This is the network's part.

        Pictures whose canvases (whole blocks of 256x256 pixels) are equally large share network calls. With an `effort` above
        the default of 3, tokens are refined for the length that `target` asks for."""
        from codec.pyramid.tiles import encode_pixels, together
        from codec.pyramid.tokens import tokenize_batch

        steps, wanted = steps_of_effort(effort), list(prepared)
        pictures = [part.pixels for part in wanted]
        network, prior = self._network(self.model), self.model.prior
        layouts = [Layout(prior.levels, picture.shape[1], picture.shape[0]) for picture in pictures]
        done: dict[int, Sequence] = {}
        for places in together(layouts):
            group = [layouts[place] for place in places]
            latents = encode_pixels(network, group, [pictures[place] for place in places], self.device, self.tile)
            coded = tokenize_batch(network, prior, group, latents)
            for row, (place, layout, tokens) in enumerate(zip(places, group, coded, strict=True)):
                done[place] = sequence_of(prior, layout, *tokens)
                if steps:
                    done[place] = self._refined(wanted[place], layout, done[place], latents[row : row + 1], target, steps)
        return [(layout, done[place]) for place, layout in enumerate(layouts)]

    def _refined(
        self, part: Prepared, layout: Layout, sequence: Sequence, latents: Tensor, target: Target, steps: int
    ) -> Sequence:
        """A better sequence for the length that a target asks for, from the picture's latents (1, C, h, w)."""
        from codec.pyramid.refine import goal_of, refine
        from codec.pyramid.tokens import tokenize_batch

        try:
            length = self.cut(layout, sequence, target, part).file.length
        except TargetError:  # it will be raised when the sequence is cut
            return sequence

        def squared_error(length: int) -> float:
            drawn = self._drawn(layout, sequence, length, part.greyness)
            return float(np.square(drawn.astype(np.float32) - part.pixels).sum(dtype=np.float64))

        sized = target.budget(layout.width, layout.height) is not None
        goal = goal_of(layout, sequence, length, squared_error, sized)
        if goal is None:
            return sequence
        network, prior = self._network(self.model), self.model.prior
        better = refine(network, prior, layout, part.pixels, latents, goal, steps)
        return sequence_of(prior, layout, *tokenize_batch(network, prior, [layout], better)[0])

    def sequence(self, image: Picture) -> tuple[Layout, Sequence]:
        """`sequences` of one picture."""
        return self.sequences([self.prepare(image)])[0]

    def cut(
        self,
        layout: Layout,
        sequence: Sequence,
        target: Target,
        part: Prepared | None = None,
    ) -> Encoded:
        """The file that a target asks for, with all that `part` keeps beside pixels. Raises TargetError where no token fits.

        No network, but where `target.draws`: such a target is looked for by drawing, and compared with the picture."""
        budget = target.budget(layout.width, layout.height)
        found = self._search(layout, sequence, target, part) if target.draws else None
        sections, space, greyness = (part.sections, part.space, part.greyness) if part else ((), SRGB, COLOURED)
        file = File(layout.width, layout.height, self.model.stream_id, layout.tokens, b"", sections, space, greyness)
        if budget is None:
            length = found.length if found else target.length(layout)
            payload = encode_tokens(sequence, length)
        else:
            most = min(budget, payload_max(layout.width, layout.height))
            room = budget - overhead(file, most)
            if part and part.alpha is not None:
                sections = fit_alpha(sections, part.alpha, (room + len(dict(sections)[ALPHA])) // ALPHA_SHARE)
                file = replace(file, sections=sections)
                room = budget - overhead(file, most)
            length, payload = fit_tokens(sequence, room) if room >= 0 else (0, b"")
            if length < 1:
                length, payload = 1, encode_tokens(sequence, 1)
        file = replace(file, length=length, payload=payload)
        data = write_file(file)
        if budget is not None and len(data) > budget:
            msg = f"a {layout.width}x{layout.height} picture does not fit {budget} bytes: the smallest file has {len(data)}"
            if sections:
                msg += f", {file.section_bytes} of them for its {_listed(sections)}"
            raise TargetError(msg, _left_out_by(sections))
        made = Encoded(data, read_file(data), layout.block_tokens_of(length))
        return replace(made, reached=found.reached, measured=found.value) if found else made

    def _search(self, layout: Layout, sequence: Sequence, target: Target, part: Prepared | None) -> SearchResult:
        """The length that a target of quality asks for, by drawing. Raises TargetError where LPIPS cannot be measured."""
        if part is None:
            msg = "a target of quality is looked for by comparing: give the picture"
            raise TypeError(msg)
        original, greyness = part.pixels, part.greyness

        def draw(length: int) -> NDArray[np.uint8]:
            return self._drawn(layout, sequence, length, greyness)

        bits = sequence.bits().cumsum()
        if target.target_psnr is not None:
            return shortest(lambda length: psnr(draw(length), original), target.target_psnr, bits, higher_is_better=True)
        assert target.target_lpips is not None
        if min(layout.width, layout.height) < LPIPS_SIDE:
            msg = f"LPIPS looks at sides of {LPIPS_SIDE} pixels and more, not {layout.width}x{layout.height}: use target psnr"
            raise TargetError(msg)
        with LOADING:
            distance = self._lpips.distance
        return shortest(lambda length: distance(draw(length), original), target.target_lpips, bits, higher_is_better=False)

    @cached_property
    def _lpips(self) -> LPIPS:
        from codec.lpips import LPIPS

        return LPIPS(self.lpips_weights).to(self.device).requires_grad_(False)

    def read(self, data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Read:
        """The tokens of a file, at most `tokens` per block; a cut file needs `allow_partial`. No network.

        `data` is the file's bytes, its path, or the file opened for reading bytes. Raises FormatError, TruncatedError,
        ModelError or ImageError."""
        file = read_file(data_of(data))
        check_size(file.width, file.height, self.max_pixels)
        model = self._model_of(file)
        return Read(file, *read_tokens(file, model.prior, allow_partial, tokens), model.name)

    def draw(self, read: Iterable[Read]) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of each. This is the network's part; pictures of one model and equally large canvases share its
        calls."""
        from codec.pyramid.tiles import together

        files = list(read)
        done: dict[int, NDArray[np.uint8]] = {}
        for stream_id in dict.fromkeys(part.file.stream_id for part in files):
            mine = [place for place, part in enumerate(files) if part.file.stream_id == stream_id]
            model = self._model_of(files[mine[0]].file)
            for group in together([files[place].layout for place in mine]):
                places = [mine[index] for index in group]
                layouts, tokens = [files[place].layout for place in places], [files[place].tokens for place in places]
                done |= zip(places, self._pixels(model, layouts, tokens), strict=True)
        return [done[place] for place in range(len(files))]

    def _pixels(self, model: Model, layouts: list[Layout], tokens: list[Tokens]) -> list[NDArray[np.uint8]]:
        """Pixels (H, W, 3) of pictures whose canvases are of one size."""
        from codec.pyramid.tiles import decode_pixels
        from codec.pyramid.tokens import detokenize_batch

        network = self._network(model)
        latents, known = detokenize_batch(network, layouts, tokens, self.device)
        return decode_pixels(network, layouts, latents, known, self.tile)

    def _drawn(self, layout: Layout, sequence: Sequence, length: int, greyness: int) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) that a decoder makes of the first tokens of a sequence."""
        return neutral(self._pixels(self.model, [layout], [first_tokens(sequence, layout, length)])[0], greyness)

    def finish(self, pixels: NDArray[np.uint8], file: File) -> Image.Image:
        """The picture in the mode that it had, L, LA, RGB or RGBA; profile, EXIF and XMP are in its `info`. No network.

        Raises FormatError for damaged sections."""
        return restore(pixels, from_sections(file.sections, file.width, file.height, file.space), file.greyness)

    def compress(self, image: Picture, **options: Unpack[EncodeOptions]) -> Encoded:
        """A picture, as `prepare` takes it -> its file and what it came to.

        Raises ImageError for a picture that cannot be coded, TargetError for a target that cannot be met."""
        return self.compress_batch([image], **options)[0]

    def compress_batch(self, images: Iterable[Picture], **options: Unpack[EncodeOptions]) -> list[Encoded]:
        """`compress` for many pictures: all are in memory at once, and those of similar size share network calls."""
        given: dict[str, Any] = dict(options)
        effort = given.pop("effort", DEFAULT_EFFORT)
        kept = {field.name: given.pop(field.name) for field in fields(PictureOptions) if field.name in given}
        target = Target(**given)
        prepared = [self.prepare(image, PictureOptions(**kept)) for image in images]
        made = []
        for part, (layout, sequence) in zip(prepared, self.sequences(prepared, target, effort), strict=True):
            made.append(replace(self.cut(layout, sequence, target, part), notes=part.notes))
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
            Decoded(self.finish(pixels, part.file), part.file, part.block_tokens, part.partial, part.model)
            for part, pixels in zip(read, self.draw(read), strict=True)
        ]

    def encode(self, image: Picture, **options: Unpack[EncodeOptions]) -> bytes:
        """A picture, as `prepare` takes it -> the bytes of its file. Raises what `compress` does."""
        return self.compress(image, **options).data

    def decode(self, data: Data, *, allow_partial: bool = False, tokens: float | None = None) -> Image.Image:
        """The inverse of `encode`. Parameters and errors are those of `decompress`."""
        return self.decompress(data, allow_partial=allow_partial, tokens=tokens).image

    def encode_batch(self, images: Iterable[Picture], **options: Unpack[EncodeOptions]) -> list[bytes]:
        """Many pictures -> their files, with the options of `encode`."""
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
