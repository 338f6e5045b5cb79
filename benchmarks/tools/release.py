"""Makes a model the standard model.

Replaces its weights and graphs, the golden files, the fuzzer's corpus, Tessera's files under `benchmarks/results/`, and the
rows and plots of README.md and docs/ that depend on them.

    python -m benchmarks.tools.release new.safetensors --lpips lpips_alex.npz --study kodak kodak/*.png --study clic clic/*.png

A study is measured again with the metrics and rates of its command, on the images that it names. Needs the extra `bench`. The
end of the output lists the updates that remain to be made by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks.curves import delta
from benchmarks.export import delta_json, write_json_file
from benchmarks.metrics import METRICS
from benchmarks.records import TESSERA, TESSERA_PSNR
from benchmarks.tools.tables import COLOUR, MAIN, MORE, RECOGNITION, delta_table, rate_table, read_series, short_table
from codec.models.registry import BUNDLED

ROOT = Path(__file__).parent.parent.parent
TEXTS = ("README.md", "docs/benchmarks.md", "docs/targets.md")
OWN = (TESSERA, TESSERA_PSNR)
ANCHOR = "webp-scaled"  # reference codec for BD-rates, as in `tessera bench`
KEPT_OPTIONS = ("--metrics", "--bpp")  # options that are copied from a study's command
BY_HAND = """\
By hand: MODEL.md; sentences with numbers in README.md and docs/; `bench recognition`; docs/viewer.webp; docs/comparison.webp
(benchmarks.tools.compare); the row of training-curve.csv and its plot (benchmarks.tools.held_out); benchmarks.tools.prefixes;
the peaks in docs/benchmarks.md; training-log.md; CHANGELOG.md; numbers in tests.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lpips", type=Path, required=True, help=".npz with LPIPS weights")
    studies = "a folder in benchmarks/results/, and its images"
    parser.add_argument("--study", nargs="+", action="append", default=[], metavar=("NAME", "IMAGE"), help=studies)
    arguments = parser.parse_args()
    shutil.copy(arguments.model, BUNDLED / "standard.safetensors")
    run_module("cli", "models", "graphs")
    for module in ("tests.make_golden", "tests.fuzz.make_corpus", "tests.transcripts.make"):
        run_module(module)
    pairs: list[tuple[str, str]] = []
    for name, *images in arguments.study:
        folder = ROOT / "benchmarks" / "results" / name
        old_rows = table_rows(folder)
        measure(folder, [Path(image).absolute() for image in images], arguments.lpips.absolute())
        pairs += zip(old_rows, table_rows(folder), strict=True)
        if name == "kodak":
            plots = ("--plot", folder / "kodak.png", "--short-plot", ROOT / "docs" / "kodak.png")
            run_module("benchmarks.tools.tables", folder, *plots)
            kodak = Path(images[0]).absolute().parent
            printed = run_module("benchmarks.tools.quality", kodak, "--lpips", arguments.lpips.absolute())
            targets = (ROOT / "docs" / "targets.md").read_text().splitlines()
            first = next(index for index, line in enumerate(targets) if line.startswith("| bytes |"))
            pairs += zip(targets[first : first + 2], quality_rows(printed), strict=True)
    for name in TEXTS:
        (ROOT / name).write_text(replaced((ROOT / name).read_text(), pairs))
    for old, new in pairs:
        if old != new:
            sys.stdout.write(f"- {old}\n+ {new}\n")
    sys.stdout.write(BY_HAND)


def run_module(*arguments: object) -> str:
    """The standard output of `python -m` in the root of the repository."""
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def table_rows(folder: Path) -> list[str]:
    """The rows of all tables of a study."""
    tables = [*(rate_table(folder, keys) for keys in (MAIN, COLOUR, MORE, RECOGNITION)), delta_table(folder)]
    if folder.name == "kodak":
        tables.append(short_table(folder))
    return [row for table in tables for row in table]


def measure(folder: Path, images: Iterable[Path], lpips: Path) -> None:
    """Measures Tessera again on the images that a study names. The files of other codecs and the study's command remain."""
    study = json.loads((folder / "study.json").read_text())
    names = [image.rpartition(", ")[0] for image in study["images"]]
    paths = {path.name: path for path in images}
    if missing := [name for name in names if name not in paths]:
        sys.exit(f"{folder.name}: no image called {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as output:
        options = ("--lpips-weights", lpips, "--no-cache", "--no-speed", "--json-dir", output, "--quiet")
        selection = ("--codecs", ",".join(OWN), *measured_options(study["command"]))
        run_module("cli", "bench", *(paths[name] for name in names), *selection, *options)
        for name in OWN:
            shutil.copy(Path(output) / f"{name}.json", folder / f"{name}.json")
        add_deltas(folder)
        study["settings"] |= json.loads((Path(output) / "study.json").read_text())["settings"]
    write_json_file(folder / "study.json", study)


def measured_options(command: str) -> list[str]:
    """The options of a study's command that define what is measured."""
    words = shlex.split(command)
    return [word for name in KEPT_OPTIONS for word in words[words.index(name) : words.index(name) + 2]]


def add_deltas(folder: Path) -> None:
    """Adds the BD-rates to Tessera's file, as a run with all codecs does."""
    path = folder / "tessera.json"
    plain, tessera, anchor = json.loads(path.read_text()), read_series(path), read_series(folder / f"{ANCHOR}.json")
    keys = [key for key, metric in METRICS.items() if metric.json in plain["results"] and metric.has_bd_rate]
    plain["bd_rate"] = {METRICS[key].json: delta_json(delta(anchor, tessera, key, plain["images"]), ANCHOR) for key in keys}
    write_json_file(path, plain)


def quality_rows(printed: str) -> tuple[str, str]:
    """The two rows of docs/targets.md that depend on the model, from the output of `benchmarks.tools.quality`."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines()]
    return (f"| bytes | {' | '.join(row[2] for row in rows)} |", f"| LPIPS | {' | '.join(row[3] for row in rows)} |")


def replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The text, with each line that equals the first of a pair replaced by the second."""
    new = dict(pairs)
    return "".join(new.get(line.rstrip("\n"), line.rstrip("\n")) + "\n" for line in text.splitlines())


if __name__ == "__main__":
    main()
