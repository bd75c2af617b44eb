"""Renders chat templates in a child process that is ended if a template takes too long or too much memory.

One child serves all threads of this process; it starts with the first template, and imports transformers so that this
process need not. The output for a short conversation is cached: prompts are rendered with a slot for the user's text,
so most of them are the same here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from zppo_jax import children
from zppo_jax.processor.template_worker import MEMORY_MEGABYTES, PROCESSOR_SECONDS

_KEPT_CHARACTERS = 10_000  # of all messages; longer ones are rendered each time
_COMMAND = children.command("zppo_jax.processor.template_worker")
_CHANGING = ("strftime_now", "random", "lipsum")  # names in a template whose output is not always the same


class ChatTemplateError(ValueError):
    """The chat template refuses the messages, fails, or does not end."""


def render(chat_template: str, messages: Sequence[Mapping[str, Any]], **given: Any) -> str:
    """Renders the messages with the template; `given` are further variables for it. Raises ChatTemplateError."""
    plain = json.dumps([dict(message) for message in messages], default=_name_of_kind)
    changing = any(name in chat_template for name in _CHANGING)
    ask = _ask if changing or len(plain) > _KEPT_CHARACTERS else _ask_cached
    return ask(chat_template, plain, json.dumps(given, sort_keys=True))


def _name_of_kind(value: Any) -> str:
    """The stand-in for a value that is not JSON, as in transformers; templates only check that there is an image."""
    return f"<{type(value).__name__}>"


def _ask(chat_template: str, messages: str, given: str) -> str:
    request = f'{{"chat_template": {json.dumps(chat_template)}, "messages": {messages}, "given": {given}}}\n'
    reply = json.loads(_child.ask(request.encode()))
    if "error" in reply:
        raise ChatTemplateError(f"the chat template refuses the messages: {reply['error']}")
    return reply["rendered"]


_ask_cached = functools.lru_cache(maxsize=512)(_ask)


class _Child:
    """The child process, started when it is needed, and again if it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> bytes:
        """Sends a request line; returns the reply line. Raises ChatTemplateError if the template exceeds its limits."""
        with self._lock:
            for _ in range(2):  # a second try on a new one: the template may not be the reason why it ended
                reply = self._exchange(request)
                if reply.endswith(b"\n"):
                    return reply
                status = self._end()
                if status == -signal.SIGXCPU:
                    raise ChatTemplateError(f"the chat template did not end in {PROCESSOR_SECONDS} s of processor time")
        raise ChatTemplateError(
            f"the process that renders the chat template ended with status {status}: it may use {MEMORY_MEGABYTES} "
            "megabytes, and needs the package transformers"
        )

    def _exchange(self, request: bytes) -> bytes:
        """Sends a request; returns the reply, or a part of it if the process has ended."""
        process = self._process = self._process or children.start(_COMMAND)
        assert process.stdin is not None and process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            return process.stdout.readline()
        except BaseException:  # an interrupt: the next request would get this reply
            self._end()
            raise

    def _end(self) -> int:
        """Ends the process, unless it has ended; returns its exit status."""
        process, self._process = self._process, None
        return children.end(process) if process is not None else 0

    def close(self) -> None:
        """Ends the process, if there is one."""
        self._end()


_child = _Child()
_inherited: list[_Child] = []


def _forget() -> None:
    """Starts afresh in a forked process: the child is the parent's, and the lock may be held. The old object is kept,
    because deleting it would close the parent's pipes."""
    global _child
    _inherited.append(_child)
    _child = _Child()


os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _child.close())
