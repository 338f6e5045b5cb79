"""Where outputs go: names given in every way that people expect, inputs that want one output, and outputs that exist."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cli.encode
from bitstream.container import read_file
from cli.main import main
from codec.errors import FileError
from codec.system.files import Writer


def run(*arguments, data: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=data)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def folder(tmp_path, photo, monkeypatch) -> Path:
    """The current folder, with a photo."""
    photo.crop((40, 60, 88, 92)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_name_is_the_output(folder):
    assert run("encode", "photo.jpg", "out.tsr").exit_code == 0
    assert run("decode", "out.tsr", "again.webp").exit_code == 0
    assert run("decode", "-", "piped.png", data=Path("out.tsr").read_bytes()).exit_code == 0
    assert names(folder) == {"photo.jpg", "out.tsr", "again.webp", "piped.png"}
    with Image.open("again.webp") as drawn:
        assert (drawn.format, drawn.size) == ("WEBP", (48, 32))
    refused = run("encode", "photo.jpg", "out.tsr")
    assert refused.exit_code == 1
    assert "Error: photo.jpg: the output out.tsr exists: use -f to replace it\n" in refused.stderr
    assert run("encode", "photo.jpg", "out.tsr", "-f").exit_code == 0
    assert names(folder) == {"photo.jpg", "out.tsr", "again.webp", "piped.png"}


def test_two_images_are_two_inputs(folder, photo):
    photo.crop((0, 0, 20, 20)).save("b.png")
    assert run("encode", "photo.jpg", "b.png").exit_code == 0
    assert names(folder) == {"photo.jpg", "b.png", "photo.tsr", "b.tsr"}


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("photo.jpg", "out.tsr"), "tessera encode photo.jpg out.tsr"),
        (("missing one.png", "-q", "75"), "tessera encode 'missing one.png' -q 75"),
        (("out.tsr", "out.png"), "tessera decode out.tsr out.png"),
    ],
)
def test_a_missing_command_is_answered_with_the_one_that_was_meant(folder, arguments, meant):
    said = run(*arguments)
    assert said.exit_code == 2
    assert f"did you mean `{meant}`?" in said.stderr
    assert names(folder) == {"photo.jpg"}


@pytest.mark.parametrize("output", ["out/", "out/deeper/", "there"])
def test_an_output_that_is_a_folder_takes_the_file_in(folder, output):
    Path("there").mkdir()
    place = output.rstrip("/")
    assert run("encode", "photo.jpg", "-o", output).exit_code == 0
    assert run("decode", f"{place}/photo.tsr", "--output", f"{place}/").exit_code == 0
    Path(output).mkdir(exist_ok=True)
    assert run("tokens", f"{place}/photo.tsr", "-o", output).exit_code == 0
    assert names(folder) == {"photo.jpg", *(f"{place}/photo.{ending}" for ending in ("tsr", "png", "npz"))}


def test_several_files_go_into_a_folder_too(folder, photo):
    photo.crop((0, 0, 20, 20)).save("b.png")
    assert run("encode", "photo.jpg", "b.png", "-o", "out/").exit_code == 0
    assert {"out/photo.tsr", "out/b.tsr"} <= names(folder)
    said = run("encode", "-", "-o", "out/", data=Path("b.png").read_bytes())
    assert (said.exit_code, "--output-dir is not for standard input or output: use -o FILE" in said.stderr) == (2, True)


def test_outputs_that_are_named_like_inputs_need_f(folder):
    said = run("encode", "photo.jpg", "-o", "x.webp")
    assert said.exit_code == 2
    assert "x.webp: encode writes .tsr files: name another ending, use `tessera decode`, or -f if you mean it" in said.stderr
    assert names(folder) == {"photo.jpg"}
    assert run("encode", "photo.jpg", "-o", "x.webp", "-f").exit_code == 0
    assert read_file(Path("x.webp").read_bytes()).complete
    said = run("decode", "x.webp", "-o", "y.tsr", "--format", "png")
    assert (said.exit_code, "decode writes images" in said.stderr) == (2, True)


def test_inputs_for_one_output_fail_and_the_rest_goes_on(folder, photo):
    for name in ("grey.jpg", "grey.png"):
        photo.convert("L").crop((0, 0, 20, 20)).save(name)
    said = run("encode", ".")
    assert said.exit_code == 1
    assert (
        "Error: ./grey.jpg: ./grey.png would be written to ./grey.tsr too: use --keep-extension, or rename one\n" in said.stderr
    )
    assert "Error: ./grey.png: ./grey.jpg would be written to ./grey.tsr too: " in said.stderr
    assert said.stderr.splitlines()[-1].startswith("1 encoded, 0 skipped, 2 failed")
    assert names(folder) == {"photo.jpg", "grey.jpg", "grey.png", "photo.tsr"}
    assert run("encode", ".", "--keep-extension").exit_code == 0
    assert {"photo.jpg.tsr", "grey.jpg.tsr", "grey.png.tsr"} <= names(folder)
    Path("sub").mkdir()
    photo.crop((0, 0, 20, 20)).save("sub/grey.png")
    said = run("encode", "grey.png", "sub/grey.png", "--output-dir", "out")
    assert said.exit_code == 1
    assert "sub/grey.png would be written to out/grey.tsr too: rename one, or use a command for each" in said.stderr


def test_an_output_that_is_another_input_fails_alone(folder):
    assert run("encode", "photo.jpg", "a.tsr").exit_code == 0
    data = Path("a.tsr").read_bytes()
    Path("a.png").write_bytes(data)
    Path("b.tsr").write_bytes(data)
    said = run("decode", "a.tsr", "./a.png", "b.tsr", "-f")
    assert said.exit_code == 1
    assert "Error: a.tsr: would be written to a.png, which is an input too: use --output-dir" in said.stderr
    assert Path("a.png").read_bytes() == data
    assert Path("b.png").exists()


def appearing(monkeypatch, path: str, make) -> None:
    """Lets something make `path` while an image is encoded."""
    load = cli.encode.load

    def loaded(*arguments):
        make(Path(path))
        return load(*arguments)

    monkeypatch.setattr(cli.encode, "load", loaded)


@pytest.mark.parametrize("links", [True, False])
def test_an_output_that_appears_meanwhile_is_not_replaced(folder, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    assert run("encode", "photo.jpg", "first.tsr").exit_code == 0
    appearing(monkeypatch, "out.tsr", lambda path: path.write_bytes(b"theirs"))
    said = run("encode", "photo.jpg", "out.tsr")
    assert said.exit_code == 1
    assert said.stderr == "Error: photo.jpg: the output out.tsr has appeared in the meantime: use -f to replace it\n"
    assert Path("out.tsr").read_bytes() == b"theirs"
    assert names(folder) == {"photo.jpg", "first.tsr", "out.tsr"}
    assert run("encode", "photo.jpg", "out.tsr", "-f").exit_code == 0
    assert read_file(Path("out.tsr").read_bytes()).complete


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_without_replacing_one_succeeds(tmp_path, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    written, start = [], threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            Writer().write(str(tmp_path / "a"), b"%d" % number)
        except FileError:
            return
        written.append(b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [(tmp_path / "a").read_bytes()]
    assert names(tmp_path) == {"a"}


def test_links_are_followed_with_f_and_refused_without(folder, monkeypatch):
    Path("link.tsr").symlink_to("target.tsr")
    refused = run("encode", "photo.jpg", "link.tsr")
    assert refused.exit_code == 1
    assert "the output link.tsr is a link to a file that does not exist: use -f to write that file" in refused.stderr
    assert not Path("target.tsr").exists()
    assert run("encode", "photo.jpg", "link.tsr", "-f").exit_code == 0
    assert Path("link.tsr").is_symlink()
    assert read_file(Path("target.tsr").read_bytes()).complete
    appearing(monkeypatch, "late.tsr", lambda path: path.is_symlink() or path.symlink_to("elsewhere"))
    said = run("encode", "photo.jpg", "late.tsr")
    assert (said.exit_code, "has appeared in the meantime" in said.stderr) == (1, True)
    assert not Path("elsewhere").exists()
