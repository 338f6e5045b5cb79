"""The rows that `benchmarks/tools/release.py` replaces in the documentation, and the options that it measures with."""

from __future__ import annotations

import json

import pytest

from benchmarks.tools.release import TEXTS, measure, measured_options, quality_rows, replaced, table_rows
from tests.helpers import ROOT


def test_the_documentation_holds_every_row_that_a_release_replaces():
    lines = {line for name in TEXTS for line in (ROOT / name).read_text().splitlines()}
    rows = table_rows(ROOT / "benchmarks" / "results" / "kodak")
    assert len(rows) > 40
    assert [row for row in rows if row not in lines] == []


def test_only_complete_lines_are_replaced():
    text = "a | 1 |\n| 1 |\nno | 1 |\n| 2 |\n"
    assert replaced(text, [("| 1 |", "| 3 |"), ("| 2 |", "| 2 |")]) == "a | 1 |\n| 3 |\nno | 1 |\n| 2 |\n"


def test_a_study_is_measured_with_the_metrics_and_rates_of_its_command():
    command = "tessera bench 'a b.png' --codecs tessera,webp --no-speed --metrics lpips,psnr --bpp 0.1,0.4 --cache cache"
    assert measured_options(command) == ["--metrics", "lpips,psnr", "--bpp", "0.1,0.4"]


def test_images_of_another_study_are_refused(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"images": ["a.png, 3x2", "b, c.png, 3x2"]}))
    with pytest.raises(SystemExit, match=r"b, c\.png"):
        measure(tmp_path, [tmp_path / "a.png"], tmp_path / "lpips.npz")


def test_rows_of_qualities_become_columns():
    rows = (
        "| 0 | 85 | 596 | 0.549 | 21.00 | 5,042 | 0.462 | 30.00 |",
        "| 25 | 469 | 4,427 | 0.325 | 23.00 | 20,989 | 0.169 | 31.00 |",
    )
    printed = "\n".join(rows) + "\n"
    assert quality_rows(printed) == ("| bytes | 596 | 4,427 |", "| LPIPS | 0.549 | 0.325 |")
