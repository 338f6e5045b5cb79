"""The command over many files: what it takes, where it writes, what it refuses, and that one bad file stops no other."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cli.encode
from bitstream.container import read_file
from cli.main import main
from cli.report import FIELDS

TESSERA = [sys.executable, "-m", "cli"]
ODD_NAMES = (
    b"a b.png",
    b"new\nline.png",
    "é日.png".encode(),
    b"-n.png",
    b"bad\xff.png",
    b"\x1b[31mred.png",
    b"%s{x}[bold].png",
)


def run(*arguments, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def names(folder: Path) -> set[str]:
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def records(said: Result) -> dict[str, dict]:
    """JSON lines, by the name of their input."""
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert all(tuple(line)[: len(FIELDS)] == FIELDS for line in lines)
    return {os.path.basename(line["input"]): line for line in lines}


@pytest.fixture(scope="module")
def small(photo) -> list[Image.Image]:
    return [photo.crop((40 * number, 60, 40 * number + 48, 92)) for number in range(8)]


@pytest.fixture
def tree(tmp_path, small) -> Path:
    """in/: two images, one in a folder of it, two in a folder of that, and what is none of our business."""
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for image, name in zip(
        small, ("a.png", "b.webp", "sub/a.png", "sub/deep/c.PNG", "sub/deep/d.ppm", ".hidden/e.png", ".f.png"), strict=False
    ):
        image.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "a.tsr").write_bytes(b"encoded already")
    return folder


@pytest.fixture
def encoded(tree, tmp_path) -> Path:
    """out/: the files of all images in the tree."""
    assert run("encode", "-r", tree, "--output-dir", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def test_a_folder_is_mirrored(tree, tmp_path):
    said = run("encode", "-r", tree, "--output-dir", tmp_path / "out")
    assert said.exit_code == 0
    assert names(tmp_path / "out") == {"a.tsr", "b.tsr", "sub/a.tsr", "sub/deep/c.tsr", "sub/deep/d.tsr"}
    assert said.stdout == ""
    lines = said.stderr.splitlines()
    assert len(lines) == 6
    assert re.fullmatch(
        r"5 encoded, 0 skipped, 0 failed  [\d.]+ kB -> \d+ B  \d+\.\d\d MP/s  \d+\.\d\d s",
        lines[-1],
    )
    assert run("encode", tree / "sub" / "a.png", "-o", tmp_path / "one.tsr").exit_code == 0
    assert (tmp_path / "one.tsr").read_bytes() == (tmp_path / "out" / "sub" / "a.tsr").read_bytes()


def test_without_r_only_images_directly_in_a_folder_are_taken(tree, tmp_path):
    assert run("encode", tree, "--output-dir", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == {"a.tsr", "b.tsr"}


def test_decoding_takes_tsr_files_and_draws_them_in_one_format(encoded, tmp_path):
    (encoded / "notes.png").write_text("passed over")
    said = run("decode", "-r", encoded, "--output-dir", tmp_path / "drawn", "--format", "jpg", "-j", "2", "--batch", "3")
    assert said.exit_code == 0
    assert names(tmp_path / "drawn") == {"a.jpg", "b.jpg", "sub/a.jpg", "sub/deep/c.jpg", "sub/deep/d.jpg"}
    assert said.stderr.splitlines()[-1].startswith("5 decoded, 0 skipped, 0 failed  ")
    with Image.open(tmp_path / "drawn" / "sub" / "a.jpg") as drawn:
        assert (drawn.format, drawn.size) == ("JPEG", (48, 32))


def test_outputs_lie_beside_inputs_where_no_folder_is_named(tree):
    assert run("encode", tree / "b.webp", tree / "sub").exit_code == 0
    assert {"b.tsr", "sub/a.tsr"} <= names(tree)
    assert not (tree / "sub" / "deep" / "c.tsr").exists()


def test_batch_and_jobs_change_no_file(encoded, tree, tmp_path):
    assert run("encode", "-r", tree, "--output-dir", tmp_path / "again", "--batch", "4", "-j", "3").exit_code == 0
    for name in names(encoded):
        assert (tmp_path / "again" / name).read_bytes() == (encoded / name).read_bytes()


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_names_from_a_list(tree, tmp_path, end, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "new\nline.png").write_bytes((tree / "a.png").read_bytes())
    listed = ["a.png", "sub", *(["new\nline.png"] if end == "\0" else [""])]
    wanted = {"a.tsr", "b.tsr"} | ({"new\nline.tsr"} if end == "\0" else set())
    (tmp_path / "list").write_text(end.join(listed) + end)
    clashing = run("encode", "-n", "b.webp", "a.png", "--files-from", tmp_path / "list", "--output-dir", "x")
    assert (clashing.exit_code, clashing.stderr.count("would be written to x/a.tsr too")) == (1, 2)
    (tmp_path / "list").write_text(end.join(name for name in listed if name != "sub") + end)
    for number, source in enumerate((tmp_path / "list", "-")):
        data = (tmp_path / "list").read_bytes() if source == "-" else None
        said = run("encode", "b.webp", "--files-from", source, "--output-dir", tmp_path / str(number), data=data)
        assert said.exit_code == 0, said.stderr
        assert names(tmp_path / str(number)) == wanted


def test_an_empty_list_is_no_mistake(tmp_path):
    (tmp_path / "list").write_text("")
    said = run("encode", "--files-from", tmp_path / "list")
    assert said.exit_code == 0
    assert said.stderr.startswith("0 encoded, 0 skipped, 0 failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode",), "Missing argument 'IN...'"),
        (("encode", "{in}/a.png", "{in}/b.webp", "-o", "{out}"), "-o names one output, and there are 2 inputs"),
        (("encode", "{in}/a.png", "-o", "{out}", "--output-dir", "{out}"), "--output and --output-dir contradict each other"),
        (("encode", "{in}/a.png", "-f", "--skip-existing"), "--force and --skip-existing contradict each other"),
        (("encode", "{in}", "--output-dir", "{in}/a.png"), "--output-dir {in}/a.png is a file: name a folder"),
        (("encode", "-", "{in}/a.png"), "'-' is standard input, which must be the only input"),
        (("encode", "-", "--output-dir", "{out}"), "--output-dir is not for standard input or output"),
        (("encode", "-", "--files-from", "-"), "both need standard input"),
        (("encode", "--files-from", "{out}/none"), "--files-from {out}/none: no such file: check the name"),
        (("encode", "{in}/a.png", "--background", "nosuch"), "'nosuch' is not a colour: use a name such as white"),
        (("encode", "{in}/a.png", "-e", "10"), "10 is not in the range 3<=x<=9"),
        (("encode", "{in}/a.png", "-e", "2"), "2 is not in the range 3<=x<=9"),
        (("encode", "{in}/a.png", "--strip", "--keep-exif"), "--strip and --keep-exif contradict each other"),
        (("encode", "{in}/a.png", "-q", "9", "--target-psnr", "30"), "--quality and --target-psnr contradict each other"),
        (("encode", "{in}/a.png", "{in}/b.webp", "--device", "cuda:9"), "device 'cuda:9' does not exist"),
        (("decode", "{in}", "--format", "nonsense"), "no image format is called 'nonsense'"),
        (("tokens", "{in}/a.tsr", "-f", "--skip-existing"), "--force and --skip-existing contradict each other"),
    ],
)
def test_contradictions_are_refused_before_any_work(tree, tmp_path, arguments, message):
    places = {"in": tree, "out": tmp_path / "out"}
    before = names(tmp_path)
    said = run(*(argument.format(**places) for argument in arguments))
    assert said.exit_code == 2
    assert message.format(**places) in said.stderr
    assert names(tmp_path) == before


def test_existing_outputs_are_refused_replaced_or_skipped(encoded, tree):
    cut = (encoded / "b.tsr").read_bytes()
    (encoded / "b.tsr").write_bytes(cut[:-1])
    (encoded / "sub" / "a.tsr").unlink()
    before = {name: (encoded / name).stat() for name in names(encoded)}
    refused = run("encode", "-r", tree, "--output-dir", encoded, "--json")
    assert refused.exit_code == 1
    assert [line["status"] for line in map(json.loads, refused.stdout.splitlines())].count("failed") == 4
    assert f"Error: {tree}/a.png: the output {encoded}/a.tsr exists: use -f to replace it" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("1 encoded, 0 skipped, 4 failed")
    skipped = run("encode", "-r", tree, "--output-dir", encoded, "--skip-existing")
    assert skipped.exit_code == 0
    assert skipped.stderr.splitlines()[-1].startswith("1 encoded, 4 skipped, 0 failed")
    assert f"{tree}/a.png -> {encoded}/a.tsr  skipped: it exists and is whole" in skipped.stderr
    assert (encoded / "b.tsr").read_bytes() == cut
    assert (encoded / "a.tsr").stat().st_mtime_ns == before["a.tsr"].st_mtime_ns
    forced = run("encode", "-r", tree, "--output-dir", encoded, "-f", "-q", "0")
    assert forced.exit_code == 0
    assert all((encoded / name).stat().st_size < state.st_size for name, state in before.items())


def test_decoding_skips_images_that_can_be_read(encoded, tmp_path):
    drawn = tmp_path / "drawn"
    assert run("decode", encoded, "--output-dir", drawn).exit_code == 0
    whole = (drawn / "b.png").read_bytes()
    (drawn / "b.png").write_bytes(whole[: len(whole) // 2])
    said = run("decode", encoded, "--output-dir", drawn, "--skip-existing", "--json")
    assert said.exit_code == 0
    assert {name: line["status"] for name, line in records(said).items()} == {"a.tsr": "skipped", "b.tsr": "done"}
    assert (drawn / "b.png").read_bytes() == whole


def test_a_dry_run_says_what_would_be_done_and_does_nothing(encoded, tree, tmp_path):
    (encoded / "a.tsr").unlink()
    before = names(tmp_path)
    for command, source in (("encode", tree), ("decode", encoded)):
        said = run(command, source, tree / "none.png", "--output-dir", encoded, "--skip-existing", "-n", "--json")
        assert said.exit_code == 1
        told = {name: line["status"] for name, line in records(said).items()}
        assert (
            told
            == {
                "encode": {"a.png": "planned", "b.webp": "skipped", "none.png": "failed"},
                "decode": {"b.tsr": "planned", "none.png": "failed"},
            }[command]
        )
        assert "no such file: check the name" in said.stderr
    said = run("encode", tree, "--output-dir", tmp_path / "new", "--dry-run")
    assert said.exit_code == 0
    assert f"{tree}/a.png -> {tmp_path}/new/a.tsr  not done: --dry-run" in said.stderr
    assert names(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_one_bad_file_stops_no_other(tree, tmp_path):
    (tree / "bad.jpg").write_bytes((tree / "b.webp").read_bytes()[:40])
    said = run("encode", tree, tree / "notes.txt", tree / "none.png", "--output-dir", tmp_path / "out", "--json", "--quiet")
    assert said.exit_code == 1
    told = records(said)
    assert {name: line["status"] for name, line in told.items()} == {
        "a.png": "done", "b.webp": "done", "bad.jpg": "failed", "notes.txt": "failed", "none.png": "failed",
    }  # fmt: skip
    assert "cut or damaged" in told["bad.jpg"]["error"] or "convert it to PNG first" in told["bad.jpg"]["error"]
    assert told["none.png"]["error"] == "no such file: check the name"
    assert told["a.png"]["bytes"] == (tmp_path / "out" / "a.tsr").stat().st_size
    assert said.stderr.count("\n") == 3  # errors alone
    assert names(tmp_path / "out") == {"a.tsr", "b.tsr"}


def test_a_file_that_vanishes_midway_is_one_error(tree, tmp_path, monkeypatch):
    planned = cli.encode.make_plan

    def plan_and_lose(*arguments):
        made = planned(*arguments)
        (tree / "a.png").unlink()
        return made

    monkeypatch.setattr(cli.encode, "make_plan", plan_and_lose)
    said = run("encode", tree, "--output-dir", tmp_path / "out")
    assert said.exit_code == 1
    assert f"Error: {tree}/a.png: no such file: check the name\n" in said.stderr
    assert names(tmp_path / "out") == {"b.tsr"}


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    said = run("encode", tmp_path / "empty")
    assert said.exit_code == 1
    assert (
        f"Error: {tmp_path}/empty: holds no images: name another folder, or look into its folders too with -r\n" in said.stderr
    )


def test_a_model_that_is_missing_is_said_once(tree, tmp_path):
    said = run("encode", tree, "--output-dir", tmp_path / "out", "--model", "nosuch")
    assert said.exit_code == 1
    assert said.stderr.count("nosuch: no such model") == 1


def test_names_of_all_kinds(tmp_path, small):
    source, made = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for image, name in zip(small, ODD_NAMES, strict=False):
        image.save(source / os.fsdecode(name), "png")
    said = run("encode", source, "--output-dir", made)
    assert said.exit_code == 0, said.stderr
    assert sorted(os.fsencode(path.name) for path in made.iterdir()) == sorted(n.replace(b".png", b".tsr") for n in ODD_NAMES)
    lines = said.stderr.splitlines()
    assert len(lines) == len(ODD_NAMES) + 1
    assert all(line.isprintable() for line in lines)
    for shown in (r"/new\nline.png", r"/bad\xff.png", r"/\x1b[31mred.png", "/é日.png"):
        assert sum(shown in line for line in lines) == 1
    paths = sorted(map(str, made.iterdir()))
    assert [json.loads(line)["input"] for line in run("info", *paths, "--json").stdout.splitlines()] == paths
    assert r"/bad\xff.tsr: 48x32" in run("info", made / os.fsdecode(b"bad\xff.tsr")).stdout


def test_names_that_begin_with_a_dash(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small[0].save("-n.png")
    assert run("encode", "-n.png").exit_code == 2
    assert run("encode", "--", "-n.png").exit_code == 0
    assert run("decode", "./-n.tsr", "-o", "./-.png").exit_code == 0
    assert names(tmp_path) == {"-n.png", "-n.tsr", "-.png"}


def test_links_are_followed_and_each_folder_entered_once(tree, tmp_path):
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "sub" / "broken.png").symlink_to(tmp_path / "none")
    (tree / "link.png").symlink_to(tree / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "kept.tsr").write_bytes(b"old")
    (out / "a.tsr").symlink_to(tmp_path / "kept.tsr")
    said = run("encode", "-r", tree, "--output-dir", out, "-f")
    assert said.exit_code == 0
    assert names(out) == {"a.tsr", "b.tsr", "link.tsr", "sub/a.tsr", "sub/deep/c.tsr", "sub/deep/d.tsr"}
    assert (out / "a.tsr").is_symlink()
    assert read_file((tmp_path / "kept.tsr").read_bytes()).complete
    assert (out / "link.tsr").read_bytes() == (out / "a.tsr").read_bytes()
    assert not (tree / "a.png").is_symlink()


def test_outputs_that_are_one_file_through_a_link_are_refused(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.tsr").symlink_to(out / "a.tsr")
    said = run("encode", tree, "--output-dir", out, "-f")
    assert said.exit_code == 1
    assert said.stderr.count("would be written to") == 2
    assert names(out) == {"b.tsr"}


def test_a_full_disk_is_one_line_a_file_and_leaves_nothing(tree, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        said = run("encode", tree, "--output-dir", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert said.exit_code == 1
    assert (
        f"Error: {tree}/a.png: cannot write {tmp_path}/out/a.tsr (File too large): check space and permissions\n" in said.stderr
    )
    assert said.stderr.count("\n") == 3
    assert names(tmp_path / "out") == set()


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="no folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_to_is_one_line(tree):
    said = run("encode", tree / "a.png", tree / "b.webp", "--output-dir", "/sys")
    assert said.exit_code == 1
    assert re.search(rf"Error: {tree}/a.png: cannot write /sys/a.tsr \([^)]+\): check space and permissions\n", said.stderr)
    assert said.stderr.count("\n") == 3


def test_devices_are_written_to_as_they_are(tree):
    said = run("encode", tree / "a.png", "-o", "/dev/full")
    assert said.exit_code == 1
    assert said.stderr == (
        f"Error: {tree}/a.png: cannot write /dev/full (No space left on device): check space and permissions\n"
    )
    assert run("encode", tree / "a.png", "-o", "/dev/null").exit_code == 0


def test_standard_output_that_is_full_is_one_line(encoded):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        for arguments in (["info", encoded / "a.tsr"], ["encode", encoded / "none.png", "--json"], ["models", "list"]):
            said = subprocess.run([*TESSERA, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert said.returncode == 1
            assert re.fullmatch(r"Error: .*cannot write to standard output \(No space left on device\).*\n", said.stderr)


def test_metadata_flags(tmp_path, photo):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    clear = photo.crop((0, 0, 64, 48)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(tmp_path / "a.png", exif=exif)

    def sections(*flags: str) -> set[str]:
        assert run("encode", tmp_path / "a.png", "-o", tmp_path / "a.tsr", "-f", *flags).exit_code == 0
        told = json.loads(run("info", tmp_path / "a.tsr", "--json").stdout)
        assert sum(part["bytes"] for part in told["sections"]) < told["section_bytes"] or not told["sections"]
        return {part["name"] for part in told["sections"]}

    assert sections() == {"alpha"}
    assert sections("--keep-exif") == {"alpha", "exif"}
    assert sections("--background", "white") == set()
    assert sections("--background", "#204060", "--keep-exif") == {"exif"}
    assert sections("--background", "#204060", "--strip") == set()
    for name, mode in (("opaque.png", "RGB"), ("clear.png", "RGBA")):
        flags = ["--background", "white"] if mode == "RGB" else []
        assert run("encode", tmp_path / "a.png", "-o", tmp_path / "a.tsr", "-f", "--keep-exif", *flags).exit_code == 0
        assert run("decode", tmp_path / "a.tsr", "-o", tmp_path / name, "-f").exit_code == 0
        with Image.open(tmp_path / name) as drawn:
            assert drawn.mode == mode
            assert drawn.getexif()[0x010E] == "a description"
            if mode == "RGBA":
                assert np.array_equal(np.asarray(drawn.getchannel("A")), np.asarray(clear.getchannel("A")))


def test_images_that_a_format_cannot_hold_are_told(tmp_path, photo):
    clear = photo.crop((0, 0, 32, 32)).convert("RGBA")
    clear.putalpha(7)
    clear.save(tmp_path / "a.png")
    assert run("encode", tmp_path / "a.png").exit_code == 0
    said = run("decode", tmp_path / "a.tsr", "-o", tmp_path / "a.jpg")
    assert said.exit_code == 1
    assert "JPEG has no transparency: use png" in said.stderr
