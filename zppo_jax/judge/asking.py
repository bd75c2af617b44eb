"""Many requests to an endpoint at once: so many beside each other, again after a failure, and none once it is down.

An event loop in a thread of its own sends them; any thread may submit. A request that is no longer waited for is
cancelled, and its connection closed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol

from zppo_jax.judge.prompt import Case, judge_text
from zppo_jax.judge.verdict import Unanswered

MAX_FAILURES = 3
"""So many cases in a row, each after its retries, and the endpoint counts as down for the rest of the step."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between two attempts; doubled each time
_POLL_SECONDS = 0.25


class Model(Protocol):
    """A judge model behind a network: the endpoint."""

    url: str

    async def ask(self, text: str) -> str: ...

    async def close(self) -> None: ...


class Requests:
    """Asks `model`: at most `concurrency` cases at once, each up to 1 + `retries` times, with growing pauses.

    `report` gets a line when the first case of a step fails, and when the endpoint counts as down: until the next step
    no request is sent then, and every case fails at once. The next step begins with a single attempt, and goes on as
    usual if it succeeds.
    """

    def __init__(self, model: Model, concurrency: int, retries: int, report: Callable[[str], None]) -> None:
        self._model, self._retries, self._report = model, retries, report
        self._room = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        self._waiting: set[Future[str]] = set()
        self._down, self._failures, self._told = "", 0, False
        self._doubted, self._alone = False, asyncio.Lock()  # whether it was down a step ago; one request at a time then

    def begin(self) -> None:
        """Begins a step: the endpoint is asked again, whatever happened before."""
        self._cancel()
        self._doubted = self._doubted or bool(self._down)
        self._down, self._failures, self._told = "", 0, False

    def submit(self, case: Case) -> Future[str]:
        """Sends a case; the future has the output, or Unanswered."""
        future = self._run(self._answer(judge_text(case)))
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def settle(self, futures: Collection[Future[str]]) -> None:
        """Waits a moment, or until all these are done."""
        concurrent.futures.wait(futures, timeout=_POLL_SECONDS)

    def give_up(self, reason: str) -> None:
        """Sends nothing more in this step, and cancels what is on its way."""
        self._fall(reason)
        self._cancel()

    def close(self) -> None:
        """Cancels everything and ends the thread."""
        if self._thread.is_alive():
            self._cancel()
            concurrent.futures.wait([self._run(self._model.close())], timeout=3.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _cancel(self) -> None:
        for future in tuple(self._waiting):
            future.cancel()

    async def _answer(self, text: str) -> str:
        async with self._room:
            if self._doubted:
                async with self._alone:
                    if self._doubted:
                        return await self._attempts(text, 0)
            return await self._attempts(text, self._retries)

    async def _attempts(self, text: str, retries: int) -> str:
        for attempt in range(retries + 1):
            if self._down:
                raise Unanswered(self._down)
            try:
                output = await self._model.ask(text)
            except Unanswered as failure:
                if attempt == retries or failure.down or not failure.again:
                    self._failed(failure, attempt + 1)
                    raise
                await asyncio.sleep(_pause(attempt))
            else:
                self._failures, self._doubted = 0, False
                return output
        raise AssertionError("the last attempt returns or raises")

    def _failed(self, failure: Unanswered, attempts: int) -> None:
        """Counts a case without a verdict, and tells the user at once."""
        self._failures += 1
        if not self._told:
            self._told = True
            self._report(
                f"!! the judge at {self._model.url} gave no verdict in {_times(attempts)} ({failure}): such "
                "responses stay undecided, and their groups are not used"
            )
        if failure.down or self._failures >= MAX_FAILURES or (self._doubted and failure.again):
            self._fall(str(failure))

    def _fall(self, reason: str) -> None:
        if not self._down:
            self._down = reason
            self._report(f"!! the judge at {self._model.url} is not asked again in this step: {reason}")


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' * (attempts > 1)}"


def _pause(attempt: int) -> float:
    """Seconds before the next attempt; the random part keeps many requests from coming back at the same moment."""
    return min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
