"""The worker processes of a build, and what each does: hash a file, scan a unit, write a shard.

Results come as they are finished; what they are does not depend on the number of workers. With one worker everything
runs in this process. A worker ends with its parent, also if that is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from zppo_jax.data.zppo77k import evaluation, inputs, shards
from zppo_jax.data.zppo77k.scan import Job, Scanner
from zppo_jax.data.zppo77k.shards import Format, Shard
from zppo_jax.data.zppo77k.units import Unit
from zppo_jax.errors import RunError

_AHEAD = 4
"""Tasks that wait for each worker: enough to keep it busy, few enough to stop soon."""


@dataclasses.dataclass(frozen=True)
class Hashed:
    """The task of hashing a file; gives its SHA-256."""

    path: str

    def run(self, job: Job) -> str:
        return inputs.sha256(self.path)


@dataclasses.dataclass(frozen=True)
class Keys:
    """The task of reading a file of evaluation data; writes its keys to `target`."""

    path: str
    target: Path

    def run(self, job: Job) -> None:
        evaluation.keys_of(self.path).save(self.target)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The task of scanning a unit; writes its facts to `target` and gives the number of rows."""

    unit: Unit
    target: Path

    def run(self, job: Job) -> int:
        _scanner(job).facts(self.unit).save(self.target)
        return self.unit.num_rows


@dataclasses.dataclass(frozen=True)
class Write:
    """The task of writing a shard; gives the number of its rows."""

    shard: Shard
    directory: Path
    workspace: Path
    kind: Format

    def run(self, job: Job) -> int:
        scanner = _scanner(job)
        content = (record for file, rows in self.shard.rows for record in scanner.records(file, rows))
        shards.write(self.directory, self.workspace, self.shard, self.kind, content)
        return self.shard.num_rows


Task = Hashed | Keys | Scan | Write


@functools.lru_cache(maxsize=1)
def _scanner(job: Job) -> Scanner:
    """The scanner of this process, which has its tokenizer; made when the first row is read."""
    return Scanner(job)


class Workers:
    """Runs tasks of a job in `count` processes: `with Workers(2, job) as workers`."""

    def __init__(self, count: int, job: Job):
        self._count = count
        self._job = job
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes, also in the middle of their tasks."""
        _scanner.cache_clear()
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                with contextlib.suppress(OSError):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """(number, result) of each task, in the order in which they finish. The first error ends all."""
        if self._count <= 1 or len(tasks) <= 1:
            for number, task in enumerate(tasks):
                yield number, task.run(self._job)
            return
        try:
            yield from self._run_in_pool(tasks)
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process was killed, as the system does when memory runs out: run the same command with fewer "
                "--workers; what is finished is kept"
            ) from error

    def _run_in_pool(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        pool = self._pool = self._pool or ProcessPoolExecutor(
            self._count, multiprocessing.get_context("spawn"), initializer=_begin
        )
        running: dict[Future[Any], int] = {}
        waiting = iter(enumerate(tasks))
        while True:
            for number, task in waiting:
                running[pool.submit(task.run, self._job)] = number
                if len(running) >= self._count * _AHEAD:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


# ---------------------------------------------------------------- in a worker process


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a worker process"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
