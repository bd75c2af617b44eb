"""Scripted judges as a process, and judges that ask them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.remote.processes import Scripted
from zppo_jax.judge import Case, Judge
from zppo_jax.judge.cache import VerdictCache


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    pytest.importorskip("openai")
    with Scripted("tests.judge.scripted", tmp_path_factory.mktemp("endpoint") / "log") as scripted:
        yield scripted


@dataclasses.dataclass
class Made:
    """A judge, and what it told the user."""

    judge: Judge
    said: list[str]


@pytest.fixture
def make(tmp_path: Path, endpoint: Scripted) -> Iterator[Callable[..., Made]]:
    """Makes judges with the model that is named, and short limits; closes them."""
    from zppo_jax.judge.asking import RemoteJudge

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
        limits = {"timeout_seconds": timeout, "max_tokens": max_tokens, "concurrency": concurrency, "retries": retries}
        asker = RemoteJudge([url], model, thinking=False, report=said.append, **limits)
        made.append(Judge(VerdictCache(file, said.append), model, max_tokens, deadline, asker))
        made[-1].begin(1)
        return Made(made[-1], said)

    yield judge
    for one in made:
        one.close()


def cases(count: int, gold: str = "rain", response: str = "snow") -> list[Case]:
    return [Case(f"What falls, number {number}?", gold, response) for number in range(count)]
