"""Processes that learn together. They run apart from the test's own, which cannot be forked once it has had gradients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from cli.main import main

ROOT = Path(__file__).parent.parent

MEAN = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from test_training import CPU, TINY
from codec.pyramid.network import Network
from codec.pyramid.training import PyramidTrainer, PyramidTraining
from codec.training.distributed import Team, together
from codec.training.trainer import train

torch.manual_seed(0)
photos = torch.randint(0, 256, (2, 320, 320, 3), dtype=torch.uint8)
network = Network(TINY)


def trainer():
    mine = Network(TINY)
    mine.load_state_dict(network.state_dict())
    return PyramidTrainer(mine, PyramidTraining(steps=3, batch=1, rate=1e-3), CPU)


ours = trainer()


def learn(team):
    ours.join(team)
    train(ours, photos, photos, None, Path(sys.argv[1]), print)


together(2, learn)
assert ours.total_crops == 6, ours.total_crops
alone = []
for rank in (0, 1):
    one = trainer()
    one.join(Team(rank, 2))
    for _ in range(3):
        one.train_step(photos, None)
    alone.append(one)
for part in ("network", "average", "prices"):
    first, second, mean = (getattr(one, part).state_dict() for one in (*alone, ours))
    moved = 0
    for name in mean:
        assert torch.allclose(mean[name], (first[name] + second[name]) / 2, atol=1e-6), (part, name)
        moved += not torch.equal(first[name], second[name])
    assert moved > 5, (part, moved)
for one, other, mean in zip(*(t.network.parameters() for t in (*alone, ours))):
    for name in ("exp_avg", "exp_avg_sq"):
        wanted = (alone[0].optimizer.state[one][name] + alone[1].optimizer.state[other][name]) / 2
        assert torch.allclose(ours.optimizer.state[mean][name], wanted, atol=1e-7)
"""

TINY_COMMAND = """
import sys
from test_training import TINY
import codec.pyramid.training
import codec.training.trainer
codec.pyramid.training.STANDARD = TINY
codec.training.trainer.CHECKPOINT_MINUTES = 0
from cli.main import main
main(sys.argv[1:])
"""


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error::UserWarning", "-c", script, *map(str, arguments)]


def surroundings() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def test_a_team_goes_on_from_the_mean_of_what_each_has_learned(tmp_path):
    done = subprocess.run(python(MEAN, tmp_path), env=surroundings(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(photo, tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        photo.crop((index * 90, 0, index * 90 + 330, 330)).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def test_a_team_ends_with_a_checkpoint_when_asked_to(folder):
    command = ("train", folder / "photos", "--state", folder / "state", "--processes", 2, "--batch", 1, "--vgg", "none")
    with subprocess.Popen(
        python(TINY_COMMAND, *command), env=surroundings(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "no VGG19 wanted" in process.stderr.readline()
            assert process.stderr.readline() == "2 photos to train on, 1 held out, on cpu with 2 processes\n"
            assert "crops/s" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, process.stderr.read()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    with safe_open(folder / "state" / "checkpoint.safetensors", "pt") as file:
        progress = json.loads(file.metadata()["trainer"])["progress"]
        assert progress["total_crops"] == 2 * progress["step"] > 0
        assert torch.isfinite(file.get_tensor("network.decoder.linear.weight")).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "2"], "--processes and --threads: each process has one thread; leave one of the two out"),
        (
            ["--steps", "9", "--minutes", "1"],
            "--minutes and --steps: either is the length of the schedule; leave one of the two out",
        ),
        (["--family", "one-d-piece"], "processes cannot train a one-d-piece together, since its codebook cannot be averaged"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, arguments, words):
    command = ["train", str(folder / "photos"), "--processes", "2", "--vgg", "none", "--state", str(folder / "state")]
    result = CliRunner().invoke(main, [*command, *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (folder / "state").exists()
