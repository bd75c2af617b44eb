"""What child processes of this package are given of the environment, and the limits that they set themselves.

Children open files of strangers, render their templates or compare what a model wrote: the kernel bounds their memory
and processor time, and keys and tokens stay with the parent. A list of what may pass fails safe: a variable that nobody
thought of does not pass.
"""

from __future__ import annotations

import logging
import math
import os
import resource
from pathlib import Path

_KEPT = {
    *("PATH", "HOME", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "TZ"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
}
_KEPT_PREFIX = "LC_"


def environment() -> dict[str, str]:
    """The variables for a child: the kept ones, this very package in front of the path, one thread for libraries."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIX)}
    paths = [str(Path(__file__).resolve().parents[1]), kept.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def limit_memory(megabytes: int) -> None:
    """Caps this process's address space and forbids core files. macOS refuses: the limits of time still hold there."""
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
