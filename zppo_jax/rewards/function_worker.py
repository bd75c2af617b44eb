"""The child process of a reward function: `python -m zppo_jax.rewards.function_worker NAME SECONDS MEGABYTES FOLDER`.

It speaks JSON lines, as `worker` does: a request is [response, question], a reply is true, false or {"fault": why}.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from zppo_jax.children import limit_memory, limit_processor, replies
from zppo_jax.errors import one_line
from zppo_jax.rewards.child import OUT_OF_MEMORY
from zppo_jax.rewards.function import RewardQuestion

RewardFunction = Callable[[str, RewardQuestion], Any]


def load(name: str) -> RewardFunction:
    """The function `package.module:name`. Raises whatever the import raises, or TypeError if it is not callable."""
    module, _, attribute = name.partition(":")
    function = getattr(importlib.import_module(module), attribute)
    if not callable(function):
        raise TypeError(f"{attribute} is a {type(function).__name__} and no function")
    return function


def answer(function: RewardFunction, response: str, question: dict[str, Any]) -> bool | dict[str, str]:
    """The function's verdict, or what it did wrong."""
    try:
        value = function(response, RewardQuestion(**question))
    except MemoryError:
        raise
    except Exception as error:  # the function's own: the child lives on
        return {"fault": one_line(error)[:500]}
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    return {"fault": f"it returned {value!r:.100}: return True, False, 0 or 1"}


def serve(function: RewardFunction, requests: TextIO, to_parent: TextIO, seconds: float) -> None:
    """Answer requests until the parent closes the pipe."""
    print(json.dumps("ready"), file=to_parent, flush=True)
    for line in requests:
        response, question = json.loads(line)
        limit_processor(seconds)
        print(json.dumps(answer(function, response, question)), file=to_parent, flush=True)


def main() -> None:
    name, seconds, megabytes, folder = sys.argv[1:]
    limit_memory(int(megabytes))
    to_parent = io.TextIOWrapper(replies(), encoding="utf-8")
    sys.path.append(folder)  # last, so that a file there shadows nothing
    try:
        function = load(name)
    except Exception as error:
        print(json.dumps(one_line(error)[:500]), file=to_parent, flush=True)
        return
    try:
        serve(function, sys.stdin, to_parent, float(seconds))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
