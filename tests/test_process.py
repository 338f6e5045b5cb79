"""Forked processes code images, whatever the threads of their parent did; freed memory returns to the system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from codec.system.process import trim_heap
from tests.helpers import PHOTO, ROOT

MEGABYTE = 2**20
TIMEOUT = 100  # seconds
POOL = f"""
import multiprocessing, sys, threading
from concurrent.futures import ProcessPoolExecutor
import numpy as np
import torch
import tessera
from codec import codec as codec_module
from codec.image import opening

torch.set_num_threads(2)
codec = tessera.Codec(device="cpu", runtime=sys.argv[1])
data = codec.encode({str(PHOTO)!r}, tokens=100).data
expected = np.asarray(codec.decode(data).image).astype(int)

def encode(image):
    return codec.encode(image).data

def decode(data):
    return codec.decode(data).image

locked, finished = threading.Event(), threading.Event()

def hold_locks():
    with codec_module.LOADING, opening._pillow:
        locked.set()
        finished.wait()

threading.Thread(target=hold_locks, daemon=True).start()
locked.wait()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    images = list(pool.map(decode, [data] * 2))
    files = list(pool.map(encode, [{str(PHOTO)!r}]))
finished.set()
assert files == [encode({str(PHOTO)!r})]
for image in images:  # one thread sums in another order than two
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
"""


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_forked_pool_codes_after_its_parent_did(runtime):
    process = subprocess.Popen(
        [sys.executable, "-c", POOL, runtime], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and its children, which may wait for ever
    assert process.returncode == 0, errors


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has malloc_trim")
def test_gaps_between_arrays_are_returned():
    resident = psutil.Process().memory_info
    np.ones(16 * MEGABYTE, np.uint8)  # once it is freed, glibc takes smaller arrays from the heap
    arrays = [np.ones(MEGABYTE, np.uint8) for _ in range(100)]
    del arrays[:-1]  # the last one stays at the top of the heap
    before = resident().rss
    trim_heap()
    assert before - resident().rss > 50 * MEGABYTE
    assert arrays[0].sum() == MEGABYTE
