"""Memory that is free goes back to the system."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from codec.system.process import trim_heap

MEGABYTE = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has a call for it")
def test_holes_between_arrays_are_given_back():
    resident = psutil.Process().memory_info
    np.ones(16 * MEGABYTE, np.uint8)  # freed at once: from now on, smaller arrays are of the heap
    arrays = [np.ones(MEGABYTE, np.uint8) for _ in range(100)]
    del arrays[:-1]  # the last is on top of the others
    before = resident().rss
    trim_heap()
    assert before - resident().rss > 50 * MEGABYTE
    assert arrays[0].sum() == MEGABYTE
