"""One thread owns the engine: requests come in through a queue, tokens go out by callback.

Between two chunks it accepts new requests; without work it sleeps on the queue. A request that fails gets its
exception, and an error of the engine ends the running requests, not the thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable

import jax

from zppo_jax import parallel
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.session import Event, Session

_LOG = logging.getLogger(__name__)

Deliver = Callable[[Event | Exception], object]
"""Called in the engine's thread, so it must not block; an exception is the last value."""


class QueueFullError(Exception):
    """The server already has the maximum number of responses."""


@dataclasses.dataclass(eq=False)
class Pending:
    """A request in flight; `left` of its responses have not ended."""

    request: Request
    deliver: Deliver
    left: int
    ticket: int = -1


class Scheduler:
    """Submits requests to a session and delivers its events.

    Args:
      make_session: called in the thread, at the start and again after an error of the engine.
      max_responses: the most responses that may wait or run at the same time.
      mesh: the mesh on which the engine runs; None for the default device.
    """

    def __init__(
        self, make_session: Callable[[], Session], max_responses: int, mesh: jax.sharding.Mesh | None = None
    ) -> None:
        self.max_responses = max_responses
        self._make_session, self._mesh = make_session, mesh
        self._session: Session | None = None
        self._pending: dict[int, Pending] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._taken = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_responses(self) -> int:
        """The number of responses that wait or run, including those whose prompts are being read."""
        return self._taken

    @property
    def num_busy_slots(self) -> int:
        session = self._session
        return session.engine.num_slots - session.num_free if session else 0

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def reserve(self, num_responses: int) -> None:
        """Reserves room for responses before their prompt is read. Raises QueueFullError."""
        with self._lock:
            if self._taken + num_responses > self.max_responses:
                raise QueueFullError
            self._taken += num_responses

    def release(self, num_responses: int) -> None:
        """Returns reserved room that is not or no longer used."""
        with self._lock:
            self._taken -= num_responses

    def submit(self, request: Request, deliver: Deliver) -> Pending:
        """Starts a request whose room is reserved; its events go to `deliver`."""
        pending = Pending(request, deliver, request.num_samples)
        self._commands.put(lambda: self._submit(pending))
        return pending

    def cancel(self, pending: Pending) -> None:
        """Cancels the responses of a request that have not ended: their slots are free from the next chunk on."""
        self._commands.put(lambda: self._drop(pending))

    def close(self, seconds: float = 10.0) -> None:
        """Ends the thread after the running chunk."""
        self._commands.put(None)
        self._thread.join(seconds)

    # ---------------------------------------------------------------- in the thread

    def _run(self) -> None:
        with parallel.use(self._mesh):  # the mesh in use belongs to a thread
            self._work()

    def _work(self) -> None:
        while True:
            for command in self._waiting_commands():
                if command is None:
                    return
                command()
            if self._session is None or not self._session.busy:
                continue
            try:
                events = self._session.advance()
            except Exception as error:  # any error of the device: its requests are lost, the server goes on
                _LOG.exception("the engine failed; %d requests end with an error", len(self._pending))
                self._fail_all(error)
                continue
            for event in events:
                self._deliver(event)

    def _waiting_commands(self) -> list[Callable[[], None] | None]:
        """The commands that have arrived; waits for one if there is nothing else to do."""
        commands = []
        if self._session is None or not self._session.busy:
            commands.append(self._commands.get())
        with contextlib.suppress(queue.Empty):
            while True:
                commands.append(self._commands.get_nowait())
        return commands

    def _submit(self, pending: Pending) -> None:
        try:
            self._session = self._session or self._make_session()
            pending.ticket = self._session.submit(pending.request)
        except Exception as error:
            _LOG.exception("a request could not be started")
            self._end(pending, error)
            return
        self._pending[pending.ticket] = pending

    def _deliver(self, event: Event) -> None:
        pending = self._pending.get(event.ticket)
        if pending is None:
            return
        self._send(pending, event)
        if event.sample is not None:
            pending.left -= 1
            self.release(1)
            if pending.left == 0:
                self._drop(pending)

    def _drop(self, pending: Pending) -> None:
        """Forgets a request that has ended or was cancelled; a second call does nothing."""
        # Another request may have the ticket: a new session numbers from 0 again.
        if self._pending.get(pending.ticket) is pending and self._session is not None:
            del self._pending[pending.ticket]
            self.release(pending.left)
            pending.left = 0
            self._session.cancel(pending.ticket)

    def _fail_all(self, error: Exception) -> None:
        self._session = None
        lost, self._pending = list(self._pending.values()), {}
        for pending in lost:
            self._end(pending, error)

    def _end(self, pending: Pending, error: Exception) -> None:
        self.release(pending.left)
        pending.left = 0
        self._send(pending, error)

    def _send(self, pending: Pending, what: Event | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop that waited has been closed
            pending.deliver(what)
