"""Series: images that resemble each other, and are coded against each other.

| mode | an image is coded against |
|---|---|
| first | the first image |
| previous | the image before it; decoding it needs all images before it |
| auto | the first of a group of images that look alike, if the group takes fewer bytes than its images by themselves |

The first image of a series or group gets a higher quality than asked for, as the intra images of a video do: all others inherit
its errors, or have to correct them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.errors import TesseraError
from codec.image.opening import ImageInput
from codec.image.source import read_source
from codec.options import TARGETS, EncodeOptions
from codec.parallel.pipeline import Outcome, Resources, encode_all
from codec.rate_control import Target
from codec.reading import read_tsr
from codec.references import check_reference
from codec.results import Encoded
from codec.system.context import ProgressListener
from codec.system.inputs import FileInput, path_of

if TYPE_CHECKING:
    from codec.codec import Codec

Result = Outcome[Encoded]
Thumbnail = tuple[tuple[int, int], NDArray[np.float32]]  # height and width of an image, and its colours in a small grid

MAX_GROUP = 64  # images; the files of a group are in memory until it is complete
OPEN_GROUPS = 4  # the latest groups, which an image may join; decoders keep as many references in memory
THUMBNAIL = 16  # pixels, side of a thumbnail
ALIKE = 20.0  # maximum difference of thumbnails in a group; of pairs of the Kodak images, the smallest is 21
RAISE, MAX_RAISE = 7.5, 30  # quality that is added for a reference: whenever the number of images doubles, and at most
MAX_RAISED = 75  # a higher quality costs more bytes than it saves


@dataclass(frozen=True)
class Member:
    """An image of a series."""

    image: ImageInput
    name: str = ""  # of its file, which the files of others name as their reference
    done: FileInput | None = None  # its .tsr file, if it exists


def encode_series(
    codec: Codec,
    members: Sequence[Member],
    options: EncodeOptions,
    resources: Resources | None = None,
    progress: ProgressListener | None = None,
) -> Iterator[Result]:
    """Encodes images in the mode that is the option `reference`. Yields the outcomes of those whose file does not exist.

    Files that exist are references as they are. If the first image fails, the next takes its place. The mode `auto` reads an
    image several times, and yields a group once it is complete.

    Raises UsageError if the options contradict references, or the model has none."""
    check_reference(codec.model, options)
    series = _Series(codec, members, options, resources, progress)
    modes = {"first": series.against_first, "previous": series.against_previous, "auto": series.in_groups}
    return modes[str(options["reference"])]()


def members_of(images: Iterable[ImageInput]) -> list[Member]:
    """Images as the members of a series. The files of those with a path are expected to have its name, ending in .tsr."""
    paths = [(image, path_of(image)) for image in images]
    return [Member(image, f"{Path(path).stem}.tsr" if path else "") for image, path in paths]


def raised_quality(quality: float, images: int) -> float:
    """The quality of the first image of a series, for the quality of the others. It rises with the number of images that share
    the bytes; measured with a fixed camera."""
    raised = quality + min(MAX_RAISE, RAISE * math.log2(max(3, images) / 3))
    return max(quality, min(MAX_RAISED, raised))


class _Series:
    """The images and options of a series. Images are named by their positions among its members."""

    def __init__(
        self,
        codec: Codec,
        members: Sequence[Member],
        options: EncodeOptions,
        resources: Resources | None,
        progress: ProgressListener | None,
    ) -> None:
        self._codec = codec
        self._members = members
        self._options: Any = {name: value for name, value in options.items() if name != "reference"}
        self._target = Target.of(options)
        self._resources = resources
        self._runs = 2 if options["reference"] == "auto" else 1  # of the pipeline, for most images
        self._progress = None if progress is None else lambda share: progress(share / self._runs)

    # The modes

    def against_first(self) -> Iterator[Result]:
        reference, rest = None, list(range(len(self._members)))
        while rest and reference is None:
            index = rest.pop(0)
            reference = self._members[index].done
            if reference is None:
                (alone,) = self._encode([index])
                outcome = self._raised(alone, len(self._members))
                yield outcome
                reference = self._file(outcome)
        yield from self._encode(self._pending(rest), reference)

    def against_previous(self) -> Iterator[Result]:
        reference = None
        for index, member in enumerate(self._members):
            if member.done is None:
                (outcome,) = self._encode([index], reference)
                if reference is None:
                    outcome = self._raised(outcome, len(self._members))
                yield outcome
            reference = member.done or self._file(outcome) or reference

    def in_groups(self) -> Iterator[Result]:
        groups = [group for group in self._groups() if self._pending(group)]
        yield from self._encode([group[0] for group in groups if len(group) == 1])
        for group in groups:
            if len(group) > 1:
                yield from self._in_group(group)

    def _in_group(self, group: list[int]) -> Iterator[Result]:
        """Codes images against the first of them, or all by themselves if that takes fewer bytes."""
        outcomes = sorted(self._encode(self._pending(group)), key=lambda outcome: outcome.index)
        yield from (outcome for outcome in outcomes if outcome.error)
        alone = {outcome.index: outcome for outcome in outcomes if not outcome.error}
        best, rest = dict(alone), list(alone)
        done = (self._members[index].done for index in group)
        reference = next((file for file in done if file is not None and not self._depends(file)), None)
        if rest and reference is None:
            first = rest.pop(0)
            best[first] = self._raised(alone[first], len(group))
            reference = self._file(best[first])
        for outcome in self._encode(rest, reference):
            best[outcome.index] = self._better(alone[outcome.index], outcome)
        chosen = best if self._target.sized or _bytes(best) < _bytes(alone) else alone
        for index, outcome in chosen.items():
            yield replace(outcome, seconds=best[index].seconds, reported=best[index].reported)

    # Their steps

    def _encode(self, indexes: Sequence[int], reference: FileInput | None = None, **changes: Any) -> Iterator[Result]:
        """The outcomes of some images in the pipeline."""
        options = {**self._options, **changes, "reference": reference}
        images = [self._members[index].image for index in indexes]
        for outcome in encode_all(self._codec, images, cast(EncodeOptions, options), self._resources, self._progress):
            yield replace(outcome, index=indexes[outcome.index], reported=outcome.reported / self._runs)

    def _raised(self, alone: Result, images: int) -> Result:
        """The outcome of a reference for this number of images, at a higher quality than that of its target. A target size is a
        limit for every file, so it is kept."""
        if alone.result is None or alone.result.quality is None or self._target.sized or images == 1:
            return alone
        changes: Any = {**dict.fromkeys(TARGETS), "quality": raised_quality(alone.result.quality, images)}
        (raised,) = self._encode([alone.index], **changes)
        return _total(raised if raised.result and alone.result.reached else alone, alone, raised)

    def _better(self, alone: Result, against: Result) -> Result:
        """The smaller file of an image, by itself or against a reference. Files of a target size differ in quality alone; their
        blocks have chosen already."""
        best = alone
        if alone.result and against.result:
            costs = [(not one.reached, len(one.data)) for one in (against.result, alone.result)]
            best = against if self._target.sized or costs[0] < costs[1] else alone
        return _total(best, alone, against)

    def _file(self, outcome: Result) -> FileInput | None:
        """The file of an image, as a reference."""
        return _NamedFile(outcome.result.data, self._members[outcome.index].name) if outcome.result else None

    def _depends(self, file: FileInput) -> bool:
        """Whether a file has a reference itself."""
        return read_tsr(file, self._codec.max_pixels).reference is not None

    def _pending(self, indexes: Sequence[int]) -> list[int]:
        return [index for index in indexes if self._members[index].done is None]

    # Likeness

    def _groups(self) -> list[list[int]]:
        """The images in groups that look alike: an image joins the one of the latest groups whose first image is most similar,
        or starts a group."""
        groups: list[list[int]] = []
        latest: list[tuple[list[int], Thumbnail]] = []  # with the thumbnails of their first images
        for index, member in enumerate(self._members):
            thumbnail = self._thumbnail(member.image)
            distances = [_distance(first, thumbnail) if len(group) < MAX_GROUP else np.inf for group, first in latest]
            if min(distances, default=np.inf) <= ALIKE:
                latest.append(latest.pop(int(np.argmin(distances))))
                latest[-1][0].append(index)
            else:
                groups.append([index])
                if thumbnail:
                    latest = [*latest, (groups[-1], thumbnail)][-OPEN_GROUPS:]
        return groups

    def _thumbnail(self, image: ImageInput) -> Thumbnail | None:
        """The thumbnail of an image, or None if it cannot be read, which its encoding will report."""
        try:
            pixels = read_source(image, self._options, self._codec.max_pixels).pixels
        except (TesseraError, MemoryError):
            return None
        small = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        height, width = pixels.shape[:2]
        return (height, width), np.asarray(small, np.float32)


class _NamedFile(io.BytesIO):
    """A file in memory that has a name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def _distance(one: Thumbnail, other: Thumbnail | None) -> float:
    """The median difference of two thumbnails, in values of 0 to 255, so that less than half of the image may be new; infinite
    if the images differ in size."""
    if other is None or one[0] != other[0]:
        return np.inf
    return float(np.median(np.abs(one[1] - other[1])))


def _bytes(outcomes: dict[int, Result]) -> int:
    return sum(len(outcome.result.data) for outcome in outcomes.values() if outcome.result)


def _total(outcome: Result, *parts: Result) -> Result:
    """An outcome, with the time and the progress of several."""
    seconds, reported = (sum(getattr(part, name) for part in parts) for name in ("seconds", "reported"))
    return replace(outcome, seconds=seconds, reported=reported)
