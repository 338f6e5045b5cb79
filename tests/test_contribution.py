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
    other_digits,
    others,
    places_of,
    sheet,
    some_of_each_level,
)
from bitstream.container import File, read_file, write_file
from bitstream.range_coder import encode_tokens
from codec.codec import read_tokens
from codec.errors import UsageError

FULL = 1365  # tokens per block


@pytest.fixture(scope="module")
def pixels(photo) -> np.ndarray:
    return np.asarray(photo.crop((200, 100, 496, 180)))


@pytest.fixture(scope="module")
def sent(codec, pixels):
    return read_tokens(read_file(codec.encode(pixels, tokens=FULL).data), codec.model.code)


def table(*rows: tuple[float, ...]) -> np.ndarray:
    return np.round(np.array(rows) * (1 << 24)).astype(np.int32)


def test_other_digits_follow_the_tables_given_that_one_differs():
    tables, own = table((0.5, 0.3, 0.2), (0.1, 0.8, 0.1)), np.array([-1, 0], np.int8)
    rng = np.random.default_rng(0)
    drawn = np.array([other_digits(tables, own, rng) for _ in range(8000)])
    assert drawn.dtype == np.int8
    seen = {(a, b): ((drawn == (a, b)).all(1)).mean() for a in (-1, 0, 1) for b in (-1, 0, 1)}
    chances = {(a, b): (0.5, 0.3, 0.2)[a + 1] * (0.1, 0.8, 0.1)[b + 1] for a, b in seen}
    assert seen.pop((-1, 0)) == 0
    for digits, share in seen.items():
        assert share == pytest.approx(chances[digits] / (1 - 0.4), abs=0.02)


def test_other_digits_are_found_where_the_prior_is_sure():
    frequencies = np.full((6, 3), 1, np.int32)
    frequencies[:, 1] = (1 << 24) - 2
    rng = np.random.default_rng(0)
    changed = np.array([other_digits(frequencies, np.zeros(6, np.int8), rng) for _ in range(300)])
    assert (np.abs(changed).sum(1) == 1).all()
    assert (np.abs(changed).sum(0) > 20).all()  # each digit in its turn
    assert set(np.unique(changed)) == {-1, 0, 1}


def test_places_are_those_that_tokens_are_sent_in(codec, sent):
    """Found by changing a token and looking where the sequence differs."""
    layout, tokens = sent.layout, sent
    code = codec.model.code
    before = code.sequence(tokens)
    starts = np.concatenate([[0], np.cumsum(layout.counts)])
    wanted = [0, 1, int(starts[3]) + 5, int(starts[4]), int(starts[8]) + 7, layout.tokens - 1]
    found = list(places_of(code, tokens, wanted))
    assert [place.place for place in found] == wanted
    for place in found:
        (other,) = others(place, tokens, 1)
        after = code.sequence(other)  # this level is in the order that it was in, later ones may not be
        (rows,) = (after.symbols[place.level] != before.symbols[place.level]).any(1).nonzero()
        assert starts[place.level] + rows == place.place
        same = (level for level in range(len(before.contexts)) if level != place.level)
        assert all((other.digits[level] == tokens.digits[level]).all() for level in same)
        classes = before.contexts[place.level][place.place - starts[place.level]]
        assert np.array_equal(place.frequencies, code.entropy_models[place.level].frequencies[classes])


@pytest.mark.parametrize("place", [1, 60, 500])
def test_a_map_is_what_the_decoder_makes_of_the_change(codec, pixels, sent, place):
    layout, tokens = sent.layout, sent
    code = codec.model.code
    (where,) = places_of(code, tokens, [place])
    (other,) = others(where, tokens, 1)
    payload = encode_tokens(code.sequence(other), layout.tokens)
    data = write_file(File(layout.width, layout.height, codec.model.stream_id, layout.tokens, payload))
    pair = [np.asarray(codec.decode(each).image).astype(int) for each in (data, codec.encode(pixels, tokens=FULL).data)]
    difference = np.abs(pair[0] - pair[1])
    (found,) = contribution(codec, pixels, [place], FULL, draws=1)
    assert np.allclose(found.change, difference.mean(2), atol=1e-4)
    assert found.share == pytest.approx(difference.any(2).mean())
    assert 0 < found.share < 1


def test_coarse_tokens_reach_far_and_fine_ones_stay_where_they_are(codec, pixels, sent):
    layout = sent.layout
    last = layout.tokens - 1
    coarse, fine = contribution(codec, pixels, [last, 0], FULL, draws=2)
    assert (coarse.place, coarse.level, fine.place, fine.level) == (0, 0, last, len(layout.levels) - 1)
    assert coarse.share > 2 * fine.share > 0
    y, x = (16 * at + 8 for at in (fine.row, fine.column))
    heaviest = np.unravel_index(fine.change.argmax(), fine.change.shape)
    assert max(abs(heaviest[0] - y), abs(heaviest[1] - x)) <= 24
    rows, columns = np.indices(fine.change.shape)
    far = np.maximum(abs(rows - y), abs(columns - x)) > 100
    assert far.any()
    assert fine.change[far].max(initial=0) < 0.1 * fine.change.max()


def test_maps_are_the_same_in_every_call_and_whoever_else_is_asked_for(codec, pixels):
    steps = []
    first = contribution(codec, pixels, [0, 30], 200, draws=2, progress=lambda: steps.append(1))
    (again,) = contribution(codec, pixels, [30, 30], 200, draws=2)
    assert np.array_equal(first[1].change, again.change)
    assert len(steps) == 2


def test_some_tokens_of_each_level_are_chosen(codec):
    layout = codec.model.code.layout(600, 400)
    places = some_of_each_level(layout, layout.tokens)
    assert [layout.split(place + 1)[0] for place in places[:SAMPLES]] == [1, 3, 5]
    assert len(places) == SAMPLES * len(layout.levels)
    starts = np.concatenate([[0], np.cumsum(layout.counts)[:-1]])
    assert places[::SAMPLES] == starts.tolist()
    assert some_of_each_level(layout, 7) == [0, 2, 4, 6, 6, 6]


def test_short_sequences_have_fewer_levels(codec, pixels):
    found = contribution(codec, pixels, None, 4, draws=1)
    assert {one.level for one in found} == {0, 1}
    assert [one.place for one in found] == sorted({one.place for one in found})


@pytest.mark.parametrize("place", [-1, 12])
def test_places_that_are_not_sent_are_refused(codec, pixels, place):
    with pytest.raises(UsageError, match=f"there is no token {place}: this image has 0 to 1 at 1 tokens per block"):
        contribution(codec, pixels, [0, place], 1)


def made_up(height: int, width: int, level: int, place: int, change: float) -> Contribution:
    grid = np.zeros((height, width), np.float32)
    grid[: max(1, height // 4), : max(1, width // 4)] = change
    return Contribution(place, level, 0, 0, grid, 0.0625)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (40, 30), (300, 900)])
def test_a_sheet_has_a_row_of_panels_for_each_level(size):
    pixels = np.full((*size, 3), 200, np.uint8)
    one = sheet(pixels, [made_up(*size, 0, 0, 9.0)])
    three = sheet(pixels, [made_up(*size, level, level, 9.0) for level in (0, 0, 1, 3)])
    assert one.width == three.width
    assert three.height - one.height == 2 * (one.height - 3 * 18 - 12)  # two bands more below the head
    many = sheet(pixels, [made_up(*size, 2, place, 9.0) for place in range(4)])
    assert one.height < many.height < three.height  # 1 + 4 panels wrap


def test_a_sheet_is_hot_where_pixels_change_and_grey_elsewhere():
    pixels = np.full((PANEL, PANEL, 3), 200, np.uint8)
    image = np.asarray(sheet(pixels, [made_up(PANEL, PANEL, 0, 0, 9.0), made_up(PANEL, PANEL, 0, 1, 0.0)])).astype(int)
    grey = (image == 200 * DIM).all(2)
    rows = (grey.sum(1) > 2 * PANEL).nonzero()[0]  # three panels, two of them with a hot quarter
    top, left = rows.min(), grey[rows].any(0).argmax()
    assert len(rows) == PANEL
    panels = [image[top : top + PANEL, left + at * (PANEL + 12) :][:, :PANEL] for at in range(3)]
    quarter = PANEL // 4
    for panel, hot in zip(panels, (True, True, False), strict=True):
        assert (panel[quarter:] == 200 * DIM).all()
        assert (panel[:, quarter:] == 200 * DIM).all()
        assert (panel[:quarter, :quarter] == ([252, 255, 164] if hot else 200 * DIM)).all()


def test_a_sheet_can_be_saved_as_a_image(tmp_path, codec, pixels):
    path = tmp_path / "sheet.png"
    sheet(pixels, contribution(codec, pixels, [0, 4], 4, draws=1)).save(path)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert len(image.getcolors(1 << 20)) > 500
