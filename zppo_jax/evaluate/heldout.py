"""Held-out accuracy by level, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from zppo_jax.actors.actor import Actor
from zppo_jax.data.pipeline import EncodedPrompt, PromptProcessing
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Question, Rollout

PIECE_BYTES = 1 << 30
"""Pixels of the questions that are encoded at a time: all questions of a benchmark would not fit the host's memory."""

T = TypeVar("T")

_95 = statistics.NormalDist().inv_cdf(0.975)


class Score(NamedTuple):
    """How many of `total` answers are `correct`, and what that says of the accuracy."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Half the width of Wilson's interval of one standard deviation: sqrt(p (1 - p) / n) but for terms of 1 / n,
        and not 0 where all answers are right or all are wrong, which would claim to know everything."""
        low, high = self.interval(1.0)
        return (high - low) / 2

    def interval(self, deviations: float = _95) -> tuple[float, float]:
        """Wilson's score interval (Wilson, 1927), by default that of 95 %: the accuracies of which what was found is no
        more than so many standard deviations off."""
        share, spread = self.accuracy, deviations**2 / self.total
        centre = (share + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
        low, high = max(centre - half, 0.0), min(centre + half, 1.0)
        return low if self.correct else 0.0, high if self.correct < self.total else 1.0


class Graded(NamedTuple):
    """One held-out response: the level of its question, whether it is right, and whether that is known."""

    level: str
    correct: bool
    decided: bool


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One response to each held-out question (pass@1), drawn as `sampling` says.

    `questions` are this host's share of all. They are encoded in pieces, each while the one before is asked; where all
    fit one piece, it is kept for the next evaluation.
    """

    actor: Actor
    process: PromptProcessing
    questions: Sequence[Question]
    sampling: Sampling
    every: int
    seed: int
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    _only_piece: list[list[EncodedPrompt]] = dataclasses.field(default_factory=list, init=False, repr=False)

    def run(self, params: dict[str, Any], step: int) -> Iterator[tuple[str, float]]:
        """The accuracy with its standard error, Wilson's interval of 95 % and the number of questions, overall and by
        level, and the number of undecided responses."""
        yield from metrics(self.graded(params, step)).items()

    def encoded(self) -> Iterator[list[EncodedPrompt]]:
        """The prompts of all questions, a piece at a time. ValueError for a question that cannot be shown."""
        if self._only_piece:
            yield from self._only_piece
            return
        num_pieces, items = 0, []
        for items in _ahead(map(self._encode, _pieces(self.questions, PIECE_BYTES))):
            num_pieces += 1
            yield items
        if num_pieces == 1:
            self._only_piece.append(items)

    def _encode(self, questions: Sequence[Question]) -> list[EncodedPrompt]:
        return self.process.items_of([self.process.plain_prompt(one, f"held-out/{one.id}") for one in questions])

    def graded(self, params: dict[str, Any], step: int) -> list[Graded]:
        """The responses of all hosts, in the order of the questions."""
        stream, local = RandomStream(self.seed, step, "evaluate"), []
        for items in self.encoded():
            groups = self.actor.answer(params, items, 1, self.sampling, stream)
            local += [_graded(group.prompt.question.level, group.rollouts[0]) for group in groups]
            self.actor.engine.kept.features.release()  # nobody asks about these images again before the next update
        return [Graded(*row) for row in self.hosts.gather_dealt(local, "the evaluation")]


def _graded(level: str, rollout: Rollout) -> Graded:
    return Graded(level, bool(rollout.correct and rollout.decided), rollout.decided)


def _ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="held-out") as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value


def _num_bytes(question: Question) -> int:
    frames = (frame for video in question.videos for frame in video.frames)
    return sum(image.nbytes for image in (*question.images, *frames))


def _pieces(questions: Iterable[Question], most_bytes: int) -> Iterator[list[Question]]:
    """The questions in order, cut where their images and videos come to more than so many bytes; each piece has one at
    least."""
    piece, size = [], 0
    for question in questions:
        added = _num_bytes(question)
        if piece and size + added > most_bytes:
            yield piece
            piece, size = [], 0
        piece.append(question)
        size += added
    if piece:
        yield piece


def metrics(graded: Sequence[Graded]) -> dict[str, float]:
    """The values of an evaluation under their names in metrics.jsonl. Undecided responses do not count as right."""
    total = Counter(one.level for one in graded)
    right = Counter(one.level for one in graded if one.correct)
    overall = Score(right.total(), total.total())
    low, high = overall.interval()
    found: dict[str, float] = {"accuracy": overall.accuracy, "standard_error": overall.standard_error}
    found |= {"wilson_low": low, "wilson_high": high, "questions": overall.total}
    found["undecided"] = sum(not one.decided for one in graded)
    for level in sorted(total):
        found |= {f"accuracy/{level}": right[level] / total[level], f"questions/{level}": total[level]}
    return {f"eval/{name}": value for name, value in found.items()}


def table(row: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """(accuracy, lower and upper end of its interval of 95 %) of the levels in a row of metrics, then of all together;
    nothing where the row has no evaluation, or one of an earlier version without the numbers of questions."""
    prefix, found = "eval/accuracy/", {}
    names = {name.removeprefix(prefix): name for name in row if name.startswith(prefix)} | {"all": "eval/accuracy"}
    for level, name in names.items():
        accuracy, total = row.get(name), row.get(name.replace("accuracy", "questions", 1))
        if accuracy is not None and total:
            found[level] = (accuracy, *Score(round(accuracy * total), int(total)).interval())
    return found
