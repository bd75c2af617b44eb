"""The child process that renders chat templates: `python -m zppo_jax.processor.template_worker`.

A template is an untrusted program. transformers' sandbox keeps it from Python and from the system, but not from
looping for ever or filling the memory; the kernel keeps this process from both. A request is a JSON line, the arguments
of `render`; the reply is a JSON line, {"rendered"} or {"error"}.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from zppo_jax.children import limit_memory, limit_processor, replies

PROCESSOR_SECONDS = 3
MEMORY_MEGABYTES = 2048
_LARGEST_GROWTH = 4_000_000
"""Characters that a template may add to those of the messages."""


def render(chat_template: str, messages: list[dict[str, Any]], given: dict[str, Any]) -> str:
    """Renders a conversation as transformers does. Raises whatever the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(conversations=[messages], chat_template=chat_template, **given)
    return rendered[0]


def answer(request: bytes) -> dict[str, str]:
    """Answers a request, whatever the template does."""
    try:
        rendered = render(**json.loads(request))
        if len(rendered) > 2 * len(request) + _LARGEST_GROWTH:
            return {"error": f"it writes {len(rendered):,} characters"}
        rendered.encode()
    except (Exception, RecursionError) as error:  # templates may raise any kind, MemoryError included
        return {"error": " ".join(str(error).split())[:500] or type(error).__name__}
    return {"rendered": rendered}


def main() -> None:
    limit_memory(MEMORY_MEGABYTES)
    to_parent = replies()
    importlib.import_module("transformers.utils.chat_template_utils")  # before the time limit of a template begins
    for request in sys.stdin.buffer:
        limit_processor(PROCESSOR_SECONDS)
        to_parent.write(json.dumps(answer(request)).encode() + b"\n")
        to_parent.flush()


if __name__ == "__main__":
    main()
