"""What child processes of this package are given of the environment: what Python needs to start, and no secret.

Children open files of strangers or compare what a model wrote, so keys and tokens stay with the parent. A list of what
may pass fails safe: a variable that nobody thought of does not pass.
"""

from __future__ import annotations

import os
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
