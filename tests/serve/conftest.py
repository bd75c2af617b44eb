"""A live server with the shipped student, in this process; a gate can hold its engine between two chunks."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import runs
from zppo_jax import compilation
from zppo_jax.rollout.session import Session

STUDENT = runs.ROOT / "zppo_jax" / "assets" / "tiny" / "student"
QUESTION = r"Add the digits. Answer in \boxed{}."
MODEL = "tiny"


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@dataclasses.dataclass
class Gate:
    """Lets the engine through; while it is held, only as often as permitted; or makes it fail once."""

    error: Exception | None = None
    permits: float = math.inf
    arrived: int = 0
    changed: threading.Condition = dataclasses.field(default_factory=threading.Condition)
    sessions: list[Session] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def held(self) -> Iterator[Gate]:
        """Open again at the end, whatever happens: a test that fails must not take those after it along."""
        self.arrived = 0
        self.permit(0)
        try:
            yield self
        finally:
            self.permit(math.inf)

    def permit(self, times: float) -> None:
        """So often, and no more, may the engine go on."""
        with self.changed:
            self.permits = times
            self.changed.notify_all()

    def _pass(self) -> None:
        with self.changed:
            self.arrived += 1
            self.changed.wait_for(lambda: self.permits > 0)
            self.permits -= 1

    def session(self, engine: Any, params: Any) -> Session:
        gate = self

        class Gated(Session):
            def advance(self) -> Any:
                gate._pass()
                if gate.error is not None:
                    error, gate.error = gate.error, None
                    raise error
                return super().advance()

        self.sessions.append(Gated(engine, params))
        return self.sessions[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """A running server and how to reach it."""

    server: Any
    loaded: Any
    engine: Any
    gate: Gate
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, **settings: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, **{"api_key": "any", "max_retries": 0, "timeout": 60} | settings)


@contextlib.contextmanager
def listening(server: Any) -> Iterator[int]:
    """Serves on a free port in a separate thread."""
    import uvicorn

    from zppo_jax.serve import connections

    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(connections.configuration(server, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: running.started)
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    for library in ("starlette", "uvicorn", "openai"):
        pytest.importorskip(library)
    from zppo_jax.generate import model
    from zppo_jax.serve import start
    from zppo_jax.serve.limits import Limits
    from zppo_jax.serve.scheduler import Scheduler

    loaded = model.load(str(STUDENT))
    limits = Limits(body_bytes=200_000, images=2)
    options = start.Options(MODEL, 4, 1, 128, 64, 6, None, 10_000, limits)
    with compilation.compiler() as compiler:
        server = start.make_server(loaded, options, compiler, print)
        server.scheduler.close()
        engine, gate = server.scheduler._make_session().engine, Gate()
        scheduler = Scheduler(lambda: gate.session(engine, loaded.params), options.max_queue)
        server = dataclasses.replace(server, scheduler=scheduler)
        with listening(server) as port:
            yield Live(server, loaded, engine, gate, port)
        server.close()
        assert not scheduler.is_alive


def data_uri(image_HWC: np.ndarray, kind: str = "png") -> str:
    file = io.BytesIO()
    Image.fromarray(image_HWC).save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
