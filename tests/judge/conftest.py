"""The scripted endpoint as a process, and judges that ask it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from zppo_jax.judge import Case, Judge
from zppo_jax.judge.cache import VerdictCache

SCRIPT = Path(__file__).parent / "scripted.py"


@dataclasses.dataclass
class Scripted:
    """A scripted endpoint: its port, and the file with a line for every request."""

    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def requests(self, model: str = "") -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [row for row in rows if not model or row["model"] == model]

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), str(self.port), str(self.log)])
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


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    pytest.importorskip("openai")
    scripted = Scripted(runs.free_port(), tmp_path_factory.mktemp("endpoint") / "log")
    scripted.start()
    yield scripted
    scripted.stop()


@dataclasses.dataclass
class Made:
    """A judge, and what it told the user."""

    judge: Judge
    said: list[str]


@pytest.fixture
def make(tmp_path: Path, endpoint: Scripted) -> Iterator[Callable[..., Made]]:
    """Makes judges with the model that is named, and short limits; closes them."""
    from zppo_jax.judge.asking import Requests
    from zppo_jax.judge.endpoint import Endpoint

    made: list[Judge] = []

    def judge(
        model: str,
        *,
        url: str = endpoint.url,
        timeout: float = 0.5,
        retries: int = 1,
        concurrency: int = 8,
        deadline: float = 20.0,
        max_tokens: int = 64,
        file: Path = tmp_path / "verdicts.sqlite",
    ) -> Made:
        said: list[str] = []
        asked = Endpoint(url, model, timeout_seconds=timeout, max_tokens=max_tokens, thinking=False)
        asker = Requests(asked, concurrency, retries, said.append)
        made.append(Judge(VerdictCache(file, said.append), model, max_tokens, deadline, asker))
        made[-1].begin(1)
        return Made(made[-1], said)

    yield judge
    for one in made:
        one.close()


def cases(count: int, gold: str = "rain", response: str = "snow") -> list[Case]:
    return [Case(f"What falls, number {number}?", gold, response) for number in range(count)]
