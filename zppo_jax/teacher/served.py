"""A teacher behind OpenAI-compatible servers: vLLM, SGLang, `python -m zppo_jax.serve`."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.processor import ProcessorConfig
from zppo_jax.remote import Requests, Role, Unanswered, Waiting
from zppo_jax.teacher.replies import answers_of
from zppo_jax.teacher.turns import Content, prompt_content, text_content
from zppo_jax.types import Answer, Missed, Prompt

ROLE = Role(name="teacher", setting="teacher.path", key_variable="ZPPO_TEACHER_API_KEY")
DEADLINE = "teacher.deadline_seconds"
_SEED_BITS = 31
_BYTES_PER_TOKEN = 256  # of a reply, at most: a token of 40 letters, each written as \uXXXX
_OTHER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How the model `name` is asked for `num_rollouts` responses of at most `max_tokens`, and for short texts of at
    most `text_max_tokens`. `thinking`: the prompts of responses open `<think>`."""

    name: str
    num_rollouts: int
    temperature: float
    top_p: float
    max_tokens: int
    text_max_tokens: int
    thinking: bool

    @property
    def max_bytes(self) -> int:
        """A limit on the length of a reply."""
        return _OTHER_BYTES + _BYTES_PER_TOKEN * max(self.num_rollouts * self.max_tokens, self.text_max_tokens)

    @property
    def num_choices(self) -> int:
        """Responses of a request: greedy ones are all equal, and vLLM refuses to give more than one."""
        return self.num_rollouts if self.temperature > 0 else 1


class ServedTeacher:
    """Asks through `requests`; one request has all responses to a prompt, so all come or none.

    Images are sent as `config`'s processor shows them. All waiting of a step ends after `deadline_seconds`: what is
    open then is late. `report` gets a line now and then while it waits; an exception in it ends the waiting.
    """

    def __init__(
        self,
        requests: Requests,
        wanted: Wanted,
        config: ProcessorConfig,
        deadline_seconds: float,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._requests, self._wanted, self._config, self._report = requests, wanted, config, report
        self._waiting = Waiting(deadline_seconds, DEADLINE)
        self._late = Missed("late", f"{DEADLINE} = {deadline_seconds:g} are over")
        self._asked: dict[tuple[str, RandomStream], Future[tuple[Answer, ...]]] = {}
        self._lock = threading.Lock()

    works_beside = True

    @property
    def name(self) -> str:
        return self._wanted.name

    def begin(self, step: int) -> None:
        """Cancels what is left of the step before; a new deadline, and servers that were down get another chance."""
        with self._lock:
            self._asked.clear()
        self._requests.begin()
        self._waiting.begin()

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Sends the requests for prompts that were not asked yet; returns at once."""
        with self._lock:
            for item in items:
                key = (item.prompt.uid, stream)
                if key not in self._asked:
                    self._asked[key] = self._submit(item.prompt, stream)

    def answer(
        self, items: Sequence[EncodedPrompt], stream: RandomStream
    ) -> Iterator[tuple[str, Sequence[Answer] | Missed]]:
        """Yields (uid of the prompt, its responses or why there are none) as they come."""
        self.ahead(items, stream)
        futures = {item.prompt.uid: self._asked[item.prompt.uid, stream] for item in items}
        for uid, got in self._outcomes(futures, "teacher: {done} of {total} questions"):
            with self._lock:
                self._asked.pop((uid, stream), None)
            yield uid, got

    def write(self, asks: Sequence[str], stream: RandomStream) -> list[str | Missed]:
        """Writes a text for each user turn, greedily and without thinking; equal turns are asked once."""
        futures = {ask: self._submit_text(ask) for ask in dict.fromkeys(asks)}
        found = dict(self._outcomes(futures, "teacher: {done} of {total} texts"))
        return [got if isinstance(got, Missed) else got[0].text for got in map(found.__getitem__, asks)]

    def close(self) -> None:
        """Cancels everything and closes the connections."""
        self._requests.close()

    def _outcomes(
        self, futures: Mapping[Any, Future[tuple[Answer, ...]]], line: str
    ) -> Iterator[tuple[Any, tuple[Answer, ...] | Missed]]:
        for done in self._waiting.batches(self._requests, futures, self._report, line):
            for key, future in done.items():
                yield key, self._outcome(future)

    def _outcome(self, future: Future[tuple[Answer, ...]]) -> tuple[Answer, ...] | Missed:
        try:
            return future.result()
        except Unanswered as error:
            return Missed(error.cause, str(error))
        except CancelledError:
            return self._late

    def _submit(self, prompt: Prompt, stream: RandomStream) -> Future[tuple[Answer, ...]]:
        if prompt.opening:  # no server continues an answer in the same way
            future: Future[tuple[Answer, ...]] = Future()
            future.set_exception(Unanswered("a server cannot continue the beginning of an answer", "refused"))
            return future
        wanted = self._wanted
        seed = stream.hash(prompt.question.id) % 2**_SEED_BITS
        body = functools.partial(self._answer_body, prompt, seed)
        return self._requests.submit(body, functools.partial(self._read_answers, wanted))

    def _submit_text(self, ask: str) -> Future[tuple[Answer, ...]]:
        body = functools.partial(self._text_body, ask)
        return self._requests.submit(body, lambda reply: answers_of(reply, self.name, 1, thinking=False))

    @staticmethod
    def _read_answers(wanted: Wanted, reply: Any) -> tuple[Answer, ...]:
        answers = answers_of(reply, wanted.name, wanted.num_choices, wanted.thinking)
        return answers * (wanted.num_rollouts // wanted.num_choices)

    def _answer_body(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        wanted = self._wanted
        return self._body(
            prompt_content(prompt, self._config),
            wanted.thinking,
            n=wanted.num_choices,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            max_tokens=wanted.max_tokens,
            seed=seed,
        )

    def _text_body(self, ask: str) -> dict[str, Any]:
        greedy = {"n": 1, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        return self._body(text_content(ask), False, max_tokens=self._wanted.text_max_tokens, **greedy)

    def _body(self, content: Content, thinking: bool, **sampling: Any) -> dict[str, Any]:
        """A request in which every setting is given: servers take others from the model's generation_config.json."""
        return {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "presence_penalty": 0.0,
            **sampling,
            "extra_body": {
                "top_k": -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "chat_template_kwargs": {"enable_thinking": thinking},
            },
        }
