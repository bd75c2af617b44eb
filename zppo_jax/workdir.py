"""The run directory: one process at a time, one configuration for its whole life, and a safe way to stop.

with RunDirectory(path) as directory, StopRequest() as stop:
    directory.accept(config)
    ...
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import filelock

from zppo_jax.config import Config, ConfigError, changed_keys, to_json


class RunError(RuntimeError):
    """What ends a run that had begun; the message is one line: what happened, where, and the mend."""


class WorkdirError(RunError):
    """A run directory that cannot be used; the message is one line: directory, reason and mend."""


class RunDirectory:
    """A directory that this process alone writes, with the names of the files a run keeps there.

    Over several hosts all share the directory: the first one holds it, and each has a place of its `own` for what it
    alone can write.

    Raises `WorkdirError` when another process holds it or it cannot be written. The lock is the kernel's, so that of
    a killed process is free at once.
    """

    def __init__(self, path: Path | str, host: int = 0) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples_file = self.path / "samples.jsonl"
        self.curves_file = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.own = self.path if host == 0 else self.path / "hosts" / str(host)
        self._lock_file = self.path / ".lock"
        self._make()
        self._lock = self._acquire() if host == 0 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()

    def release(self) -> None:
        """Lets another process have the directory."""
        if self._lock is not None:
            self._lock.release()

    def accept(self, config: Config, restored_step: int = 0) -> None:
        """Writes `config.json` at the first start, and afterwards refuses a configuration that differs from it.

        A start that failed before its first row of metrics (a wrong model path, say) binds nobody.

        Args:
          config: of this start. Its `num_steps` may differ from before, but not be less than `restored_step`.
          restored_step: step of the checkpoint that the run continues from; 0 when there is none.

        Raises:
          ConfigError: naming the keys that changed, with their values.
        """
        new = to_json(config)
        begun = restored_step > 0 or self.metrics_file.exists()
        if begun and self.config_file.exists():
            self._refuse_changes(self._read_config(), new)
        if config.num_steps < restored_step:
            raise ConfigError(
                f"num_steps = {config.num_steps} is less than the {restored_step} steps that the run in "
                f"--workdir={self.path} has made: set --config.num_steps={restored_step} or more"
            )
        write_atomically(self.config_file, json.dumps(new, indent=2, allow_nan=False).encode() + b"\n")

    def _make(self) -> None:
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            probe(self.path)
        except OSError as error:
            raise WorkdirError(
                f"--workdir={self.path} cannot be written ({error.strerror}): choose another, or free it"
            ) from error

    def _acquire(self) -> filelock.BaseFileLock:
        lock = filelock.FileLock(self._lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise WorkdirError(
                f"--workdir={self.path} is in use by {self._holder()}: wait for it, stop it, or choose another"
            ) from None
        self._lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}\n")
        return lock

    @property
    def mark(self) -> str:
        """What tells this directory, held by this run, from any other; "" where nobody holds it."""
        try:
            return self._lock_file.read_text()
        except OSError:
            return ""

    def require_shared(self, marks: Sequence[str]) -> None:
        """Raises WorkdirError where the hosts, whose `marks` these are, do not share the directory."""
        for host, mark in enumerate(marks):
            if mark != marks[0]:
                raise WorkdirError(
                    f"--workdir={self.path} is not the same directory on host 0 and on host {host}: name one that all "
                    "hosts share (docs/hosts.md)"
                )

    def _holder(self) -> str:
        try:
            return self._lock_file.read_text().partition("\n")[0] or "another process"
        except OSError:
            return "another process"

    def _read_config(self) -> Mapping[str, Any]:
        try:
            return json.loads(self.config_file.read_text())
        except ValueError as error:
            raise WorkdirError(
                f"{self.config_file} is no JSON ({error}): restore it, or start in an empty --workdir"
            ) from error

    def _refuse_changes(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = changed_keys(old, new)
        if not changed:
            return
        pairs = ", ".join(f"{name} (was {before!r}, now {after!r})" for name, (before, after) in changed.items())
        raise ConfigError(
            f"--workdir={self.path} holds a run with another configuration: {pairs}; "
            f"set the old value{'s' * (len(changed) > 1)}, or choose a new --workdir"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file so that a reader, or a crash, meets the old content or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # hosts in containers have equal process ids
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def probe(directory: Path) -> None:
    """Writes a small file and takes it away again; raises OSError where that cannot be done."""
    file = directory / f".probe-{uuid.uuid4().hex}"
    try:
        write_atomically(file, b"probe")
    finally:
        if directory.is_dir():
            file.unlink(missing_ok=True)


class StopRequested(Exception):
    """Somebody wants the run to end."""


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag that the loop asks between steps; a second one stops at once.

    What takes long is told as well: a report that was `checked` raises StopRequested, where that is `heeded`.

    The handlers are in force inside the `with` block only. Outside the main thread, where Python allows none, the
    flag is never set.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._heeded = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody wants the run to save and end."""
        return self._requested.is_set()

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """What is done meanwhile may be given up."""
        self._heeded = True
        try:
            yield
        finally:
            self._heeded = False

    def checked(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """The same report, that is called often; raises StopRequested instead where the request is heeded."""

        def checked(line: str) -> None:
            if self._heeded and self.requested:
                raise StopRequested
            report(line)

        return checked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested:
            raise KeyboardInterrupt
        self._requested.set()
        # Not print: a signal may arrive while print itself is at work.
        os.write(2, b"\nstopping and saving; press again to stop at once\n")
