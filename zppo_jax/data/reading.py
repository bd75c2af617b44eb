"""Questions of a source as prompts; bad rows are refused or skipped, never lost without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from zppo_jax.data.processing import EncodedPrompt, PromptProcessing
from zppo_jax.data.questions import BadRow
from zppo_jax.errors import RunError
from zppo_jax.types import Prompt, Question

BadRows = Literal["refuse", "skip"]
UidOf = Callable[[str], str]


class QuestionSource(Protocol):
    """Random access to questions, by position and by id. Must be picklable and safe to read from many threads.

    `answer_types` are the types of its golds, with the largest number of questions that may have each: a type that
    cannot be scored is refused before the run begins. Reading a question raises BadRow if its row cannot be used.
    """

    @property
    def answer_types(self) -> Mapping[str, int]: ...

    def ids(self) -> Iterable[str]:
        """The ids of all questions in order, without reading the questions."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...

    def number_of(self, question_id: str, /) -> int:
        """The position of the question with this id; raises KeyError for an id that is not in this source."""
        ...

    def place(self, index: int) -> str:
        """Where question `index` comes from, for errors."""
        ...


@dataclasses.dataclass(frozen=True)
class Room:
    """The largest prompt of the compiled programs: tokens before its last, and patches of all its images."""

    num_tokens: int
    num_patches: int


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A question that was left out of a step, and why: one of `questions.REASONS`, and a sentence."""

    question_id: str
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """Reads questions of a source as plain prompts. With `bad_rows` "refuse" a bad one ends the run, in one line that
    names it; with "skip" it is left out and counted. Picklable: it runs in Grain's threads and worker processes."""

    source: QuestionSource
    process: PromptProcessing
    room: Room | None = None
    bad_rows: BadRows = "refuse"

    def by_id(self, question_id: str, uid: str, kind: str) -> EncodedPrompt | Skipped:
        """A question by its id, as a prompt with this uid and kind."""
        return self.at(self.source.number_of(question_id), lambda _: uid, kind)

    def at(self, number: int, uid_of: UidOf = str, kind: str = "plain") -> EncodedPrompt | Skipped:
        """The question at a position; `uid_of` makes the prompt's uid from the question's id. Raises RunError for a bad
        one that is refused."""
        try:
            return self.checked(number, uid_of, kind)
        except BadRow as error:
            question_id = _id_at(self.source, number)
            if self.bad_rows == "skip":
                return Skipped(question_id, error.reason, error.detail)
            raise RunError(
                f"question {question_id!r} ({self.source.place(number)}) cannot be used: {error.detail} "
                f"({error.reason}); put it right, or set data.bad_rows=skip. python -m zppo_jax.data.check finds all "
                "such rows"
            ) from error

    def checked(self, number: int, uid_of: UidOf = str, kind: str = "plain") -> EncodedPrompt:
        """The question at a position. Raises BadRow."""
        question = self.source[number]
        return self._fitting(self._item(self.process.plain_prompt(question, uid_of(question.id), kind)))

    def _item(self, prompt: Prompt) -> EncodedPrompt:
        try:
            return self.process.item(prompt)
        except ImportError as error:  # of a package that is an extra
            raise RunError(f"question {prompt.question.id} has a video: {error}") from error
        except ValueError as error:
            kind = "video" if prompt.question.videos else "image"
            raise BadRow(f"{kind}_unreadable", str(error).removeprefix(f"question {prompt.question.id}: ")) from error

    def _fitting(self, item: EncodedPrompt) -> EncodedPrompt:
        room, features = self.room, item.features
        if room and features.num_tokens - 1 > room.num_tokens:
            raise BadRow(
                "prompt_too_long",
                f"{features.num_tokens} tokens do not fit the largest of prompt.buckets, {room.num_tokens}",
            )
        if room and features.num_patches > room.num_patches:
            raise BadRow(
                "prompt_too_long",
                f"{len(features.grid_thw_N3)} images of together {features.num_patches} patches do not fit "
                f"{room.num_patches} (prompt.max_images)",
            )
        return item


def _id_at(source: QuestionSource, number: int) -> str:
    return next(one for place, one in enumerate(source.ids()) if place == number)
