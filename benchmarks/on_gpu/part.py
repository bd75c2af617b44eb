"""Runs one script of benchmarks/gpu.sh with a time limit: its lines, and a line with the reason if it fails.

python -m benchmarks.on_gpu.part SECONDS SCRIPT [ARGUMENT ...]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time


def run(seconds: float, script: str, arguments: list[str]) -> dict[str, object]:
    """Runs the script, whose lines go to standard output at once; returns the line about it. The script and what it
    started are killed after `seconds`."""
    words, start = [sys.executable, "-m", f"benchmarks.on_gpu.{script}", *arguments], time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            why = f"it ended with status {status}" if (status := process.wait(seconds)) else ""
        except subprocess.TimeoutExpired:
            why = f"it took longer than {seconds:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        said = [line.strip() for line in errors.read().splitlines() if line.strip()]
    result: dict[str, object] = {"case": script, "part_seconds": round(time.monotonic() - start, 1)}
    return result | ({"measured": False, "why": f"{why}: {said[-1][:300] if said else ''}"} if why else {})


def main() -> None:
    seconds, script, *arguments = sys.argv[1:]
    print(json.dumps(run(float(seconds), script, arguments)), flush=True)


if __name__ == "__main__":
    main()
