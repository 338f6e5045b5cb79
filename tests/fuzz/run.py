"""Damages files in every way it knows and looks on.

    python -m tests.fuzz.run --count 100000 --seed 1

The work is done in a process of its own under limits of memory, so that even a crash is counted, kept and survived. Inputs that
found something are kept in tests/fuzz/findings, and tried by the test suite from then on. Ends with 1 if there were any.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from tests.fuzz.check import FINDINGS, Checker, Finding, corpus
from tests.fuzz.mutate import mutation

ADDRESSES = 512 << 20  # bytes that the process may map above what it has when warm: allocators map more than they use
STUCK = 30.0  # seconds without an input done, after which the process is ended
DECODED = 100  # one in so many is decoded


def work(seed: int, first: int, last: int, commands: bool, at: Synchronized[int], out: Connection) -> None:
    """Checks mutations first..last; says where it is, and what it found."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    checker, files = Checker(commands), corpus()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES,) * 2)
    for index in range(first, last):
        at.value = index
        data, forged = mutation(files, seed, index)
        for finding in checker.check(data, forged=forged, decode=index % DECODED == 0):
            out.send((index, finding))
    at.value = last


def run(seed: int, count: int, say: bool = True, commands: bool = False) -> list[tuple[int, Finding]]:
    """All findings of mutations 0..count, with their numbers."""
    context = multiprocessing.get_context("spawn")
    findings: list[tuple[int, Finding]] = []
    first, start = 0, time.monotonic()
    while first < count:
        at: Synchronized[int] = context.Value("q", first)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(seed, first, count, commands, at, theirs))
        process.start()
        theirs.close()
        killed, last, since = False, first, time.monotonic()
        while process.is_alive() or ours.poll():
            if _received(ours, findings) or at.value != last:
                last, since = at.value, time.monotonic()
            elif time.monotonic() - since > STUCK + 60 * (last == first):  # loading takes time too
                process.kill()
                killed = True
                break
            if say:
                sys.stderr.write(f"\r{last} of {count}, {len(findings)} findings, {time.monotonic() - start:.0f} s")
        process.join()
        if at.value < count:  # it did not come to its end
            kind = "hang" if killed else "crash"
            detail = f"no answer in {STUCK:.0f} s" if killed else f"the process ended with {process.exitcode}"
            findings.append((at.value, Finding(kind, detail, mutation(corpus(), seed, at.value)[0])))
        first = at.value + 1
    if say:
        sys.stderr.write("\n")
    return findings


def _received(ours: Connection, findings: list[tuple[int, Finding]]) -> bool:
    try:
        if ours.poll(0.2):
            index, finding = ours.recv()
            findings.append((index, finding))
            sys.stderr.write(f"\n{finding.kind} at {index}: {finding.detail}\n")
            return True
    except EOFError:
        time.sleep(0.05)
    return False


def keep(finding: Finding) -> Path:
    """Stores an input for the test suite."""
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{finding.kind}-{hashlib.sha256(finding.data).hexdigest()[:12]}.bin"
    path.write_bytes(finding.data)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="mutations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", action="store_true", help="the commands too; each loads a model, so memory adds up")
    given = parser.parse_args()
    start = time.monotonic()
    findings = run(given.seed, given.count, commands=given.commands)
    for index, finding in findings:
        sys.stdout.write(f"{finding.kind} at {index}: {finding.detail}; kept as {keep(finding)}\n")
    counts = Counter(finding.kind for _, finding in findings)
    told = ", ".join(f"{name} {counts[name]}" for name in ("crash", "hang", "memory", "exception", "silent"))
    seconds = time.monotonic() - start
    sys.stdout.write(f"{given.count} mutations of {len(corpus())} files, seed {given.seed}, {seconds:.0f} s: {told}\n")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
