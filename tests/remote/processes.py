"""Servers as processes: a scripted endpoint, and our own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests import runs


@dataclasses.dataclass
class Scripted:
    """A scripted endpoint: the module that is run, the file with a line for every request, and the port."""

    module: str
    log: Path
    port: int = dataclasses.field(default_factory=runs.free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def requests(self, model: str = "") -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [row for row in rows if not model or row["model"] == model]

    def name_models(self, *names: str) -> None:
        """Sets the models that it says it has."""
        self.log.with_suffix(".names").write_text("\n".join(names))

    def start(self) -> None:
        command = [sys.executable, "-m", self.module, str(self.port), str(self.log)]
        self.process = subprocess.Popen(command, cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": str(runs.ROOT)})
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError("the endpoint did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclasses.dataclass
class OurServer:
    """`python -m zppo_jax.serve` as a process: the model's directory, further flags, and the key that it wants."""

    model: Path
    flags: Sequence[str] = ()
    key: str = ""
    port: int = dataclasses.field(default_factory=runs.free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts it; it answers some seconds later."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zppo_jax.serve", f"--model={self.model}", f"--port={self.port}", *self.flags],
            cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": str(runs.ROOT), "ZPPO_API_KEY": self.key},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self) -> None:
        """Waits until it answers."""
        end, ready = time.monotonic() + 240, False
        while not ready:
            assert self.process is not None and self.process.poll() is None and time.monotonic() < end
            time.sleep(0.2)
            with contextlib.suppress(OSError):
                ready = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
