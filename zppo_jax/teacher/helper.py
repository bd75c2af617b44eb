"""Help with the hard questions of a step, hardest first (steps 2 to 4 of Algorithm 1, arXiv:2606.18216).

The cap is on the hardest questions "that admit at least one" prompt (App. C). With NCQ every hard question admits one,
so the first block of questions is enough, which is the pre-cap of Algorithm 1. If every prompt needs a correct response
of the teacher, it is only known after the teacher has answered whether a question admits one. So the teacher is asked
block by block, hardest first, until the cap is full or no hard question is left. The slot of a prompt that is longer
than every bucket goes to the next prompt.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.rewards.scorer import Pair, Scorer
from zppo_jax.types import Cohort, Missed, Outcome, Prompt, Response
from zppo_jax.zppo import HELPS, Method, build_prompts, choose_candidates, summaries
from zppo_jax.zppo.prompts import Template
from zppo_jax.zppo.select import PromptRef
from zppo_jax.zppo.summaries import Candidate, Checked, Digest, TextCodec


class ScoredTeacher(Protocol):
    """A teacher whose answers are scored: `Teaching`."""

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Mapping[str, Sequence[Response]]:
        """Scored answers to each prompt, new ones at every visit, by the prompt's uid; none for a prompt that was
        missed."""
        ...

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | Missed]:
        """A short text for each user turn, without thinking."""
        ...


@dataclasses.dataclass(frozen=True)
class Helper:
    """Helps with hard questions: the kinds of help of a method, and the teacher that answers and writes for them.

    `teacher_scope` is "all_hard" if the teacher answers all hard questions, whatever the cap. If `writes` is False, a
    digest with a fallback is not written: its fallback is shown, in at most `max_tokens` tokens. `fits` says whether
    some bucket holds a prompt.
    """

    method: Method
    teacher: ScoredTeacher | None
    scorer: Scorer
    template: Template
    codec: TextCodec
    hosts: Hosts
    fits: Callable[[Prompt], bool]
    teacher_scope: str = "capped"
    writes: bool = True
    max_tokens: int = 512

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests that the teacher may write for this method."""
        return tuple(dict.fromkeys(HELPS[kind].digest for kind in self.method.helps))

    def listing(self, plain: Cohort, hard: Sequence[Outcome], block: int, seed: int, step: int) -> Listing:
        """The prompts of the hard questions, in their order; built lazily, `block` questions at a time."""
        return Listing(self, plain, hard, block, seed, step)


@dataclasses.dataclass
class Listing:
    """The reformulated prompts of a step, question by question; iterating builds them.

    `prompts` are those that this host has built so far, by uid. Every host must iterate equally far, because each block
    ends with a gather over all hosts.
    """

    helper: Helper
    plain: Cohort
    hard: Sequence[Outcome]
    block: int
    seed: int
    step: int
    prompts: dict[str, Prompt] = dataclasses.field(default_factory=dict)
    _answers: dict[str, Sequence[Response]] = dataclasses.field(default_factory=dict)
    _tried: set[str] = dataclasses.field(default_factory=set)
    _listed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    _asked: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    _refused: collections.Counter[tuple[str, str, str]] = dataclasses.field(default_factory=collections.Counter)

    def __iter__(self) -> Iterator[list[PromptRef]]:
        """Yields the prompts of each hard question, whichever host has built them."""
        if not self.helper.method.helps:
            return
        for start in range(0, len(self.hard), self.block):
            block = self.hard[start : start + self.block]
            self._ask(self.hard if self.helper.teacher_scope == "all_hard" else block)
            yield from self._gather(block, self._build(block))

    def _ask(self, outcomes: Sequence[Outcome]) -> None:
        """Asks the teacher those of this host's questions that it was not asked in this step; one that it missed is not
        asked again, whose block may be over."""
        if not self.helper.method.asks_teacher:
            return
        assert self.helper.teacher is not None
        asked = [group for group in self.plain.groups_of(outcomes) if group.prompt.uid not in self._tried]
        self._tried |= {group.prompt.uid for group in asked}
        items = [EncodedPrompt(group.prompt, group.features) for group in asked]
        if items:
            self._answers |= self.helper.teacher.answer(items, self._stream("teacher"))

    def _build(self, block: Sequence[Outcome]) -> list[list[Prompt]]:
        """Builds the prompts of each question in the block that is on this host."""
        helps = self.helper.method.helps
        choices = [
            choose_candidates(group, self._answers.get(group.prompt.uid, ()), helps, self.seed, self.step)
            for group in self.plain.groups_of(block)
        ]
        needed = dict.fromkeys(pair for choice in choices for pair in choice.needed)
        texts: dict[tuple[Digest, Candidate], str | None] = {}
        for digest in dict.fromkeys(digest for digest, _ in needed):
            texts |= self._write(digest, [candidate for one, candidate in needed if one is digest])
        return [
            build_prompts(choice, lambda digest, candidate: texts[digest, candidate], self.helper.template)
            for choice in choices
        ]

    def _write(
        self, digest: Digest, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[tuple[Digest, Candidate], str | None]]:
        """The text to show for each candidate; texts of the teacher that are refused are counted."""
        helper = self.helper
        checked: Mapping[Candidate, Checked] = {}
        if candidates and (helper.writes or digest.fallback is None):
            assert helper.teacher is not None
            asks = [digest.ask(candidate) for candidate in candidates]
            outputs = dict(zip(candidates, helper.teacher.write(asks, self._stream("write")), strict=True))
            checked = check(digest, outputs, helper.scorer)
            self._asked[digest.name] += len(candidates)
        for candidate in candidates:
            found = checked.get(candidate)
            if found is not None and found.refusal:
                self._refused[digest.name, candidate.author, found.refusal] += 1
            text = found.text if found is not None and not found.refusal else None
            if text is None and digest.fallback is not None:
                text = digest.fallback(candidate, helper.codec, helper.max_tokens)
            yield (digest, candidate), text

    def _gather(self, block: Sequence[Outcome], built: Sequence[Sequence[Prompt]]) -> Iterator[list[PromptRef]]:
        """Yields the prompts of each question of a block, in its order, whichever host has built them."""
        self.prompts |= {prompt.uid: prompt for prompts in built for prompt in prompts}
        rows = [[[prompt.uid, prompt.kind, self.helper.fits(prompt)] for prompt in prompts] for prompts in built]
        parts = [iter(part) for part in self.helper.hosts.gather(rows, "the reformulated prompts")]
        refs = [[PromptRef(*row) for row in next(parts[outcome.host], ())] for outcome in block]
        self._listed.update(ref.kind for prompts in refs for ref in prompts)
        yield from refs

    def _stream(self, purpose: str) -> RandomStream:
        return RandomStream(self.seed, self.step, purpose)

    def prompts_of(self, refs: Sequence[PromptRef]) -> list[Prompt]:
        """The prompts in `refs` that this host has built."""
        return [self.prompts[ref.uid] for ref in refs if ref.uid in self.prompts]

    def counts(self) -> dict[str, int]:
        """Metrics of the prompts that were built and of the teacher's texts, summed over all hosts; the names are the
        same in every step of a run."""
        found: dict[str, int] = {}
        for name in (digest.name for digest in self.helper.digests):
            reasons = {
                f"{name}/refused/{author}/{reason}": self._refused[name, author, reason]
                for author in summaries.AUTHORS
                for reason in summaries.REFUSALS
            }
            found |= {f"{name}/summaries": self._asked[name], f"{name}/refused": sum(reasons.values())} | reasons
        parts = self.helper.hosts.gather(found, "the counts of the reformulation")
        listed = {f"zppo/{kind}_listed": self._listed[kind] for kind in HELPS}
        return listed | {name: sum(part[name] for part in parts) for name in found}


def check(digest: Digest, outputs: Mapping[Candidate, str | Missed], scorer: Scorer) -> dict[Candidate, Checked]:
    """Checks each written text: the text to show, or the reason for refusing it. All claims are scored in one call."""
    written = {one: output for one, output in outputs.items() if isinstance(output, str)}
    claims = {one: digest.claim(output) for one, output in written.items() if output and one.answer is not None}
    pairs = {
        one: Pair(one.answer, claim, one.answer_type)
        for one, claim in claims.items()
        if one.answer is not None and claim and not summaries.written_alike(one.answer, claim)
    }
    equal = dict(zip(pairs, scorer.equal(list(pairs.values())), strict=True))
    return {
        one: _missed(output) if isinstance(output, Missed) else digest.accept(output, one, equal.get(one))
        for one, output in outputs.items()
    }


def _missed(output: Missed) -> Checked:
    return Checked("", "too_long" if output.reason == "too_long" else "unwritten")
