"""The run directory: one process at a time, one configuration for its whole life.

with RunDirectory(path) as directory:
    directory.accept(config)
    ...

If other files in it prevent a start, one line names them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock

from zppo_jax.config import Config, changed_keys, flat, to_json
from zppo_jax.errors import ConfigError, WorkdirError
from zppo_jax.files import probe, read_file, sweep, write_atomically


class RunDirectory:
    """A directory that only this process writes, with the names of the files a run keeps there.

    With several hosts, all share the directory: the first host holds it, and each has its own `host_folder` for files
    that only it can write.

    Raises `WorkdirError` if another process holds it, it cannot be written, or its name is a pattern. The locks are the
    kernel's, so those of a killed process are free at once. One is on the directory itself, because `.lock` can be
    deleted; that file names the holder, and is the only lock if directories cannot be locked (NFS).
    """

    def __init__(self, path: Path | str, host: int = 0) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples_file = self.path / "samples.jsonl"
        self.curves_file = self.path / "curves.png"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.host_folder = self.path if host == 0 else self.path / "hosts" / str(host)
        self._lock_file = self.path / ".lock"
        require_name(self.path, "--workdir")
        with contextlib.ExitStack() as locks:
            self._make(locks, leads=host == 0)
            self._locks = locks.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()

    def release(self) -> None:
        """Releases the directory for other processes."""
        self._locks.close()

    def accept(self, config: Config, restored_step: int = 0, saved: Mapping[str, Any] | None = None) -> None:
        """Writes `config.json` at the first start, and afterwards refuses a configuration that differs from it.

        A start that failed before its first row of metrics (a wrong model path, for example) does not bind later ones.

        Args:
          config: the configuration of this start. Its `num_steps` may change, but not below `restored_step`.
          restored_step: the step of the checkpoint that the run continues from; 0 if there is none.
          saved: the keys that this checkpoint was saved with; None if it does not hold them.

        Raises:
          ConfigError: naming the keys that changed, with their values.
          WorkdirError: if the configuration that the run was begun with is unknown.
        """
        new = to_json(config)
        if restored_step > 0 or read_file(self.metrics_file):
            self._refuse_changes(self._begun_with(saved), new)
        if config.num_steps < restored_step:
            raise ConfigError(
                f"num_steps = {config.num_steps} is less than the {restored_step} steps that the run in "
                f"--workdir={self.path} has made: set --config.num_steps={restored_step} or more"
            )
        write_atomically(self.config_file, json.dumps(new, indent=2, allow_nan=False).encode() + b"\n")

    def _make(self, locks: contextlib.ExitStack, leads: bool) -> None:
        try:
            self.host_folder.mkdir(parents=True, exist_ok=True)
            if leads:
                self._hold(locks)
            probe(self.host_folder)
            if leads:
                self._acquire(locks)
                sweep(self.checkpoints)
            sweep(self.host_folder)
        except OSError as error:
            raise WorkdirError(
                f"--workdir={self.path} cannot be written ({error.strerror}): choose another, or free it"
            ) from error

    def _hold(self, locks: contextlib.ExitStack) -> None:
        """Locks the directory itself, if its file system supports that."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        locks.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use() from None
        except OSError:
            pass

    def _acquire(self, locks: contextlib.ExitStack) -> None:
        if self._lock_file.is_symlink() or (self._lock_file.exists() and not self._lock_file.is_file()):
            raise WorkdirError(
                f"{self._lock_file} is not a file of this program (a folder, or a link): delete it, then the same "
                "command goes on"
            )
        lock = filelock.FileLock(self._lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise self._in_use() from None
        locks.callback(lock.release)
        self._lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}\n")

    def _in_use(self) -> WorkdirError:
        return WorkdirError(
            f"--workdir={self.path} is in use by {self._holder()}: wait for it, stop it, or choose another"
        )

    @property
    def mark(self) -> str:
        """The unique mark of this directory while this run holds it; "" if no run holds it."""
        try:
            return self._lock_file.read_text()
        except (OSError, ValueError):
            return ""

    def require_shared(self, marks: Sequence[str]) -> None:
        """Raises WorkdirError if the hosts with these `marks` do not share the directory."""
        for host, mark in enumerate(marks):
            if mark != marks[0]:
                raise WorkdirError(
                    f"--workdir={self.path} is not the same directory on host 0 and on host {host}: name one that all "
                    "hosts share (docs/hosts.md)"
                )

    def _holder(self) -> str:
        return self.mark.partition("\n")[0] or "another process"

    def _begun_with(self, saved: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """The keys that the run was begun with: `saved` overrides `config.json`, which a user can edit or delete."""
        values = flat(self._read_config()) if self.config_file.exists() else {}
        values |= saved if isinstance(saved, Mapping) else {}
        if not values:
            raise WorkdirError(
                f"--workdir={self.path} holds a run without its config.json: put that back, or choose a new --workdir"
            )
        return values

    def _read_config(self) -> Mapping[str, Any]:
        try:
            values = json.loads(read_file(self.config_file).decode())
            if not isinstance(values, dict):
                raise ValueError("it holds no keys")
            return values
        except (ValueError, RecursionError) as error:
            raise WorkdirError(
                f"{self.config_file} is not a configuration ({error}): restore it, or start in an empty --workdir"
            ) from error

    def _refuse_changes(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = changed_keys(old, new)
        if not changed:
            return
        if missing := [name for name, pair in changed.items() if "absent" in pair]:
            raise ConfigError(
                f"--workdir={self.path} holds a run of another version of zppo_jax: the key {missing[0]} is not in "
                "both configurations. Continue it with that version, or choose a new --workdir"
            )
        pairs = ", ".join(f"{name} (was {before!r}, now {after!r})" for name, (before, after) in changed.items())
        raise ConfigError(
            f"--workdir={self.path} holds a run with another configuration: {pairs}; "
            f"set the old value{'s' * (len(changed) > 1)}, or choose a new --workdir"
        )


def require_name(path: Path, flag: str) -> None:
    """Raises WorkdirError for a run directory whose checkpoints Orbax could not find again: it treats the whole path as
    a `glob` pattern. Also for control characters and bytes that are not UTF-8, which cannot be printed in a line."""
    whole = str(path.absolute())
    odd = "".join(
        dict.fromkeys(char for char in whole if char in "*?[\\" or char < " " or "\ud800" <= char <= "\udfff")
    )
    if odd:
        raise WorkdirError(
            f"{flag}={whole!r} has {odd!r} in its name, with which checkpoints cannot be restored: choose another "
            "name, or rename the directory"
        )
