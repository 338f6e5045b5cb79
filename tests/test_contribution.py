"""Contribution maps: `benchmarks/contribution.py`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.contribution import (
    DIM,
    PANEL,
    SAMPLES,
    Contribution,
    contribution,
    default_indexes,
    other_digits,
    positions_of,
    replacements,
    sheet,
)
from bitstream.container import File, write_file
from bitstream.range_coder import encode_tokens
from codec.errors import UsageError

ALL_TOKENS = 1365  # tokens per block


@pytest.fixture(scope="module")
def pixels(photo) -> np.ndarray:
    return np.asarray(photo.crop((200, 100, 496, 180)))


@pytest.fixture(scope="module")
def prefix(codec, pixels):
    return codec.read(codec.encode(pixels, tokens=ALL_TOKENS).data).prefix


def table(*rows: tuple[float, ...]) -> np.ndarray:
    return np.round(np.array(rows) * (1 << 24)).astype(np.int32)


def test_other_digits_follow_the_tables_given_that_one_differs():
    tables, own = table((0.5, 0.3, 0.2), (0.1, 0.8, 0.1)), np.array([-1, 0], np.int8)
    rng = np.random.default_rng(0)
    drawn = np.array([other_digits(tables, own, rng) for _ in range(8000)])
    assert drawn.dtype == np.int8
    shares = {(a, b): ((drawn == (a, b)).all(1)).mean() for a in (-1, 0, 1) for b in (-1, 0, 1)}
    probabilities = {(a, b): (0.5, 0.3, 0.2)[a + 1] * (0.1, 0.8, 0.1)[b + 1] for a, b in shares}
    assert shares.pop((-1, 0)) == 0
    for digits, share in shares.items():
        assert share == pytest.approx(probabilities[digits] / (1 - 0.4), abs=0.02)


def test_other_digits_are_drawn_even_if_the_entropy_model_is_certain():
    frequencies = np.full((6, 3), 1, np.int32)
    frequencies[:, 1] = (1 << 24) - 2
    rng = np.random.default_rng(0)
    changed = np.array([other_digits(frequencies, np.zeros(6, np.int8), rng) for _ in range(300)])
    assert (np.abs(changed).sum(1) == 1).all()
    assert (np.abs(changed).sum(0) > 20).all()  # each digit changes sometimes
    assert set(np.unique(changed)) == {-1, 0, 1}


def test_positions_are_those_of_the_sequence(codec, prefix):
    """A replaced token changes the symbols of the sequence at its index and at no other of its level."""
    layout, code = prefix.layout, codec.model.code
    original = code.sequence(prefix)
    starts = np.concatenate([[0], np.cumsum(layout.counts)])
    indexes = [0, 1, int(starts[3]) + 5, int(starts[4]), int(starts[8]) + 7, layout.tokens - 1]
    positions = list(positions_of(code, prefix, indexes))
    assert [position.index for position in positions] == indexes
    for position in positions:
        (replacement,) = replacements(position, prefix, 1)
        changed = code.sequence(replacement)  # the order of this level is the same; that of later levels may differ
        (ranks,) = (changed.symbols[position.level] != original.symbols[position.level]).any(1).nonzero()
        assert starts[position.level] + ranks == position.index
        others = (level for level in range(len(original.contexts)) if level != position.level)
        assert all((replacement.digits[level] == prefix.digits[level]).all() for level in others)
        contexts = original.contexts[position.level][position.index - starts[position.level]]
        assert np.array_equal(position.frequencies, code.entropy_models[position.level].frequencies[contexts])


@pytest.mark.parametrize("index", [1, 60, 500])
def test_a_map_is_the_change_in_the_decoded_image(codec, pixels, prefix, index):
    layout, code = prefix.layout, codec.model.code
    (position,) = positions_of(code, prefix, [index])
    (replacement,) = replacements(position, prefix, 1)
    payload = encode_tokens(code.sequence(replacement), layout.tokens)
    data = write_file(File(layout.width, layout.height, codec.model.stream_id, layout.tokens, payload))
    original = codec.encode(pixels, tokens=ALL_TOKENS).data
    difference = np.abs(np.subtract(*(np.asarray(codec.decode(file).image).astype(int) for file in (data, original))))
    (one,) = contribution(codec, pixels, [index], ALL_TOKENS, draws=1)
    assert np.allclose(one.change, difference.mean(2), atol=1e-4)
    assert one.share == pytest.approx(difference.any(2).mean())
    assert 0 < one.share < 1


def test_coarse_tokens_change_large_areas_and_fine_ones_small(codec, pixels, prefix):
    layout = prefix.layout
    last = layout.tokens - 1
    coarse, fine = contribution(codec, pixels, [last, 0], ALL_TOKENS, draws=2)
    assert (coarse.index, coarse.level, fine.index, fine.level) == (0, 0, last, len(layout.levels) - 1)
    assert coarse.share > 2 * fine.share > 0
    y, x = 16 * fine.row + 8, 16 * fine.column + 8
    strongest = np.unravel_index(fine.change.argmax(), fine.change.shape)
    assert max(abs(strongest[0] - y), abs(strongest[1] - x)) <= 24
    rows, columns = np.indices(fine.change.shape)
    far = np.maximum(abs(rows - y), abs(columns - x)) > 100
    assert far.any()
    assert fine.change[far].max(initial=0) < 0.1 * fine.change.max()


def test_maps_are_reproducible_and_independent_of_other_tokens(codec, pixels):
    steps = []
    first = contribution(codec, pixels, [0, 30], 200, draws=2, progress=lambda: steps.append(1))
    (again,) = contribution(codec, pixels, [30, 30], 200, draws=2)
    assert np.array_equal(first[1].change, again.change)
    assert len(steps) == 2


def test_some_tokens_of_each_level_are_chosen(codec):
    layout = codec.model.code.layout(600, 400)
    indexes = default_indexes(layout, layout.tokens)
    assert [layout.split(index + 1)[0] for index in indexes[:SAMPLES]] == [1, 3, 5]
    assert len(indexes) == SAMPLES * len(layout.levels)
    starts = np.concatenate([[0], np.cumsum(layout.counts)[:-1]])
    assert indexes[::SAMPLES] == starts.tolist()
    assert default_indexes(layout, 7) == [0, 2, 4, 6, 6, 6]


def test_short_sequences_have_fewer_levels(codec, pixels):
    maps = contribution(codec, pixels, None, 4, draws=1)
    assert {one.level for one in maps} == {0, 1}
    assert [one.index for one in maps] == sorted({one.index for one in maps})


@pytest.mark.parametrize("index", [-1, 12])
def test_indexes_outside_the_sequence_are_refused(codec, pixels, index):
    with pytest.raises(UsageError, match=f"no token {index}"):
        contribution(codec, pixels, [0, index], 1)


def corner_map(height: int, width: int, level: int, index: int, change: float) -> Contribution:
    """A map that changes the upper left corner."""
    grid = np.zeros((height, width), np.float32)
    grid[: max(1, height // 4), : max(1, width // 4)] = change
    return Contribution(index, level, 0, 0, grid, 0.0625)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (40, 30), (300, 900)])
def test_a_sheet_has_a_row_of_panels_for_each_level(size):
    pixels = np.full((*size, 3), 200, np.uint8)
    one = sheet(pixels, [corner_map(*size, 0, 0, 9.0)])
    three = sheet(pixels, [corner_map(*size, level, level, 9.0) for level in (0, 0, 1, 3)])
    assert one.width == three.width
    assert three.height - one.height == 2 * (one.height - 3 * 18 - 12)  # two rows of panels more below the legend
    many = sheet(pixels, [corner_map(*size, 2, index, 9.0) for index in range(4)])
    assert one.height < many.height < three.height  # five panels take two rows


def test_a_sheet_is_coloured_only_where_pixels_change():
    pixels = np.full((PANEL, PANEL, 3), 200, np.uint8)
    image = np.asarray(sheet(pixels, [corner_map(PANEL, PANEL, 0, 0, 9.0), corner_map(PANEL, PANEL, 0, 1, 0.0)])).astype(int)
    grey = (image == 200 * DIM).all(2)
    rows = (grey.sum(1) > 2 * PANEL).nonzero()[0]  # three panels, two of them with a coloured quarter
    top, left = rows.min(), grey[rows].any(0).argmax()
    assert len(rows) == PANEL
    panels = [image[top : top + PANEL, left + index * (PANEL + 12) :][:, :PANEL] for index in range(3)]
    quarter = PANEL // 4
    for panel, hot in zip(panels, (True, True, False), strict=True):
        assert (panel[quarter:] == 200 * DIM).all()
        assert (panel[:, quarter:] == 200 * DIM).all()
        assert (panel[:quarter, :quarter] == ([252, 255, 164] if hot else 200 * DIM)).all()


def test_a_sheet_can_be_saved_as_an_image(tmp_path, codec, pixels):
    path = tmp_path / "sheet.png"
    sheet(pixels, contribution(codec, pixels, [0, 4], 4, draws=1)).save(path)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert len(image.getcolors(1 << 20)) > 500
