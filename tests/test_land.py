"""What landing a model does to texts: `benchmarks/tools/land.py`."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from benchmarks.tools.land import card, measure, options_of, quality_rows, replaced


def test_the_texts_hold_the_tables_of_the_studies():
    """So that each row is found again when its numbers change."""
    texts = {name: (ROOT / name).read_text().splitlines() for name in ("README.md", "MODEL.md")}
    rows = card(ROOT / "benchmarks" / "results" / "kodak")
    assert [row for row in rows if row not in texts["MODEL.md"]] == []
    ours = [row for row in rows if row.startswith("| **Tessera**")]
    assert len(ours) == 3
    assert ours[0] in texts["README.md"]
    (clic,) = [row for row in card(ROOT / "benchmarks" / "results" / "clic") if row.startswith("| **Tessera**")]
    assert clic in texts["MODEL.md"]


def test_rows_are_replaced_whole():
    text = "a | 1 |\n| 1 |\nno | 1 |\n| 2 |\n"
    assert replaced(text, [("| 1 |", "| 3 |"), ("| 2 |", "| 2 |")]) == "a | 1 |\n| 3 |\nno | 1 |\n| 2 |\n"


def test_a_study_is_measured_as_before():
    command = "tessera bench 'a b.png' --codecs tessera,webp --no-speed --metrics lpips,psnr --bpp 0.1,0.4 --cache cache"
    assert options_of(command) == ["--metrics", "lpips,psnr", "--bpp", "0.1,0.4"]


def test_images_of_another_study_are_refused(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"images": ["a.png, 3x2", "b, c.png, 3x2"]}))
    with pytest.raises(SystemExit, match=r"no image called b, c\.png"):
        measure(tmp_path, [tmp_path / "a.png"], tmp_path / "lpips.npz")


def test_qualities_become_rows():
    rows = (
        "| 0 | 85 | 596 | 0.549 | 21.00 | 5,042 | 0.462 | 30.00 |",
        "| 25 | 469 | 4,427 | 0.325 | 23.00 | 20,989 | 0.169 | 31.00 |",
    )
    printed = "\n".join(rows) + "\n"
    assert quality_rows(printed) == ("| bytes | 596 | 4,427 |", "| LPIPS | 0.549 | 0.325 |")
