"""Damages files in many ways and checks what the library and the command do with them:

    python -m tests.fuzz.run --count 100000 --seed 1

A process with limited memory does the work, so that a crash is a finding like others. Inputs with findings are stored in
tests/fuzz/findings and checked by the test suite from then on. The exit code is 1 if there are any.
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

MAX_MAPPED = 512 << 20  # bytes that the process may map after it has warmed up; allocators map more than they use
HANG_TIMEOUT = 30.0  # seconds for one input, before the process is killed
DECODE_EVERY = 100  # inputs; the network is slow


def work(seed: int, first: int, last: int, commands: bool, position: Synchronized[int], out: Connection) -> None:
    """Checks mutations first..last - 1: keeps `position` current, and sends findings with their index."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    checker, files = Checker(commands), corpus()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MAPPED,) * 2)
    for index in range(first, last):
        position.value = index
        data, forged = mutation(files, seed, index)
        for finding in checker.check(data, forged=forged, decode=index % DECODE_EVERY == 0):
            out.send((index, finding))
    position.value = last


def run(seed: int, count: int, verbose: bool = True, commands: bool = False) -> list[tuple[int, Finding]]:
    """All findings of mutations 0..count - 1, with their indexes."""
    context = multiprocessing.get_context("spawn")
    findings: list[tuple[int, Finding]] = []
    first, start = 0, time.monotonic()
    while first < count:
        position: Synchronized[int] = context.Value("q", first)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(seed, first, count, commands, position, sender))
        process.start()
        sender.close()
        killed, last, since = False, first, time.monotonic()
        while True:
            try:
                received = _receive(receiver, findings)
            except EOFError:  # the process has ended
                break
            if received or position.value != last:
                last, since = position.value, time.monotonic()
            elif time.monotonic() - since > HANG_TIMEOUT + 60 * (last == first):  # loading takes time too
                process.kill()
                killed = True
                break
            if verbose:
                sys.stderr.write(f"\r{last} of {count}, {len(findings)} findings, {time.monotonic() - start:.0f} s")
        process.join()
        if position.value < count:  # it did not end by itself
            kind = "hang" if killed else "crash"
            detail = f"no answer in {HANG_TIMEOUT:.0f} s" if killed else f"the process ended with {process.exitcode}"
            findings.append((position.value, Finding(kind, detail, mutation(corpus(), seed, position.value)[0])))
        first = position.value + 1
    if verbose:
        sys.stderr.write("\n")
    return findings


def _receive(receiver: Connection, findings: list[tuple[int, Finding]]) -> bool:
    """Waits a moment for a finding. Raises EOFError if the sender has ended."""
    if not receiver.poll(0.2):
        return False
    index, finding = receiver.recv()
    findings.append((index, finding))
    sys.stderr.write(f"\n{finding.kind} at {index}: {finding.detail}\n")
    return True


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
    parser.add_argument("--commands", action="store_true", help="run the commands too, which is slow")
    arguments = parser.parse_args()
    start = time.monotonic()
    findings = run(arguments.seed, arguments.count, commands=arguments.commands)
    for index, finding in findings:
        sys.stdout.write(f"{finding.kind} at {index}: {finding.detail}; kept as {keep(finding)}\n")
    counts = Counter(finding.kind for _, finding in findings)
    summary = ", ".join(f"{name} {counts[name]}" for name in ("crash", "hang", "memory", "exception", "silent"))
    seconds = time.monotonic() - start
    sys.stdout.write(
        f"{arguments.count} mutations of {len(corpus())} files, seed {arguments.seed}, {seconds:.0f} s: {summary}\n"
    )
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
