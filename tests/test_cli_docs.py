"""Help, man page, completion, MIME type and models: what the command says of itself."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from bitstream.container import File, write_file
from cli.main import main
from cli.manual import manual
from codec.models.registry import BUNDLED, open_model
from tests.helpers import ROOT

MAN = ROOT / "docs" / "tessera.1"
MIME = ROOT / "docs" / "tessera-mime.xml"
SPACE = "{http://www.freedesktop.org/standards/shared-mime-info}"


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **options)


def test_help_comes_at_once_and_imports_nothing_large():
    large = {"torch", "numpy", "rich", "PIL", "safetensors", "codec.codec", "codec.parallel.ray_cluster", "ray", "benchmarks"}
    code = (
        "import sys; from cli.main import main; main(['--help'], standalone_mode=False); "
        f"sys.exit(','.join({large} & set(sys.modules)) or 0)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (said.returncode, said.stderr) == (0, "")
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("arguments", [["encode", "-n", "{a}"], ["models", "check"], ["completion", "zsh"], ["decode", "{a}"]])
def test_torch_is_not_imported_where_nothing_is_drawn(tmp_path, arguments):
    (tmp_path / "a.png").write_bytes(b"no image, no .tsr file")
    code = (
        "import sys; from contextlib import suppress; from cli.main import main\n"
        "with suppress(SystemExit): main(sys.argv[1:], prog_name='tessera')\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    arguments = [argument.format(a=tmp_path / "a.png") for argument in arguments]
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def test_the_man_page_is_current():
    assert MAN.read_text() == manual(), "run: python -m cli.manual docs/tessera.1"


def test_the_man_page_has_every_command_and_option():
    page = MAN.read_text().replace("\\-", "-")
    for command in main.commands.values():
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in page, option
    assert "tessera models check" in page


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_the_man_page_is_sound():
    said = subprocess.run(["groff", "-man", "-ww", "-z", MAN], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, tmp_path):
    said = run("completion", shell)
    assert said.exit_code == 0
    assert "_TESSERA_COMPLETE" in said.stdout
    assert said.stderr == ""
    if shutil.which(shell):
        (tmp_path / "script").write_text(said.stdout)
        assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


def completed(*words: str) -> set[str]:
    """What the shell is told to offer for the last word."""
    environment = {
        "_TESSERA_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["tessera", *words]),
        "COMP_CWORD": str(len(words)),
    }
    said = run(env=environment, prog_name="tessera")
    return set(said.stdout.split())


def test_words_are_completed():
    assert completed("en") == {"plain,encode"}
    assert {"plain,--target-size", "plain,--target-psnr"} < completed("encode", "--target-")
    assert completed("encode", "pho") == {"file,pho"}
    assert completed("encode", "--device", "cu") == {"plain,cuda"}
    assert completed("encode", "--model", "st") == {"plain,standard", "file,st"}
    assert completed("models", "l") == {"plain,list"}


def test_the_mime_type_is_that_of_real_files(tmp_path):
    (kind,) = ElementTree.parse(MIME).getroot().findall(f"{SPACE}mime-type")
    assert kind.get("type") == "image/x-tessera"
    assert [glob.get("pattern") for glob in kind.findall(f"{SPACE}glob")] == ["*.tsr"]
    (match,) = kind.findall(f"{SPACE}magic/{SPACE}match")
    value = match.get("value").encode().decode("unicode_escape").encode("latin-1")
    data = write_file(File(20, 10, b"\x00\x01", 3, b"abc"))
    assert data[int(match.get("offset")) :].startswith(value)
    assert value == b"\xd4\x54"


@pytest.mark.skipif(not shutil.which("update-mime-database"), reason="shared-mime-info is not installed")
def test_the_mime_database_takes_it(tmp_path):
    (tmp_path / "packages").mkdir()
    shutil.copy(MIME, tmp_path / "packages")
    environment = {**os.environ, "XDG_DATA_DIRS": str(tmp_path.parent)}
    subprocess.run(["update-mime-database", tmp_path], check=True, capture_output=True, env=environment)
    assert "50:image/x-tessera:*.tsr" in (tmp_path / "globs2").read_text()
    assert b"\xd4T" in (tmp_path / "magic").read_bytes()


def test_models_are_listed_found_and_checked(tmp_path):
    stream_id = open_model().stream_id.hex()
    assert re.search(rf"^standard  stream id {stream_id}  [\d.]+ MB$", run("models", "list").stdout, re.MULTILINE)
    told = [json.loads(line) for line in run("models", "list", "--json").stdout.splitlines()]
    path = BUNDLED / "standard.safetensors"
    wanted = {"name": "standard", "stream_id": stream_id, "bytes": path.stat().st_size, "path": str(path)}
    assert wanted in told
    assert run("models", "path").stdout == f"{path}\n"
    sound = run("models", "check", "standard", path)
    assert sound.exit_code == 0
    assert sound.stderr.count(f"stream id {stream_id}, sound") == 2


def test_models_that_are_not_sound_are_told(tmp_path):
    data = bytearray((BUNDLED / "standard.safetensors").read_bytes())
    at = data.index(b'"prior.0.0.bias"')  # its place in the file's index
    place = int(re.search(rb'"data_offsets":\[(\d+),', data[at:])[1])
    data[8 + int.from_bytes(data[:8], "little") + place] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(data[:100])
    said = run("models", "check", tmp_path / "bad.safetensors", tmp_path / "cut.safetensors", "standard", "--json")
    assert said.exit_code == 1
    told = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["status"] for line in told] == ["failed", "failed", "done"]
    assert "damaged" in told[0]["error"]
    assert "not a model file" in told[1]["error"]
    for name in ("nosuch", tmp_path / "cut.safetensors"):
        missing = run("models", "path", name)
        assert missing.exit_code == 1
        assert missing.stderr.startswith(f"Error: {name}: ")
        assert missing.stderr.count(str(name)) == 1
    for name in ("bad", "cut"):
        assert run("models", "check", tmp_path / f"{name}.safetensors").stderr.count(f"{name}.safetensors") == 1


def test_a_ruined_model_is_found_when_checked_and_when_used(tmp_path, photo):
    """Weights that neither the stream id nor the index of the file covers."""
    data = bytearray((BUNDLED / "standard.safetensors").read_bytes())
    start, index = 8 + int.from_bytes(data[:8], "little"), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    places = [entry["data_offsets"] for name, entry in index.items() if name.startswith("decoder.")]
    first, last = max(places, key=lambda place: place[1] - place[0])
    data[start + first : start + last] = bytes(last - first)
    ruined = tmp_path / "ruined.safetensors"
    ruined.write_bytes(data)
    photo.crop((0, 0, 64, 64)).save(tmp_path / "photo.png")
    said = run("models", "check", ruined)
    assert said.exit_code == 1
    assert re.match(r"Error: \S+ruined\.safetensors: damaged, its weights hash to \w{16} and not to \w{16}: get", said.stderr)
    used = run("encode", tmp_path / "photo.png", "--model", ruined)
    assert used.exit_code == 1
    assert "ruined.safetensors: damaged" in used.stderr
    assert not (tmp_path / "photo.tsr").exists()


def test_a_model_without_a_digest_is_refused_unless_it_is_known(tmp_path):
    arrays = load_file(BUNDLED / "standard.safetensors")
    plain = {key: value for key, value in open_model().metadata.items() if key != "digest"}
    save_file(arrays, tmp_path / "foreign.safetensors", {"tessera": json.dumps(plain | {"fingerprint": "00" * 32})})
    said = run("models", "check", tmp_path / "foreign.safetensors")
    assert said.exit_code == 1
    assert "states no digest, without which" in said.stderr


def test_every_command_below_a_group_has_help_with_examples():
    for name in main.commands["models"].commands:
        for flag in ("-h", "--help"):
            said = run("models", name, flag)
            assert said.exit_code == 0
            assert said.stdout.count("\n  tessera ") >= 2
