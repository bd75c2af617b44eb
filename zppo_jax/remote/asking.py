"""Many requests to endpoints at once: so many beside each other, again after a failure, and none once all are down.

An event loop in a separate thread sends them; any thread may submit. A request that is no longer waited for is
cancelled, and its connection closed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from zppo_jax.errors import one_line
from zppo_jax.remote.endpoint import Endpoint, Role
from zppo_jax.remote.health import Health, choose, has_another
from zppo_jax.remote.unanswered import Unanswered

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between two attempts; doubled each time
_POLL_SECONDS = 0.25
_CHECK_SECONDS = 10.0
_Output = TypeVar("_Output")

Body = Callable[[], Mapping[str, Any]]
"""Makes the body of a chat completion, when it is sent, in any thread: images take memory."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What an endpoint said about its models: their names, or what went wrong."""

    url: str
    names: tuple[str, ...] = ()
    fault: Unanswered | None = None

    @property
    def is_away(self) -> bool:
        """Whether nobody answered there, or only an error."""
        return self.fault is not None and self.fault.cause in ("unavailable", "timeout")


@dataclasses.dataclass
class _Trial:
    """A request on its way: the attempts that are left and those that were sent, and the last failure at each endpoint
    that it was sent to."""

    left: int
    sent: int = 0
    failures: dict[Health, Unanswered] = dataclasses.field(default_factory=dict)


class Requests:
    """Asks the `urls`: at most `concurrency` requests at once, each up to 1 + `retries` times, with growing pauses.

    An attempt goes to the least busy endpoint that works; after a failure to another, if there is one. `report` gets a
    line when the first request of a step fails, and when an endpoint counts as down: nothing is sent there then, for
    `rest_seconds` at first and for longer each time, at most until the next step. If all are down, a request fails at
    once. An endpoint that was down begins with a single attempt, and goes on as usual if it succeeds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        role: Role,
        *,
        concurrency: int,
        retries: int,
        timeout_seconds: float,
        max_bytes: int,
        report: Callable[[str], None],
        rest_seconds: float = math.inf,
        longest_pause: float = 60.0,
        model: str = "",
    ) -> None:
        """An endpoint that asks for a pause longer than `longest_pause` counts as down. One that comes back must have
        the `model`, if one is given. Raises ConfigError."""
        self._role, self._retries, self._report, self._longest_pause = role, retries, report, longest_pause
        self._model = model
        ends = [Endpoint(url, role, timeout_seconds=timeout_seconds, max_bytes=max_bytes) for url in urls]
        self._endpoints = {Health(end.url, rest_seconds): end for end in ends}
        self._url = ",".join(urls)
        self._room = asyncio.Semaphore(concurrency)
        self._news = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=role.name, daemon=True)
        self._thread.start()
        self._waiting: set[Future[Any]] = set()
        self._over, self._said = "", set[str]()

    def begin(self) -> None:
        """Begins a step: every endpoint is asked again, whatever happened before."""
        self._cancel()
        self._loop.call_soon_threadsafe(self._begin)

    def check(self) -> list[Found]:
        """Asks every endpoint for the names of its models, for some seconds; those that are away are doubted."""
        asked = [self._run(self._names(end)) for end in self._endpoints.values()]
        found = [future.result() for future in asked]
        for one, its in zip(self._endpoints, found, strict=True):
            one.doubted = its.is_away
        return found

    def submit(self, body: Body, read: Callable[[Any], _Output]) -> Future[_Output]:
        """Sends a request; the future has what `read` makes of the reply, or Unanswered, which `read` may raise too."""
        future: Future[_Output] = self._run(self._answer(body, read))
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def settle(self, futures: Collection[Future[Any]]) -> None:
        """Waits a moment, or until all these are done."""
        concurrent.futures.wait(futures, timeout=_POLL_SECONDS)

    def give_up(self, reason: str) -> None:
        """Sends nothing more in this step, and cancels what is on its way."""
        self._over = reason
        if not all(one.down for one in self._endpoints):
            self._report(f"!! the {self._role.name} at {self._url} is not asked again in this step: {reason}")
        self._cancel()

    def close(self) -> None:
        """Cancels everything and ends the thread."""
        if self._thread.is_alive():
            self._cancel()
            concurrent.futures.wait([self._run(end.close()) for end in self._endpoints.values()], timeout=3.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _cancel(self) -> None:
        for future in tuple(self._waiting):
            future.cancel()

    # ---------------------------------------------------------------- in the event loop

    def _begin(self) -> None:
        for one in self._endpoints:
            one.begin(gave_up=bool(self._over))
        self._over = ""
        self._said.clear()

    async def _names(self, end: Endpoint) -> Found:
        try:
            return Found(end.url, await end.models(_CHECK_SECONDS))
        except Unanswered as fault:
            return Found(end.url, fault=fault)

    async def _answer(self, body: Body, read: Callable[[Any], _Output]) -> _Output:
        trial = _Trial(self._retries)
        async with self._room:
            await self._place(trial)  # if all are down, nothing is made
            made = await _made(body)
            while True:
                one = await self._place(trial)
                doubted, trial.sent = one.doubted, trial.sent + 1
                try:
                    output = await self._attempt(one, made, read)
                except Unanswered as failure:
                    trial.failures[one] = failure
                    await self._prepare_next(trial, one, doubted)
                else:
                    one.answered()
                    self._blame({end: failure for end, failure in trial.failures.items() if end is not one})
                    return output

    async def _place(self, trial: _Trial) -> Health:
        """The endpoint for the next attempt, as soon as there is one."""
        while True:
            if self._over:
                raise Unanswered(self._over, "late", again=False)
            now = time.monotonic()
            try:
                one = choose(list(self._endpoints), trial.failures, now)
            except Unanswered as down:
                raise (list(trial.failures.values())[-1] if trial.failures else down) from None
            if one is not None:
                return one
            moments = [one.free_at for one in self._endpoints if one.free_at > now]
            await self._wait_for_news(min(moments, default=math.inf) - now)

    async def _wait_for_news(self, seconds: float) -> None:
        """Waits until an attempt has ended, at most for these seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), min(seconds, _LONGEST_PAUSE))

    async def _attempt(self, one: Health, body: Mapping[str, Any], read: Callable[[Any], _Output]) -> _Output:
        one.busy += 1
        one.probed = one.probed or one.doubted
        try:
            if one.doubted and self._model:
                await self._check_model(self._endpoints[one])
            return read(await self._endpoints[one].chat(body))
        except Unanswered as failure:
            failure.down = failure.down or failure.pause > self._longest_pause
            failure.args = (self._endpoints[one].safe(str(failure)),)  # it may repeat what the server said
            raise
        except Exception as error:  # a reply of a form that nobody foresaw
            raise Unanswered(self._endpoints[one].safe(one_line(error)), "malformed") from error
        finally:
            one.busy -= 1
            one.probed = False
            self._news.set()
            self._news = asyncio.Event()

    async def _check_model(self, end: Endpoint) -> None:
        """Looks at an endpoint that was away, for some seconds: a request to one that hangs takes long to fail, and one
        that comes back may have another model, while SGLang answers to any name. Raises Unanswered."""
        found = await self._names(end)
        if found.is_away:
            assert found.fault is not None
            raise found.fault
        if found.names and self._model not in found.names:
            raise Unanswered(f"it has {', '.join(found.names[:8])} and not {self._model}", "malformed", down=True)

    async def _prepare_next(self, trial: _Trial, one: Health, doubted: bool) -> None:
        """Waits as long as must be before the next attempt. Raises the failure at `one` if there is none."""
        failure, now = trial.failures[one], time.monotonic()
        another = has_another(list(self._endpoints), trial.failures, now)
        falls = failure.down or doubted
        is_free = doubted and another  # who tries a doubted endpoint for all the others loses nothing
        if not failure.again or not (trial.left or is_free) or (falls and not another):
            self._failed(one, trial)
            raise failure
        trial.left -= 0 if is_free else 1
        if falls:
            self._blame({one: failure})
        if failure.pause:
            one.free_at = max(one.free_at, now + failure.pause)
        if not another:
            await asyncio.sleep(_pause(self._retries - trial.left))

    def _failed(self, one: Health, trial: _Trial) -> None:
        """Takes note of a request without a reply, and tells the user of the first of a step at once."""
        if self._role.consequence and "" not in self._said:
            self._said.add("")
            self._report(
                f"!! the {self._role.name} at {one.url} {self._role.gave_nothing} in {_times(trial.sent)} "
                f"({trial.failures[one]}): {self._role.consequence}"
            )
        self._blame(trial.failures)

    def _blame(self, failures: Mapping[Health, Unanswered]) -> None:
        now = time.monotonic()
        for one, failure in failures.items():
            if one.failed(failure, now) and one.url not in self._said:
                self._said.add(one.url)
                rest = one.tried_at - now
                how = "is not asked again in this step" if rest == math.inf else f"is left alone for {rest:.0f} s"
                self._report(f"!! the {self._role.name} at {one.url} {how}: {failure}")


async def _made(body: Body) -> Mapping[str, Any]:
    try:
        return await asyncio.to_thread(body)
    except Exception as error:  # an image that was damaged since it was checked
        raise Unanswered(f"the request cannot be made: {one_line(error)}"[:200], "refused", again=False) from error


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' * (attempts > 1)}"


def _pause(number: int) -> float:
    """Seconds before the next attempt; the random part keeps many requests from coming back at the same moment."""
    return min(_FIRST_PAUSE * 2 ** (number - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
