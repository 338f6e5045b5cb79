"""Training in several processes. It runs in a process of its own here: one that has computed gradients cannot be forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.helpers.commands import SURROUNDINGS, TIMEOUT, run

# Trains in two processes, then compares network, moving average, prices and moments with those of two separate trainers.
COMPARE = """
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from codec.pyramid.network import Network
from codec.pyramid.training import PyramidTrainer, PyramidTraining
from codec.training.distributed import ProcessGroup, run_distributed
from codec.training.trainer import train
from tests.helpers.networks import CPU, TINY

torch.manual_seed(0)
photos = torch.randint(0, 256, (2, 320, 320, 3), dtype=torch.uint8)
network = Network(TINY)


def new_trainer():
    copy = Network(TINY)
    copy.load_state_dict(network.state_dict())
    return PyramidTrainer(copy, PyramidTraining(steps=3, batch=1, rate=1e-3), CPU)


shared = new_trainer()


def work(group):
    shared.join_group(group)
    train(shared, photos, photos, None, Path(sys.argv[1]), print)


run_distributed(2, work)
assert shared.total_crops == 6, shared.total_crops
separate = []
for rank in (0, 1):
    trainer = new_trainer()
    trainer.join_group(ProcessGroup(rank, 2))
    for _ in range(3):
        trainer.train_step(photos, None)
    separate.append(trainer)
for part in ("network", "ema", "prices"):
    first, second, mean = (getattr(trainer, part).state_dict() for trainer in (*separate, shared))
    different = 0
    for name in mean:
        assert torch.allclose(mean[name], (first[name] + second[name]) / 2, atol=1e-6), (part, name)
        different += not torch.equal(first[name], second[name])
    assert different > 5, (part, different)
for first, second, mean in zip(*(trainer.network.parameters() for trainer in (*separate, shared))):
    for name in ("exp_avg", "exp_avg_sq"):
        expected = (separate[0].optimizer.state[first][name] + separate[1].optimizer.state[second][name]) / 2
        assert torch.allclose(shared.optimizer.state[mean][name], expected, atol=1e-7)
"""

# The command, with a small network and a checkpoint after every synchronisation.
TINY_COMMAND = """
import sys
from tests.helpers.networks import TINY
import codec.pyramid.training
import codec.training.trainer
codec.pyramid.training.STANDARD = TINY
codec.training.trainer.CHECKPOINT_MINUTES = 0
from cli.main import main
main(sys.argv[1:])
"""


def python(script: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error::UserWarning", "-c", script, *map(str, arguments)]


def test_processes_continue_from_the_mean_of_their_states(tmp_path):
    outcome = subprocess.run(python(COMPARE, tmp_path), env=SURROUNDINGS, capture_output=True, text=True, timeout=TIMEOUT)
    assert outcome.returncode == 0, outcome.stderr


@pytest.fixture
def folder(photo, tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        photo.crop((index * 90, 0, index * 90 + 330, 330)).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def test_sigterm_ends_all_processes_with_a_checkpoint(folder):
    command = ("train", folder / "photos", "--state", folder / "state", "--processes", 2, "--batch", 1, "--vgg", "none")
    with subprocess.Popen(
        python(TINY_COMMAND, *command), env=SURROUNDINGS, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any("crops/s" in line for line in lines)  # the first synchronisation
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0, process.stderr.read()
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
        (("--threads", "2"), "--threads"),
        (("--steps", "9", "--minutes", "1"), "--minutes"),
        (("--family", "one-d-piece"), "one-d-piece"),
    ],
)
def test_options_that_exclude_each_other_are_refused(folder, arguments, words):
    command = ("train", folder / "photos", "--processes", "2", "--vgg", "none", "--state", folder / "state")
    outcome = run(*command, *arguments)
    assert outcome.exit_code == 2
    assert words in outcome.stderr
    assert not (folder / "state").exists()
