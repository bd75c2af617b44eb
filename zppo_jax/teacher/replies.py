"""Replies of OpenAI-compatible servers, made into the texts that a teacher in this process would give.

The prompt opens `<think>`, so the response begins inside the thinking. A server without a reasoning parser returns it
as it is: `content` has the thinking, `</think>` and the answer. A server with one cuts it at the first `</think>`, and
returns the two parts without it: `reasoning` (vLLM) or `reasoning_content` (SGLang, older vLLM), and `content`.
"""

from __future__ import annotations

from typing import Any

from zppo_jax.processor.tokenizer import THINK_CLOSE, THINK_OPEN
from zppo_jax.remote import Unanswered
from zppo_jax.types import Answer, FinishReason

_REASONS: dict[Any, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "content_filter": "abort"}
_PREFIX = f"{THINK_OPEN}\n"


def answers_of(reply: Any, model: str, count: int, thinking: bool) -> tuple[Answer, ...]:
    """The `count` responses of a reply, in order; `thinking` says whether their prompt opens `<think>`.

    Raises Unanswered for a reply that is not a chat completion of this model, or has another number of responses.
    """
    answered_by = getattr(reply, "model", None)
    if not isinstance(answered_by, str):
        raise _malformed("it names no model")
    if answered_by != model:
        raise Unanswered(f"the reply is of the model {answered_by[:60]!r} and not of {model!r}", "malformed", down=True)
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list):
        raise _malformed("it has no choices")
    if len(choices) != count:
        raise _malformed(f"it has {len(choices)} of {count} choices")
    if sorted(_index(choice) for choice in choices) != list(range(count)):
        raise _malformed("its choices are not numbered")
    return tuple(_answer(choice, thinking) for choice in sorted(choices, key=_index))


def _answer(choice: Any, thinking: bool) -> Answer:
    reason = getattr(choice, "finish_reason", None)
    if not isinstance(reason, str) or reason not in _REASONS:
        raise _malformed(f"a choice ended because of {str(reason)[:40]!r}")
    message = getattr(choice, "message", None)
    content, reasoning = _field(message, "content"), _field(message, "reasoning")
    if reasoning is None:
        reasoning = _field(message, "reasoning_content")
    if content is None and reasoning is None:
        raise _malformed("a choice is empty")
    return Answer(whole_text(content, reasoning, thinking), _REASONS[reason])


def whole_text(content: str | None, reasoning: str | None, thinking: bool) -> str:
    """The whole response from the parts that a server gave.

    What a reasoning parser has cut is joined with `</think>`, exactly as it was; one that trims the parts, too, gets
    the line ends back that the model writes around it. Without content nothing shows that the thinking has ended.
    """
    if reasoning is None or (not thinking and not content):
        text = content or reasoning or ""
        return _opened(text) if thinking else text
    if not content:
        return _opened(reasoning)
    before = "" if reasoning.endswith("\n") else "\n"
    after = "" if content.startswith("\n") else "\n\n"
    return f"{_opened(reasoning)}{before}{THINK_CLOSE}{after}{content}"


def _opened(text: str) -> str:
    """The text with the `<think>` that the prompt opened; some servers return that, too."""
    return text if text.startswith(THINK_OPEN) else _PREFIX + text


def _index(choice: Any) -> int:
    index = getattr(choice, "index", None)
    return index if isinstance(index, int) else -1


def _field(message: Any, name: str) -> str | None:
    """A text of a message. Raises Unanswered unless it is one that can be written to a file."""
    value = getattr(message, name, None)
    if value is None:
        return None
    try:
        if not isinstance(value, str):
            raise _malformed(f"{name} is not a text")
        value.encode()
    except UnicodeEncodeError as error:
        raise _malformed(f"{name} holds half a surrogate pair") from error
    return value


def _malformed(fault: str) -> Unanswered:
    return Unanswered(f"the reply is malformed: {fault}", "malformed")
