"""One side of a comparison: a separate process that runs on request by its standard input.

The two sides take turns, so that other load of the machine affects both, and they share no thread pool. A side imports
its libraries in `prepare`, after `pin`. Output of libraries goes to standard error; standard output carries one JSON
object per line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[], Any]


def pin(cores: list[int]) -> None:
    """Pin this process to some cores, and limit the libraries to them, which must not be imported yet."""
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(len(cores))
    if len(cores) == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()


def _clock() -> dict[str, float]:
    """Seconds: CPU of all threads, the part of it in the kernel (page faults), and wall clock."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": usage.ru_utime + usage.ru_stime, "kernel": usage.ru_stime, "wall": time.perf_counter()}


def timed(run: Run) -> tuple[Any, dict[str, float]]:
    """Runs `run`; returns its result, and the seconds that it took."""
    before = _clock()
    result = run()
    after = _clock()
    return result, {name: after[name] - before[name] for name in before}


def serve(cases: Mapping[str, Any], prepare: Callable[[Any, str], tuple[Run, Run, dict[str, Any]]]) -> None:
    """The main program of a side, with arguments CASE CHECKPOINT CORES.

    `prepare` loads and returns (run, check, facts): `facts` hold "versions", and under "extra" further values for the
    report. The first run, in which programs are compiled, is timed separately; `check` returns the numbers that both
    sides must agree on. After that, one timed run for each line of input.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, checkpoint, cores = sys.argv[1:]
    pin([int(core) for core in cores.split(",")])
    run, check, facts = prepare(cases[name], checkpoint)
    _, first = timed(run)
    print(json.dumps(facts | {"first_run": first, "check": check()}), file=answers, flush=True)
    for _ in iter(sys.stdin.readline, ""):
        _, seconds = timed(run)
        seconds["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(seconds), file=answers, flush=True)
