"""Held-out accuracy by level, with its standard error and interval."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from zppo_jax.actors.actor import Actor
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.data.reading import Reading, Skipped
from zppo_jax.errors import RunError
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.processor import ProcessorConfig
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Rollout

PIECE_BYTES = 1 << 28
"""Bytes of pixels that are used at a time: all questions of a benchmark would not fit the host's memory."""

PATCH_BYTES = 3 * ProcessorConfig.patch_size**2
"""Bytes of the pixels of one patch of Qwen3.5."""

T = TypeVar("T")

_95 = statistics.NormalDist().inv_cdf(0.975)


class Score(NamedTuple):
    """The number of `correct` answers of `total`, and the uncertainty of that accuracy."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Half the width of Wilson's interval of one standard deviation: sqrt(p (1 - p) / n) up to terms of 1 / n. It
        is not 0 if all answers are right or all are wrong, because the accuracy is still not known exactly."""
        low, high = self.interval(1.0)
        return (high - low) / 2

    def interval(self, deviations: float = _95) -> tuple[float, float]:
        """Wilson's score interval (Wilson, 1927), by default of 95 %: the accuracies from which the observed one is at
        most `deviations` standard deviations away."""
        share, spread = self.accuracy, deviations**2 / self.total
        centre = (share + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
        low, high = max(centre - half, 0.0), min(centre + half, 1.0)
        return low if self.correct else 0.0, high if self.correct < self.total else 1.0


class Graded(NamedTuple):
    """One held-out response: the level of its question, whether it is right, and whether it was decided."""

    level: str
    correct: bool
    decided: bool


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Samples one response to each held-out question (pass@1) with the settings `sampling`.

    `numbers` are the positions of this host's share. The questions are encoded in pieces, each while the model answers
    the previous one; if all fit into one piece, it is kept for the next evaluation.
    """

    actor: Actor
    reading: Reading
    numbers: Sequence[int]
    sampling: Sampling
    every: int
    seed: int
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    _only_piece: list[list[EncodedPrompt]] = dataclasses.field(default_factory=list, init=False, repr=False)
    _skipped: list[Skipped] = dataclasses.field(default_factory=list, init=False, repr=False)

    def run(self, params: dict[str, Any], step: int) -> Iterator[tuple[str, float]]:
        """Yields the accuracy with its standard error, Wilson's interval of 95 % and the number of questions, overall
        and by level, and the numbers of undecided responses and of skipped questions."""
        yield from metrics(self.graded(params, step)).items()

    def encoded(self) -> Iterator[list[EncodedPrompt]]:
        """Yields the prompts of all questions in pieces, without those that are skipped. Raises RunError for a question
        that cannot be used, if such questions are refused."""
        if self._only_piece:
            yield from self._only_piece
            return
        num_pieces, items = 0, []
        self._skipped.clear()
        for items in _ahead(_pieces(self._read(), PIECE_BYTES)):
            num_pieces += 1
            yield items
        if num_pieces == 1:
            self._only_piece.append(items)

    def _read(self) -> Iterator[EncodedPrompt]:
        for number in self.numbers:
            item = self.reading.at(number, "held-out/{}".format)
            if isinstance(item, Skipped):
                self._skipped.append(item)
            else:
                yield item

    def graded(self, params: dict[str, Any], step: int) -> list[Graded | None]:
        """The responses of all hosts, in the order of the questions, and None for each question that was skipped."""
        stream = RandomStream(self.seed, step, "evaluate")
        local: list[Graded | None] = []
        for items in self.encoded():
            groups = self.actor.answer(params, items, 1, self.sampling, stream)
            local += [_graded(group.prompt.question.level, group.rollouts[0]) for group in groups]
            self.actor.engine.kept.features.release()  # these images are not needed again before the next update
        local += [None] * len(self._skipped)
        rows = self.hosts.gather_dealt(local, "the evaluation")
        if not any(rows):
            raise RunError("no held-out question can be used: python -m zppo_jax.data.check says why")
        return [row and Graded(*row) for row in rows]


def _graded(level: str, rollout: Rollout) -> Graded:
    return Graded(level, bool(rollout.correct and rollout.decided), rollout.decided)


def _ahead(values: Iterator[T]) -> Iterator[T]:
    """Yields the same values, each computed by a thread while the previous one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="held-out") as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value


def _num_bytes(item: EncodedPrompt) -> int:
    return item.features.num_patches * PATCH_BYTES


def _pieces(items: Iterable[EncodedPrompt], most_bytes: int) -> Iterator[list[EncodedPrompt]]:
    """Splits prompts, in order, into pieces of at most `most_bytes` of pixels, or of one prompt."""
    piece, size = [], 0
    for item in items:
        added = _num_bytes(item)
        if piece and size + added > most_bytes:
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += added
    if piece:
        yield piece


def metrics(responses: Sequence[Graded | None]) -> dict[str, float]:
    """The results of an evaluation by their names in metrics.jsonl. Undecided responses do not count as right; those to
    questions without a level count only overall, those that were skipped (None) in their own number."""
    graded = [one for one in responses if one is not None]
    total = Counter(one.level for one in graded)
    right = Counter(one.level for one in graded if one.correct)
    overall = Score(right.total(), total.total())
    low, high = overall.interval()
    found: dict[str, float] = {"accuracy": overall.accuracy, "standard_error": overall.standard_error}
    found |= {"wilson_low": low, "wilson_high": high, "questions": overall.total}
    found |= {"undecided": sum(not one.decided for one in graded), "skipped": len(responses) - len(graded)}
    for level in sorted(total.keys() - {""}):
        found |= {f"accuracy/{level}": right[level] / total[level], f"questions/{level}": total[level]}
    return {f"eval/{name}": value for name, value in found.items()}


def table(row: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """(accuracy, lower and upper end of its interval of 95 %) of each level in a row of metrics, then of all together;
    empty if the row has no evaluation, or one of an earlier version without the numbers of questions."""
    prefix, found = "eval/accuracy/", {}
    names = {name.removeprefix(prefix): name for name in row if name.startswith(prefix)} | {"all": "eval/accuracy"}
    for level, name in names.items():
        accuracy, total = row.get(name), row.get(name.replace("accuracy", "questions", 1))
        if accuracy is not None and total:
            found[level] = (accuracy, *Score(round(accuracy * total), int(total)).interval())
    return found
