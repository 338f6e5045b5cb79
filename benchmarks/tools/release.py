"""Makes a model the standard one: its weights and graphs, the golden files, the fuzzer's corpus, Tessera's part of the studies
under `benchmarks/`, and the rows of README.md and MODEL.md that are made of them.

    python -m benchmarks.tools.release mine.safetensors --lpips ../shared/perceptual/lpips_alex.npz \\
        --study kodak ../shared/kodak/*.png --study clic larger/*.png

A study is measured again with the metrics and the rates of its own command, on the images that it names. Needs the extra
`bench`. The end of the output says what is left to be written by hand.
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

from PIL import Image

from benchmarks.curves import delta
from benchmarks.export import plain_delta, write_plain
from benchmarks.records import METRICS
from benchmarks.tools.tables import COLOUR, MAIN, MORE, SEEN, delta_table, rate_table, read_series
from codec.models.registry import BUNDLED, open_model

ROOT = Path(__file__).parent.parent.parent
TEXTS = ("README.md", "MODEL.md")
ANCHOR = "webp-scaled"  # that BD-rates compare with, as in `tessera bench`
KEPT = ("--metrics", "--bpp")  # options of a study's command that hold for a new measurement
BY_HAND = """\
By hand: FORMER in codec/models/registry.py gets {former};
MODEL.md's stages, minutes and crops; sentences with numbers in README.md and
MODEL.md; `bench recognition`; docs/comparison.webp (benchmarks.tools.compare); the row of training-curve.csv and its plot
(benchmarks.tools.held_out); benchmarks.tools.prefixes and pattern; training-log.md; CHANGELOG.md; numbers in tests.
"""


def program(*arguments: object) -> str:
    """Runs `python -m` in the repository's root and returns what it printed."""
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def card(folder: Path) -> list[str]:
    """The rows of all tables of a study."""
    tables = [rate_table(folder, keys) for keys in (MAIN, COLOUR, MORE, SEEN)]
    return [row for table in (*tables, delta_table(folder)) for row in table]


def options_of(command: str) -> list[str]:
    """The options of a study's command that say what is measured."""
    words = shlex.split(command)
    return [part for name in KEPT for part in words[words.index(name) : words.index(name) + 2]]


def measure(folder: Path, images: Iterable[Path], lpips: Path) -> None:
    """Measures Tessera again, on the images that the study names. The files of other codecs, and the command, stay."""
    study = json.loads((folder / "study.json").read_text())
    names = [named.rpartition(", ")[0] for named in study["images"]]
    found = {path.name: path for path in images}
    if missing := [name for name in names if name not in found]:
        sys.exit(f"{folder.name}: no image called {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as made:
        where = ("--lpips-weights", lpips, "--no-cache", "--no-speed", "--json-dir", made, "--quiet")
        program("cli", "bench", *(found[n] for n in names), "--codecs", "tessera", *options_of(study["command"]), *where)
        shutil.copy(Path(made) / "tessera.json", folder / "tessera.json")
        add_deltas(folder)
        study["settings"]["Tessera"] = json.loads((Path(made) / "study.json").read_text())["settings"]["Tessera"]
    write_plain(folder / "study.json", study)


def add_deltas(folder: Path) -> None:
    """Gives Tessera's file the BD-rates that a run with all codecs gives it."""
    path = folder / "tessera.json"
    plain, ours, anchor = json.loads(path.read_text()), read_series(path), read_series(folder / f"{ANCHOR}.json")
    keys = [key for key, metric in METRICS.items() if metric.json in plain["results"] and metric.rated]
    plain["bd_rate"] = {METRICS[key].json: plain_delta(delta(anchor, ours, key, plain["images"]), ANCHOR) for key in keys}
    write_plain(path, plain)


def quality_rows(printed: str) -> tuple[str, str]:
    """What `benchmarks.tools.quality` printed, as the two rows of README.md that depend on the model."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines()]
    return (f"| bytes | {' | '.join(row[2] for row in rows)} |", f"| LPIPS | {' | '.join(row[3] for row in rows)} |")


def replaced(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The text with the second of each pair wherever the first is a whole line."""
    new = dict(pairs)
    return "".join(new.get(line.rstrip("\n"), line.rstrip("\n")) + "\n" for line in text.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lpips", type=Path, required=True, help="npz of LPIPS weights")
    parser.add_argument("--study", nargs="+", action="append", default=[], help="folder in benchmarks/, and its images")
    given = parser.parse_args()
    former = open_model().stream_id.hex()
    shutil.copy(given.model, BUNDLED / "standard.safetensors")
    program("cli", "models", "graphs")
    for module in ("tests.make_golden", "tests.fuzz.make_corpus"):
        program(module)
    pairs: list[tuple[str, str]] = []
    for name, *images in given.study:
        folder = ROOT / "benchmarks" / name
        before = card(folder)
        measure(folder, [Path(image).absolute() for image in images], given.lpips.absolute())
        pairs += zip(before, card(folder), strict=True)
        if name == "kodak":
            program("benchmarks.tools.tables", folder, "--plot", folder / "kodak.png")
            with Image.open(folder / "kodak.png") as plot:
                small = plot.convert("RGB").quantize(256)
            small.save(folder / "kodak.png", optimize=True)
            kodak = Path(images[0]).absolute().parent
            printed = program("benchmarks.tools.quality", kodak, "--lpips", given.lpips.absolute())
            readme = (ROOT / "README.md").read_text().splitlines()
            at = next(number for number, line in enumerate(readme) if line.startswith("| bytes |"))
            pairs += zip(readme[at : at + 2], quality_rows(printed), strict=True)
    for name in TEXTS:
        (ROOT / name).write_text(replaced((ROOT / name).read_text(), pairs))
    for old, new in pairs:
        if old != new:
            sys.stdout.write(f"- {old}\n+ {new}\n")
    sys.stdout.write(BY_HAND.format(former=former))


if __name__ == "__main__":
    main()
