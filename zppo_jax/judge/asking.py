"""A judge behind a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any

from zppo_jax.judge.prompt import Case, judge_text
from zppo_jax.remote import Requests, Role, Unanswered

ROLE = Role(
    name="judge",
    setting="judge.endpoint",
    key_variable="ZPPO_JUDGE_API_KEY",
    gave_nothing="gave no verdict",
    consequence="such responses stay undecided, and their groups are not used",
)
_MAX_BYTES = 1 << 20  # a verdict has a thousandth of it
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


class RemoteJudge:
    """Asks a model of OpenAI-compatible endpoints, greedily; `thinking` False asks its chat template to do without.

    `report` gets a line when the first case of a step fails, and when an endpoint is not asked again in the step. The
    next step begins with a single attempt there. Raises ConfigError, in one line, if the `openai` package is missing.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        timeout_seconds: float,
        max_tokens: int,
        thinking: bool,
        concurrency: int,
        retries: int,
        report: Callable[[str], None],
        role: Role = ROLE,
    ) -> None:
        self._model, self._max_tokens = model, max_tokens
        self._more = {} if thinking else _NO_THINKING
        self._requests = Requests(
            urls,
            role,
            concurrency=concurrency,
            retries=retries,
            timeout_seconds=timeout_seconds,
            max_bytes=_MAX_BYTES,
            report=report,
        )

    def begin(self) -> None:
        """Begins a step: every endpoint is asked again, whatever happened before."""
        self._requests.begin()

    def submit(self, case: Case) -> Future[str]:
        """Sends a case; the future has the output, or Unanswered."""
        return self._requests.submit(lambda: self._body(judge_text(case)), _content)

    def settle(self, futures: Collection[Future[Any]]) -> None:
        """Waits a moment, or until all these are done."""
        self._requests.settle(futures)

    def give_up(self, reason: str) -> None:
        """Sends nothing more in this step, and cancels what is on its way."""
        self._requests.give_up(reason)

    def close(self) -> None:
        """Cancels everything and ends the thread."""
        self._requests.close()

    def _body(self, text: str) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.0,
            "top_p": 1.0,
            "max_tokens": self._max_tokens,
            "extra_body": self._more,
        }


def _content(reply: Any) -> str:
    """The text of a chat completion; "" if the model wrote none. Raises Unanswered if the reply is none."""
    try:
        content = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise Unanswered("the reply is not a chat completion", "malformed") from error
    if content is not None and not isinstance(content, str):
        raise Unanswered("the reply is not a chat completion", "malformed")
    return content or ""
