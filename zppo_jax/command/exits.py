"""The end of a command: one line on standard error, and an exit status."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import NoReturn

from zppo_jax.command.terminal import one_harmless_line

_FIXES = {
    errno.ENOSPC: "free some space, then run the same command to continue",
    errno.EFBIG: "raise the limit on the size of files, then run the same command to continue",
    errno.EDQUOT: "the quota is used up; free some space, then run the same command to continue",
    errno.EROFS: "choose a --workdir that can be written",
    errno.EACCES: "choose a --workdir that can be written",
    errno.ESTALE: "the file system was mounted again; the same command continues",
    errno.EIO: "the disk or the network to it fails; the same command continues",
}


def disk_fault(error: BaseException, workdir: Path) -> str | None:
    """The line about a disk error: one that the user can fix, or any about a path in the run directory, where
    something must be that no run has put there. None for a fault of the program."""
    if not isinstance(error, OSError):
        return None
    named = isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(workdir.absolute())
    gone = error.errno == errno.ENOENT
    local = f"{'it was deleted meanwhile;' if gone else 'move it away, then'} run the same command to continue"
    fix = _FIXES.get(error.errno or 0, local if named else None)
    return fix and f"{error.filename or workdir}: {error.strerror}; {fix}"


def exit_with(message: object, status: int) -> NoReturn:
    """Prints the message in one line on standard error and exits with the status."""
    print(f"zppo_jax: {one_harmless_line(str(message))}", file=sys.stderr)
    sys.exit(status)
