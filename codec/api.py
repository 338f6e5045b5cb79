"""Pictures to bytes and back: the object that holds a model in memory, and what can be read of a file without one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bitstream.coder import Sequence, Tokens, decode_tokens, encode_tokens, fit_tokens, sequence_of
from bitstream.container import File, read_file, write_file
from bitstream.errors import FormatError, ModelError, TruncatedError
from bitstream.layout import Layout
from bitstream.prior import Prior
from codec.images import MAX_PIXELS, check_size, to_pixels
from codec.lengths import Target, TargetError
from codec.weights import DEFAULT, Model, model_for, open_model


@dataclass(frozen=True)
class Encoded:
    """A picture's bytes, and what they came to."""

    data: bytes
    file: File
    tokens: float  # a block of 256x256 pixels

    @property
    def bpp(self) -> float:
        """Bits a pixel of the whole file."""
        return 8 * len(self.data) / (self.file.width * self.file.height)


@dataclass(frozen=True)
class Decoded:
    """A picture, and how much of its file went into it."""

    image: Image.Image
    file: File
    tokens: float  # a block of 256x256 pixels
    partial: bool  # tokens were missing because the file is cut
    model: str  # its name


def read_tokens(file: File, prior: Prior, allow_partial: bool = False, tokens: float | None = None) -> tuple[Layout, Tokens]:
    """The tokens of a file, at most `tokens` a block, without torch.

    Raises TruncatedError for a cut file unless `allow_partial`, and FormatError for a damaged one: a file whose checksum is
    wrong is cut if its tokens run out, and damaged if they do not."""
    layout = Layout(prior.levels, file.width, file.height)
    if file.length > layout.tokens:
        msg = f"{file.length} tokens for a picture that has {layout.tokens}: the file is damaged"
        raise FormatError(msg)
    length = file.length if tokens is None or not file.whole else min(file.length, layout.length_of(tokens))
    read = decode_tokens(prior, layout, file.payload, length, partial=not file.whole)
    if file.whole:
        return layout, read
    if read.length == file.length:
        msg = "the checksum is wrong: the file is damaged, get it again"
        raise FormatError(msg)
    if not allow_partial:
        msg = f"the file is cut short: {read.length} of {file.length} tokens are there; decode them with --allow-partial"
        raise TruncatedError(msg)
    if tokens is not None:
        read = decode_tokens(prior, layout, file.payload, min(read.length, layout.length_of(tokens)), partial=True)
    return layout, read


class Codec:
    """A model in memory, for many pictures. Use it in a `with` statement, or let it be collected.

    `model` is a bundled model's name or the path of a model file; by default pictures are encoded with the standard model,
    and files decoded with the one that wrote them. `device` is 'auto', 'cpu', 'cuda' or 'cuda:N'. `tile` is the side in
    pixels of the tiles that a picture is worked on in; by default only those above 16 megapixels are cut."""

    def __init__(
        self, model: str | None = None, device: str = "auto", *, tile: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        from codec.device import pick_device

        self.device = pick_device(device)
        self.tile = tile
        self.max_pixels = max_pixels
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
        if model.stream_id not in self._networks:
            self._networks[model.stream_id] = model.network(self.device)
        return self._networks[model.stream_id]

    def _model_of(self, file: File) -> Model:
        """The model that wrote a file. Raises ModelError if it is not there, or is not the one that was named."""
        if self._chosen is not None or file.stream_id == self.model.stream_id:
            if file.stream_id != self.model.stream_id:
                mine, theirs = self.model.stream_id.hex(), file.stream_id.hex()
                msg = f"made by a model with stream id {theirs}, and {self.model.name} has {mine}: name another with --model"
                raise ModelError(msg)
            return self.model
        if file.stream_id not in self._models:
            self._models[file.stream_id] = model_for(file.stream_id)
        return self._models[file.stream_id]

    def sequence(self, image: Image.Image | NDArray[np.uint8], background: str | None = None) -> tuple[Layout, Sequence]:
        """All tokens of a picture: one encoding, of which every rate is a prefix."""
        from codec.tiles import encode_pixels
        from codec.tokens import tokenize

        pixels = to_pixels(image, background)
        height, width = pixels.shape[:2]
        check_size(width, height, self.max_pixels)
        network, prior = self._network(self.model), self.model.prior
        layout = Layout(prior.levels, width, height)
        latents = encode_pixels(network, layout, pixels, self.device, self.tile)
        return layout, sequence_of(prior, layout, tokenize(network, prior, layout, latents))

    def cut(self, layout: Layout, sequence: Sequence, target: Target) -> Encoded:
        """The file that a target asks for. Raises TargetError where not even one token fits."""
        empty = File(layout.width, layout.height, self.model.stream_id, layout.tokens, b"")
        budget = target.budget(layout.width, layout.height)
        if budget is None:
            length = target.length(layout)
            payload = encode_tokens(sequence, length)
        else:
            header = len(write_file(empty))
            length, payload = fit_tokens(sequence, budget - header) if budget >= header else (0, b"")
            if length < 1:
                length, payload = 1, encode_tokens(sequence, 1)
        file = File(layout.width, layout.height, self.model.stream_id, length, payload)
        data = write_file(file)
        if budget is not None and len(data) > budget:
            msg = f"a {layout.width}x{layout.height} picture does not fit {budget} bytes: the smallest file has {len(data)}"
            raise TargetError(msg)
        return Encoded(data, read_file(data), layout.block_tokens_of(length))

    def compress(self, image: Image.Image | NDArray[np.uint8], *, background: str | None = None, **target: Any) -> Encoded:
        """A picture -> its file and what it came to. `target` is at most one of quality, tokens, target_size and target_bpp,
        as in `codec.lengths.Target`; `background` is a colour that transparency is laid on.

        Raises ImageError for a picture that cannot be coded, TargetError for a target that cannot be met."""
        wanted = Target(**target)
        return self.cut(*self.sequence(image, background), wanted)

    def decompress(self, data: bytes, *, allow_partial: bool = False, tokens: float | None = None) -> Decoded:
        """The inverse of `compress`, with at most `tokens` a block; a cut file needs `allow_partial`.

        Raises FormatError, TruncatedError, ModelError or ImageError."""
        from codec.tiles import decode_pixels
        from codec.tokens import detokenize

        file = read_file(data)
        check_size(file.width, file.height, self.max_pixels)
        model = self._model_of(file)
        layout, read = read_tokens(file, model.prior, allow_partial, tokens)
        network = self._network(model)
        latents, known = detokenize(network, layout, read, self.device)
        pixels = decode_pixels(network, layout, latents, known, self.tile)
        return Decoded(Image.fromarray(pixels), file, layout.block_tokens_of(read.length), not file.whole, model.name)

    def encode(self, image: Image.Image | NDArray[np.uint8], **options: Any) -> bytes:
        """A picture, or pixels (H, W, 3) uint8 -> the bytes of its file, with the options of `compress`."""
        return self.compress(image, **options).data

    def decode(self, data: bytes, **options: Any) -> Image.Image:
        """The inverse of `encode`, with the options of `decompress`."""
        return self.decompress(data, **options).image

    def encode_batch(self, images: Iterable[Image.Image | NDArray[np.uint8]], **options: Any) -> list[bytes]:
        """Many pictures -> their files, with the options of `encode`."""
        return [self.encode(image, **options) for image in images]

    def decode_batch(self, blobs: Iterable[bytes], **options: Any) -> list[Image.Image]:
        """The inverse of `encode_batch`, with the options of `decode`."""
        return [self.decode(data, **options) for data in blobs]
