"""Process pools that fork after an image was coded work: torch's threads and held locks do not stop the children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import PHOTO, ROOT

POOL = f"""
import multiprocessing, sys, threading
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import torch
import codec
from codec import codec as api
from codec.image import reading

torch.set_num_threads(2)
shared = codec.Codec(device="cpu", runtime=sys.argv[1])
data = shared.encode({str(PHOTO)!r}, tokens=100)
expected = np.asarray(shared.decode(data)).astype(int)

def encode(image):
    return shared.encode(image)

def decode(data):
    return shared.decode(data)

held, done = threading.Event(), threading.Event()

def hold():
    with api.LOADING, reading._LIFTING:
        held.set()
        done.wait()

threading.Thread(target=hold, daemon=True).start()
held.wait()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    images = list(pool.map(decode, [data] * 2))
    files = list(pool.map(encode, [{str(PHOTO)!r}]))
done.set()
assert files == [encode({str(PHOTO)!r})]
for image in images:  # one thread adds up in another order than two
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
"""


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_forked_pool_codes_after_its_parent_did(runtime):
    process = subprocess.Popen(
        [sys.executable, "-c", POOL, runtime], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the children that wait for ever
    assert process.returncode == 0, said
