"""Child processes of this package: how they start and end, their environment, and the limits they set themselves.

Children open untrusted files, render untrusted templates or compare text of a model: the kernel bounds their memory and
processor time, and keys and tokens stay with the parent. Variables pass by an allowlist, which fails safe: an unknown
variable does not pass.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_KEPT = {
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "TZ"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
}
_KEPT_PREFIX = "LC_"


def environment() -> dict[str, str]:
    """The variables for a child: the allowed ones, this package first on the path, one thread for libraries."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIX)}
    paths = [str(Path(__file__).resolve().parents[1]), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


# ---------------------------------------------------------------- the parent's side


def command(module: str, *arguments: object) -> list[str]:
    """The command line of a child. -P keeps the current folder off the path: a file there must not shadow a module."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def start(command: Sequence[str], new_session: bool = True) -> subprocess.Popen[bytes]:
    """Starts a process with pipes for requests and replies, which Ctrl-C in the parent's terminal does not reach.

    Without a new session it gets only its own process group: if the system schedules sessions against each other, a low
    priority inside a session of one process would have no effect. Raises OSError.
    """
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(),
        start_new_session=new_session, process_group=None if new_session else 0,
    )  # fmt: skip


def end(process: subprocess.Popen[bytes], grace_seconds: float = 0.0) -> int:
    """Kills the process unless it ends by itself within the grace, closes its pipes, returns its exit code."""
    try:
        process.wait(timeout=grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # unsent bytes for a process that is gone
            if pipe is not None:
                pipe.close()
    return process.wait()


# ---------------------------------------------------------------- the child's side


def replies() -> BinaryIO:
    """Returns the pipe to the parent, moved out of reach of libraries that print; leaves Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return pipe


def limit_memory(megabytes: int) -> None:
    """Caps this process's address space and forbids core files. macOS refuses; only the time limits hold there."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
    except (ValueError, OSError):
        logging.getLogger(__name__).warning("this system does not limit the address space of child processes")


def limit_processor(seconds: float) -> None:
    """Lets this process use `seconds` more of processor time before SIGXCPU ends it (whole seconds, rounded up)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
