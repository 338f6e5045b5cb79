"""The command on many files: which it takes, where it writes, and that one bad file stops no other."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import tessera
from bitstream.container import read_file
from codec.system.files import Writer
from tests.helpers.commands import files_below, records, run

ODD_NAMES = (
    b"a b.png",
    b"new\nline.png",
    "é日.png".encode(),
    b"-n.png",
    b"bad\xff.png",
    b"\x1b[31mred.png",
    b"%s{x}[bold].png",
)


@pytest.fixture(scope="module")
def small(photo) -> list[Image.Image]:
    return [photo.crop((40 * number, 60, 40 * number + 48, 92)) for number in range(8)]


@pytest.fixture
def tree(tmp_path, small) -> Path:
    """in/: two images, one in a folder of it, two in a folder of that, hidden images, and files that are not images."""
    folder = tmp_path / "in"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    names = ("a.png", "b.webp", "sub/a.png", "sub/deep/c.PNG", "sub/deep/d.ppm", ".hidden/e.png", ".f.png")
    for image, name in zip(small, names, strict=False):
        image.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "a.tsr").write_bytes(b"encoded already")
    return folder


@pytest.fixture
def encoded(tree, tmp_path) -> Path:
    """out/: the .tsr files of all images in the tree."""
    assert run("encode", "-r", tree, "--output-dir", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def statuses(outcome) -> dict[str, str]:
    """The status of each file, by its name."""
    return {os.path.basename(record["input"]): record["status"] for record in records(outcome)}


# Folders and lists


def test_a_folder_is_mirrored(tree, tmp_path):
    outcome = run("encode", "-r", tree, "--output-dir", tmp_path / "out")
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert files_below(tmp_path / "out") == {"a.tsr", "b.tsr", "sub/a.tsr", "sub/deep/c.tsr", "sub/deep/d.tsr"}
    assert len(outcome.stderr.splitlines()) == 6
    assert (tmp_path / "out" / "sub" / "a.tsr").read_bytes() == tessera.encode(tree / "sub" / "a.png")


def test_without_r_only_images_directly_in_a_folder_are_taken(tree, tmp_path):
    assert run("encode", tree, "--output-dir", tmp_path / "out").exit_code == 0
    assert files_below(tmp_path / "out") == {"a.tsr", "b.tsr"}


def test_decoding_takes_tsr_files_and_writes_one_format(encoded, tmp_path):
    (encoded / "notes.png").write_text("passed over")
    options = ("--output-dir", tmp_path / "decoded", "--format", "jpg", "-j", "2", "--batch", "3")
    assert run("decode", "-r", encoded, *options).exit_code == 0
    assert files_below(tmp_path / "decoded") == {"a.jpg", "b.jpg", "sub/a.jpg", "sub/deep/c.jpg", "sub/deep/d.jpg"}
    with Image.open(tmp_path / "decoded" / "sub" / "a.jpg") as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (48, 32))


def test_outputs_are_beside_inputs_unless_a_folder_is_named(tree):
    assert run("encode", tree / "b.webp", tree / "sub").exit_code == 0
    assert {"b.tsr", "sub/a.tsr"} <= files_below(tree)
    assert not (tree / "sub" / "deep" / "c.tsr").exists()


def test_batch_and_jobs_change_no_file(encoded, tree, tmp_path):
    assert run("encode", "-r", tree, "--output-dir", tmp_path / "again", "--batch", "4", "-j", "3").exit_code == 0
    for name in files_below(encoded):
        assert (tmp_path / "again" / name).read_bytes() == (encoded / name).read_bytes()


def test_sizes_hold_for_every_file_of_a_folder(tmp_path, photo):
    for number, side in enumerate((40, 100, 200)):
        photo.crop((number, 0, number + side, side)).save(tmp_path / f"{number}.png")
    assert run("encode", tmp_path, "--target-size", "200", "--output-dir", tmp_path / "out").exit_code == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out").iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 200
    outcome = run("encode", tmp_path, "--target-bpp", "0.3", "--output-dir", tmp_path / "small", "--json")
    done = [record for record in records(outcome) if record["status"] == "done"]
    assert {100, 200} <= {record["width"] for record in done}
    assert all(record["bpp"] <= 0.3 for record in done)


def test_targets_of_quality_are_met_in_a_batch_as_alone(tmp_path, photo):
    for number in range(4):
        photo.crop((20 * number, 0, 20 * number + 64, 64)).save(tmp_path / f"{number}.png")
    outcome = run("encode", tmp_path, "--target-psnr", "24", "--json", "--batch", "2", "-j", "2")
    assert outcome.exit_code == 0
    for record in records(outcome):
        assert record["bytes"] == len(tessera.encode(record["input"], target_psnr=24))


@pytest.mark.parametrize("end", ["\n", "\0"])
def test_names_from_a_list(tree, tmp_path, end, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "new\nline.png").write_bytes((tree / "a.png").read_bytes())
    listed = ["a.png", *(["new\nline.png"] if end == "\0" else [""])]
    expected = {"a.tsr", "b.tsr"} | ({"new\nline.tsr"} if end == "\0" else set())
    data = (end.join(listed) + end).encode()
    (tmp_path / "list").write_bytes(data)
    for name, source in (("1", tmp_path / "list"), ("2", "-")):
        outcome = run("encode", "b.webp", "--files-from", source, "--output-dir", tmp_path / name, data=data)
        assert outcome.exit_code == 0, outcome.stderr
        assert files_below(tmp_path / name) == expected


def test_names_of_all_kinds(tmp_path, small):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for image, name in zip(small, ODD_NAMES, strict=False):
        image.save(source / os.fsdecode(name), "png")
    outcome = run("encode", source, "--output-dir", output)
    assert outcome.exit_code == 0, outcome.stderr
    assert {os.fsencode(path.name) for path in output.iterdir()} == {name.replace(b".png", b".tsr") for name in ODD_NAMES}
    lines = outcome.stderr.splitlines()
    assert len(lines) == len(ODD_NAMES) + 1
    assert all(line.isprintable() for line in lines)
    for shown in (r"/new\nline.png", r"/bad\xff.png", r"/\x1b[31mred.png", "/é日.png"):
        assert sum(shown in line for line in lines) == 1
    paths = sorted(map(str, output.iterdir()))
    assert [record["input"] for record in records(run("info", *paths, "--json"))] == paths


@pytest.mark.parametrize(
    "data",
    [
        "\ufeffa.png\né.png\n".encode(),
        "a.png\r\né.png\r\n".encode(),
        "\ufeffa.png\r\né.png".encode(),
        "\ufeffa.png\0é.png\0".encode(),
    ],
    ids=["mark", "CRLF", "mark and CRLF", "mark and zeros"],
)
def test_a_list_may_have_a_byte_order_mark_and_line_ends_of_windows(tmp_path, small, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "é.png"):
        small[0].save(name)
    outcome = run("encode", "--files-from", "-", "--json", data=data)
    assert (outcome.exit_code, statuses(outcome)) == (0, {"a.png": "done", "é.png": "done"})


@pytest.mark.parametrize("mark", ["\ufeff", ""], ids=["mark", "no mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_list_in_another_encoding_is_refused_and_nothing_else_is_encoded(tmp_path, small, monkeypatch, mark, end, encoding):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "unlisted.png"):
        small[0].save(name)
    Path("list.txt").write_bytes(f"{mark}a.png{end}".encode(encoding))
    outcome = run("encode", "--files-from", "list.txt")
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert files_below(tmp_path) == {"a.png", "unlisted.png", "list.txt"}


def test_names_that_begin_with_a_dash(tmp_path, small, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small[0].save("-n.png")
    assert run("encode", "-n.png").exit_code == 2
    assert run("encode", "--", "-n.png").exit_code == 0
    assert run("decode", "./-n.tsr", "-o", "./-.png").exit_code == 0
    assert files_below(tmp_path) == {"-n.png", "-n.tsr", "-.png"}


def test_links_are_followed_and_each_folder_entered_once(tree, tmp_path):
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "sub" / "broken.png").symlink_to(tmp_path / "none")
    (tree / "link.png").symlink_to(tree / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "kept.tsr").write_bytes(b"old")
    (out / "a.tsr").symlink_to(tmp_path / "kept.tsr")
    assert run("encode", "-r", tree, "--output-dir", out, "-f").exit_code == 0
    assert files_below(out) == {"a.tsr", "b.tsr", "link.tsr", "sub/a.tsr", "sub/deep/c.tsr", "sub/deep/d.tsr"}
    assert (out / "a.tsr").is_symlink()
    assert read_file((tmp_path / "kept.tsr").read_bytes()).complete
    assert (out / "link.tsr").read_bytes() == (out / "a.tsr").read_bytes()


# Outputs that exist, or are wanted twice


def test_existing_outputs_are_refused_replaced_or_skipped(encoded, tree):
    complete = (encoded / "b.tsr").read_bytes()
    (encoded / "b.tsr").write_bytes(complete[:-1])
    (encoded / "sub" / "a.tsr").unlink()
    before = {name: (encoded / name).stat() for name in files_below(encoded)}
    refused = run("encode", "-r", tree, "--output-dir", encoded, "--json")
    assert refused.exit_code == 1
    assert Counter(record["status"] for record in records(refused)) == {"failed": 4, "done": 1}
    skipped = run("encode", "-r", tree, "--output-dir", encoded, "--skip-existing", "--json")
    assert skipped.exit_code == 0
    assert Counter(record["status"] for record in records(skipped)) == {"skipped": 4, "done": 1}
    assert (encoded / "b.tsr").read_bytes() == complete
    assert (encoded / "a.tsr").stat().st_mtime_ns == before["a.tsr"].st_mtime_ns
    assert run("encode", "-r", tree, "--output-dir", encoded, "-f", "-q", "0").exit_code == 0
    assert all((encoded / name).stat().st_size < state.st_size for name, state in before.items())


@pytest.mark.parametrize("sources", [("-r", "."), ("a.png",)], ids=["many", "one"])
def test_an_output_that_another_run_writes_meanwhile_is_skipped_on_request(tree, encoded, tmp_path, monkeypatch, sources):
    monkeypatch.chdir(tree)
    cut: set[str] = set()

    def write_late(writer: Writer, path: str, *arguments: object, **options: object) -> None:
        """Another run has just written the file, or a part of it."""
        other = (encoded / os.path.relpath(path, out)).read_bytes()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.exists(path):
            Path(path).write_bytes(other[:-1] if os.path.basename(path) in cut else other)
        write(writer, path, *arguments, **options)

    write = Writer.write
    monkeypatch.setattr(Writer, "write", write_late)
    out = tmp_path / "skipped"
    outcome = run("encode", *sources, "--output-dir", out, "--skip-existing", "--json")
    assert (outcome.exit_code, set(statuses(outcome).values())) == (0, {"skipped"})
    out = tmp_path / "refused"
    outcome = run("encode", *sources, "--output-dir", out, "--json")
    assert (outcome.exit_code, set(statuses(outcome).values())) == (1, {"failed"})
    cut.add("a.tsr")
    out = tmp_path / "cut"
    outcome = run("encode", *sources, "--output-dir", out, "--skip-existing", "--json")
    assert (outcome.exit_code, statuses(outcome)["a.png"]) == (0, "done")
    assert (out / "a.tsr").read_bytes() == (encoded / "a.tsr").read_bytes()


def test_a_link_to_a_folder_in_the_output_folder_is_followed_and_no_file_behind_it_replaced(tree, tmp_path):
    out, behind = tmp_path / "out", tmp_path / "behind"
    out.mkdir()
    (behind / "deep").mkdir(parents=True)
    (behind / "a.tsr").write_bytes(b"kept")
    (out / "sub").symlink_to(behind)
    outcome = run("encode", "-r", tree, "--output-dir", out, "--json")
    assert outcome.exit_code == 1
    assert Counter(record["status"] for record in records(outcome)) == {"failed": 1, "done": 4}
    assert (out / "sub").is_symlink()
    assert files_below(behind) == {"a.tsr", "deep/c.tsr", "deep/d.tsr"}
    assert (behind / "a.tsr").read_bytes() == b"kept"


def test_times_and_permissions_are_preserved_on_request(folder, photo):
    old = 1_234_567_890_123_456_789  # nanoseconds
    photo.crop((0, 0, 20, 20)).save("other.png")
    for name, mode in (("photo.jpg", 0o4751), ("other.png", 0o400)):
        os.chmod(name, mode)
        os.utime(name, ns=(old, old))

    def states(*names: str) -> list[tuple[int, int]]:
        return [(Path(name).stat().st_mtime_ns, Path(name).stat().st_mode & 0o7777) for name in names]

    assert run("encode", "photo.jpg", "other.png").exit_code == 0
    assert all(time > old and mode & 0o111 == 0 for time, mode in states("photo.tsr", "other.tsr"))
    expected = [(old, 0o751), (old, 0o400)]
    assert run("encode", "photo.jpg", "other.png", "--preserve", "-f").exit_code == 0
    assert states("photo.tsr", "other.tsr") == expected
    assert run("encode", "photo.jpg", "one.tsr", "--preserve").exit_code == 0
    assert states("one.tsr") == expected[:1]
    assert run("decode", "photo.tsr", "other.tsr", "--output-dir", "back", "--preserve").exit_code == 0
    assert states("back/photo.png", "back/other.png") == expected
    assert run("encode", "photo.jpg", "-o", "/dev/null", "--preserve").exit_code == 0
    assert Path("/dev/null").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("arguments", [("-",), ("photo.jpg", "-o", "-"), ("-", "-o", "a.tsr")])
def test_standard_input_and_output_have_no_permissions_to_preserve(folder, arguments):
    assert run("encode", *arguments, "--preserve").exit_code == 2
    assert files_below(folder) == {"photo.jpg"}


def test_decoding_skips_images_that_can_be_read(encoded, tmp_path):
    decoded = tmp_path / "decoded"
    assert run("decode", encoded, "--output-dir", decoded).exit_code == 0
    complete = (decoded / "b.png").read_bytes()
    (decoded / "b.png").write_bytes(complete[: len(complete) // 2])
    outcome = run("decode", encoded, "--output-dir", decoded, "--skip-existing", "--json")
    assert outcome.exit_code == 0
    assert statuses(outcome) == {"a.tsr": "skipped", "b.tsr": "done"}
    assert (decoded / "b.png").read_bytes() == complete


def test_a_dry_run_plans_and_does_nothing(encoded, tree, tmp_path):
    (encoded / "a.tsr").unlink()
    before = files_below(tmp_path)
    for command, source, expected in (
        ("encode", tree, {"a.png": "planned", "b.webp": "skipped", "none.png": "failed"}),
        ("decode", encoded, {"b.tsr": "planned", "none.png": "failed"}),
    ):
        outcome = run(command, source, tree / "none.png", "--output-dir", encoded, "--skip-existing", "-n", "--json")
        assert (outcome.exit_code, statuses(outcome)) == (1, expected)
    assert run("encode", tree, "--output-dir", tmp_path / "new", "--dry-run").exit_code == 0
    assert files_below(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_inputs_of_one_output_fail_and_the_others_go_on(folder, photo):
    for name in ("grey.jpg", "grey.png"):
        photo.convert("L").crop((0, 0, 20, 20)).save(name)
    outcome = run("encode", ".", "--json")
    assert outcome.exit_code == 1
    assert statuses(outcome) == {"photo.jpg": "done", "grey.jpg": "failed", "grey.png": "failed"}
    assert files_below(folder) == {"photo.jpg", "grey.jpg", "grey.png", "photo.tsr"}
    assert run("encode", ".", "--keep-extension").exit_code == 0
    assert {"photo.jpg.tsr", "grey.jpg.tsr", "grey.png.tsr"} <= files_below(folder)
    Path("sub").mkdir()
    photo.crop((0, 0, 20, 20)).save("sub/grey.png")
    assert run("encode", "grey.png", "sub/grey.png", "--output-dir", "out").exit_code == 1
    assert not Path("out/grey.tsr").exists()


def test_an_output_that_is_another_input_fails_alone(folder):
    data = tessera.encode("photo.jpg")
    for name in ("a.tsr", "a.png", "b.tsr"):
        Path(name).write_bytes(data)
    outcome = run("decode", "a.tsr", "./a.png", "b.tsr", "-f", "--json")
    assert outcome.exit_code == 1
    assert statuses(outcome)["a.tsr"] == "failed"
    assert Path("a.png").read_bytes() == data
    assert Path("b.png").exists()


def test_outputs_that_are_one_file_through_a_link_are_refused(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.tsr").symlink_to(out / "a.tsr")
    outcome = run("encode", tree, "--output-dir", out, "-f", "--json")
    assert (outcome.exit_code, statuses(outcome)) == (1, {"a.png": "failed", "b.webp": "failed"})
    assert files_below(out) == {"b.tsr"}


def test_links_are_followed_with_f_and_refused_without(folder):
    Path("link.tsr").symlink_to("target.tsr")
    assert run("encode", "photo.jpg", "link.tsr").exit_code == 1
    assert not Path("target.tsr").exists()
    assert run("encode", "photo.jpg", "link.tsr", "-f").exit_code == 0
    assert Path("link.tsr").is_symlink()
    assert read_file(Path("target.tsr").read_bytes()).complete


# What happens meanwhile


@contextmanager
def read_after(action: Callable[[], object]) -> Iterator[None]:
    """`photo.fifo` is a photo that a reader gets after the action: by then, the command has planned all its work."""
    data = Path("photo.jpg").read_bytes()
    os.mkfifo("photo.fifo")

    def feed() -> None:
        with Path("photo.fifo").open("wb") as stream:  # opens when the other end is opened
            action()
            stream.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    yield
    feeder.join(20)
    assert not feeder.is_alive()


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_an_output_that_appears_meanwhile_is_not_replaced(folder, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", refuse_links)
    with read_after(lambda: Path("out.tsr").write_bytes(b"theirs")):
        assert run("encode", "photo.fifo", "out.tsr").exit_code == 1
    assert Path("out.tsr").read_bytes() == b"theirs"
    assert files_below(folder) == {"photo.jpg", "photo.fifo", "out.tsr"}


def test_a_link_that_appears_meanwhile_is_not_followed(folder):
    with read_after(lambda: Path("late.tsr").symlink_to("elsewhere")):
        assert run("encode", "photo.fifo", "late.tsr").exit_code == 1
    assert not Path("elsewhere").exists()


def test_an_input_that_vanishes_meanwhile_is_one_error(folder):
    Path("b.jpg").write_bytes(Path("photo.jpg").read_bytes())
    with read_after(Path("b.jpg").unlink):
        outcome = run("encode", "photo.fifo", "b.jpg", "--output-dir", "out", "-j", "1", "--json")
    assert outcome.exit_code == 1
    assert statuses(outcome) == {"photo.fifo": "done", "b.jpg": "failed"}
    assert files_below(folder / "out") == {"photo.tsr"}


# Errors


def test_one_bad_file_stops_no_other(tree, tmp_path):
    (tree / "bad.jpg").write_bytes((tree / "b.webp").read_bytes()[:40])
    outcome = run("encode", tree, tree / "notes.txt", tree / "none.png", "--output-dir", tmp_path / "out", "--json", "--quiet")
    assert outcome.exit_code == 1
    assert statuses(outcome) == {
        "a.png": "done", "b.webp": "done", "bad.jpg": "failed", "notes.txt": "failed", "none.png": "failed",
    }  # fmt: skip
    assert outcome.stderr.count("\n") == 3  # errors alone
    assert files_below(tmp_path / "out") == {"a.tsr", "b.tsr"}


def test_an_error_that_stops_all_is_printed_once(tree, tmp_path):
    for options in (("--model", "nosuch"), ("--target-lpips", "0.4", "--lpips-weights", tmp_path / "none.npz")):
        outcome = run("encode", tree, "--output-dir", tmp_path / "out", *options)
        assert outcome.exit_code == 1
        assert outcome.stderr.count("Error: ") == 1
        assert not (tmp_path / "out").exists() or files_below(tmp_path / "out") == set()


def test_a_full_disk_leaves_nothing(tree, tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
    try:
        outcome = run("encode", tree, "--output-dir", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 3
    assert files_below(tmp_path / "out") == set()


def test_a_failed_replacement_leaves_the_old_file(folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Path("photo.tsr").write_bytes(b"old")
    monkeypatch.setattr("os.replace", full)
    assert run("encode", "photo.jpg", "-f").exit_code == 1
    assert files_below(folder) == {"photo.jpg", "photo.tsr"}
    assert Path("photo.tsr").read_bytes() == b"old"


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="no folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_to_is_an_error_per_file(tree):
    outcome = run("encode", tree / "a.png", tree / "b.webp", "--output-dir", "/sys")
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 3
