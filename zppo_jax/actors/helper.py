"""Help with the hard questions of a step (steps 2 to 4 of Algorithm 1, arXiv:2606.18216): a walk down the ranks.

The cap is on the hardest questions "that admit at least one" prompt (App. C). With NCQ every hard question admits one,
and the walk ends with its first block, which is the pre-cap of Algorithm 1. Where every prompt needs a correct response
of the teacher, a question shows only when the teacher has answered whether it admits one: the walk asks block by block,
hardest first, until the cap is full or no hard question is left. The slot of a prompt that no bucket holds goes to
the next prompt.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from zppo_jax.actors.teacher import Teacher
from zppo_jax.data.pipeline import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.prompts import Template
from zppo_jax.rewards.scorer import Pair, Scorer
from zppo_jax.types import Cohort, Outcome, Prompt, Response
from zppo_jax.zppo import HELPS, Method, build_prompts, choose_candidates, summaries
from zppo_jax.zppo.select import PromptRef
from zppo_jax.zppo.summaries import Candidate, Checked, Digest, TextCodec


@dataclasses.dataclass(frozen=True)
class Helper:
    """What helps with hard questions: the rows of a method, and the teacher that answers and writes for them.

    `teacher_scope` is "all_hard" where the teacher answers all hard questions, whatever the cap. `writes` False: what
    has a fallback is not written but shows that, in at most `max_tokens` tokens. `fits` says whether some bucket holds
    a prompt.
    """

    method: Method
    teacher: Teacher | None
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
        """What the teacher may write for this method."""
        return tuple(dict.fromkeys(HELPS[kind].digest for kind in self.method.helps))

    def listing(self, plain: Cohort, hard: Sequence[Outcome], block: int, seed: int, step: int) -> Listing:
        """The prompts of the hard questions, in their order; built for `block` questions at a time, when asked for."""
        return Listing(self, plain, hard, block, seed, step)


@dataclasses.dataclass
class Listing:
    """The reformulated prompts of a step, question by question; iterating builds them.

    `prompts` are those that this host has built so far, by uid. Every host must iterate equally far, because each
    block ends with a gathering of what the others have built.
    """

    helper: Helper
    plain: Cohort
    hard: Sequence[Outcome]
    block: int
    seed: int
    step: int
    prompts: dict[str, Prompt] = dataclasses.field(default_factory=dict)
    _answers: dict[str, Sequence[Response]] = dataclasses.field(default_factory=dict)
    _listed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    _asked: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    _refused: collections.Counter[tuple[str, str, str]] = dataclasses.field(default_factory=collections.Counter)

    def __iter__(self) -> Iterator[list[PromptRef]]:
        """The prompts of each hard question, whichever host has built them."""
        if not self.helper.method.helps:
            return
        for start in range(0, len(self.hard), self.block):
            block = self.hard[start : start + self.block]
            self._ask(self.hard if self.helper.teacher_scope == "all_hard" else block)
            yield from self._gathered(block, self._build(block))

    def _ask(self, outcomes: Sequence[Outcome]) -> None:
        """Gets the teacher's responses to those of this host's questions that it has not answered in this step."""
        if not self.helper.method.asks_teacher:
            return
        assert self.helper.teacher is not None
        asked = [group for group in self.plain.groups_of(outcomes) if group.prompt.uid not in self._answers]
        items = [EncodedPrompt(group.prompt, group.features) for group in asked]
        if items:
            self._answers |= self.helper.teacher.answer(items, self._stream("teacher"))

    def _build(self, block: Sequence[Outcome]) -> list[list[Prompt]]:
        """The prompts of each question of the block that is this host's."""
        helps = self.helper.method.helps
        choices = [
            choose_candidates(group, self._answers.get(group.prompt.uid, ()), helps, self.seed, self.step)
            for group in self.plain.groups_of(block)
        ]
        needed = dict.fromkeys(pair for choice in choices for pair in choice.needed)
        texts: dict[tuple[Digest, Candidate], str | None] = {}
        for digest in dict.fromkeys(digest for digest, _ in needed):
            texts |= self._written(digest, [candidate for one, candidate in needed if one is digest])
        return [
            build_prompts(choice, lambda digest, candidate: texts[digest, candidate], self.helper.template)
            for choice in choices
        ]

    def _written(
        self, digest: Digest, candidates: Sequence[Candidate]
    ) -> Iterator[tuple[tuple[Digest, Candidate], str | None]]:
        """What is shown of each candidate; what the teacher wrote and cannot be shown is counted."""
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

    def _gathered(self, block: Sequence[Outcome], built: Sequence[Sequence[Prompt]]) -> Iterator[list[PromptRef]]:
        """The prompts of each question of a block, whichever host has built them, in the order of the block."""
        self.prompts |= {prompt.uid: prompt for prompts in built for prompt in prompts}
        rows = [[[prompt.uid, prompt.kind, self.helper.fits(prompt)] for prompt in prompts] for prompts in built]
        parts = [iter(part) for part in self.helper.hosts.gather(rows, "the reformulated prompts")]
        refs = [[PromptRef(*row) for row in next(parts[outcome.host], ())] for outcome in block]
        self._listed.update(ref.kind for prompts in refs for ref in prompts)
        yield from refs

    def _stream(self, purpose: str) -> RandomStream:
        return RandomStream(self.seed, self.step, purpose)

    def prompts_of(self, refs: Sequence[PromptRef]) -> list[Prompt]:
        """This host's prompts among those."""
        return [self.prompts[ref.uid] for ref in refs if ref.uid in self.prompts]

    def counts(self) -> dict[str, int]:
        """Metrics of the prompts that were built and of what the teacher wrote, on all hosts; the same names in every
        step of a run."""
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


def check(digest: Digest, outputs: Mapping[Candidate, str | None], scorer: Scorer) -> dict[Candidate, Checked]:
    """Each written text as it can be shown, or why it cannot. Claims are compared with answers all at once."""
    claims = {one: digest.claim(output) for one, output in outputs.items() if output and one.answer is not None}
    pairs = {
        one: Pair(one.answer, claim, one.answer_type)
        for one, claim in claims.items()
        if one.answer is not None and claim and not summaries.written_alike(one.answer, claim)
    }
    equal = dict(zip(pairs, scorer.equal(list(pairs.values())), strict=True))
    return {
        one: Checked("", "too_long") if output is None else digest.accept(output, one, equal.get(one))
        for one, output in outputs.items()
    }
