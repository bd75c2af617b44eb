"""The Grain stream of training steps: new and replayed questions, each processed once.

Everything that may run ahead (reader threads, worker processes) sits below `StepStream`; the replay draw happens
inside its `__next__`. This order makes replay and resuming exact: a draw above a prefetching node would see the buffer
as it was some steps ago, and a saved state would lack what the trainer has admitted since.

With several hosts, each reads and processes its shard of every step. The replay buffer, which holds only ids, is the
same on all of them, and so is the draw: each takes its share of the drawn ids.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, cast

import grain
import numpy as np
from absl import flags

from zppo_jax.config import step_size
from zppo_jax.rewards.grade import JUDGED, require_known
from zppo_jax.types import Features, Prompt, Question, prompt_uid
from zppo_jax.zppo import prompts as prompts_lib


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt and its features, which the model reads."""

    prompt: Prompt
    features: Features


@dataclasses.dataclass(frozen=True, eq=False)
class StepBatch:
    """The questions of training step `step` (the first is 1): new ones and ones replayed from the buffer."""

    step: int
    new: tuple[EncodedPrompt, ...]
    replayed: tuple[EncodedPrompt, ...]

    @property
    def items(self) -> list[EncodedPrompt]:
        """All questions of the step, the new ones first."""
        return [*self.new, *self.replayed]


@dataclasses.dataclass(frozen=True)
class Shard:
    """This host's share: every `count`-th question from `index` on. `gather` collects the lists of all hosts."""

    index: int = 0
    count: int = 1
    gather: Callable[[list[str]], list[list[str]]] = lambda ids: [ids]


class QuestionSource(Protocol):
    """Random access to questions, by position and by id. Must be picklable and safe to read from many threads.

    `answer_types` are the types of its golds: a type that cannot be scored is refused before the run begins.
    """

    @property
    def answer_types(self) -> frozenset[str]: ...

    def ids(self) -> Iterable[str]:
        """The ids of all questions in order, without reading the questions."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Question: ...

    def by_id(self, question_id: str, /) -> Question: ...


class Replay(Protocol):
    """The part of the replay buffer that the stream uses; `state` is a JSON snapshot, unchanged by later admissions."""

    def __len__(self) -> int: ...

    def draw(self, count: int, *, seed: int, step: int, exclude: Collection[str]) -> list[str]:
        """Draws at most `count` different question ids, none of `exclude`; a function of (contents, seed, step)."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any], /) -> None: ...


class PromptProcessor(Protocol):
    """The part of `zppo_jax.processor.Processor` that the pipeline uses."""

    def features(self, text: str, images: Sequence[np.ndarray], videos: Sequence[Any], /) -> Features: ...

    def num_tokens(self, text: str, image_sizes: Sequence[tuple[int, int]], videos: Sequence[Any], /) -> int: ...

    def encode_text(self, text: str, /) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class PromptProcessing:
    """Turns a question or a prompt into features, in the same way for plain, replayed and reformulated prompts.

    Picklable when the processor is, so that it can run in Grain's worker processes.
    """

    processor: PromptProcessor
    template: prompts_lib.Template

    def plain_prompt(self, question: Question, uid: str, kind: str = "plain") -> Prompt:
        """The prompt that asks a question unchanged, closer included."""
        return Prompt(uid, kind, question, prompts_lib.plain_text(question.text, self.template))

    def item(self, prompt: Prompt) -> EncodedPrompt:
        """Computes tokens, positions and pixels of one prompt; the map function of the Grain datasets.

        Raises ValueError, naming the question, for an image or video that cannot be encoded.
        """
        question = prompt.question
        try:
            features = self.processor.features(prompt.text, question.images, question.videos)
            return EncodedPrompt(prompt, features.followed_by(self.processor.encode_text(prompt.opening)))
        except ValueError as error:
            raise ValueError(f"question {prompt.question.id}: {error}") from error

    def num_tokens(self, prompt: Prompt) -> int:
        """The number of tokens that `item` would give for a prompt, computed without pixels."""
        question = prompt.question
        sizes = [(image.shape[0], image.shape[1]) for image in question.images]
        num_shown = self.processor.num_tokens(prompt.text, sizes, question.videos)
        return num_shown + len(self.processor.encode_text(prompt.opening))

    def new_item(self, question: Question) -> EncodedPrompt:
        """Map function for new questions; the uid is provisional, since prefetching does not know the step."""
        return self.item(self.plain_prompt(question, uid=question.id))

    def items_of(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Processes existing prompts, in order."""
        if not prompts:
            return []
        dataset = grain.MapDataset.source(list(prompts)).map(self.item)
        # By index: no iterator that needs closing. Only a filter would make an element None.
        return [cast(EncodedPrompt, dataset[index]) for index in range(len(dataset))]


class StepStream(grain.DatasetIterator[StepBatch]):
    """Iterator over `StepBatch`es; the last node of the Grain pipeline. Make it with `open_stream`, close it after use.

    The trainer changes the replay buffer between two `next` calls; the next batch and the next `get_state` see the
    change. `get_state` is JSON: {"new": Grain's own state, "step": last step yielded, "replay": the buffer's state}.
    `set_state` loads the buffer in place, so the trainer's reference stays valid.
    """

    def __init__(
        self,
        new: grain.DatasetIterator[tuple[EncodedPrompt, ...]],
        source: QuestionSource,
        process: PromptProcessing,
        *,
        seed: int,
        replay: Replay | None,
        num_replayed: int,
        shard: Shard = Shard(),
    ):
        super().__init__(new)
        self._new = new
        self._source = source
        self._process = process
        self._seed = seed
        self._replay = replay
        self._num_replayed = num_replayed
        self._shard = shard
        self._step = 0

    def __next__(self) -> StepBatch:
        self._assert_not_closed()
        step = self._step + 1
        new = tuple(_renamed(item, prompt_uid(step, item.prompt.question.id, "plain")) for item in next(self._new))
        ids = [one for part in self._shard.gather([item.prompt.question.id for item in new]) for one in part]
        _require_different(ids, f"among the new questions of step {step}")
        replayed = self._replayed(step, ids)
        self._step = step
        return StepBatch(step, new, replayed)

    def _replayed(self, step: int, new: list[str]) -> tuple[EncodedPrompt, ...]:
        if self._replay is None or self._num_replayed == 0:
            return ()
        drawn = self._replay.draw(self._num_replayed, seed=self._seed, step=step, exclude=set(new))
        questions = [self._source.by_id(one) for one in drawn[self._shard.index :: self._shard.count]]
        prompts = [self._process.plain_prompt(q, prompt_uid(step, q.id, "replay"), "replay") for q in questions]
        return tuple(self._process.items_of(prompts))

    def get_state(self) -> dict[str, Any]:
        replay = None if self._replay is None else self._replay.state()
        return {"new": self._new.get_state(), "step": self._step, "replay": replay}

    def set_state(self, state: dict[str, Any]) -> None:
        if (state["replay"] is None) != (self._replay is None):
            had, has = ("without" if replay is None else "with" for replay in (state["replay"], self._replay))
            raise ValueError(
                f"the data state was saved {had} a replay buffer and this run is {has} one; resume with its method"
            )
        self._new.set_state(state["new"])
        self._step = state["step"]
        if self._replay is not None:
            self._replay.load_state(state["replay"])


def open_stream(
    source: QuestionSource,
    process: PromptProcessing,
    *,
    seed: int,
    questions_per_step: int,
    replay: Replay | None,
    num_replayed: int,
    num_threads: int = 0,
    worker_count: int = 0,
    shard: Shard = Shard(),
) -> StepStream:
    """Opens the endless stream of steps, of which this host gets its `shard`; `replay=None` switches replay off.

    Each epoch is a new permutation of the source, cut into whole steps. The len(source) mod questions_per_step
    questions left over are skipped in this epoch, because a step across two epochs could hold one question twice, and
    two groups would then share a uid. A step replays at most `num_replayed` questions.
    `num_threads` reader threads (0: none, nothing runs ahead) work in each of `worker_count` processes (0: in this
    one); neither changes what the stream yields. Raises ValueError for data too small to fill a step, and for answers
    that no rule can score.
    """
    _require_data(len(source), questions_per_step)
    _require_rules(source.answer_types)
    _require_different(source.ids(), "in the source")
    require_equal_shards(questions_per_step, shard.count)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    whole_steps = len(source) - len(source) % questions_per_step
    dataset = dataset[:whole_steps][shard.index :: shard.count].map(process.new_item)
    dataset = dataset.batch(questions_per_step // shard.count, drop_remainder=True, batch_fn=tuple).repeat(None)
    # One element is a whole step, so two per thread are enough lookahead.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    steps = dataset.to_iter_dataset(options)
    if worker_count > 0:
        _settle_absl_flags()
        steps = steps.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_count))
    return StepStream(iter(steps), source, process, seed=seed, replay=replay, num_replayed=num_replayed, shard=shard)


def _renamed(item: EncodedPrompt, uid: str) -> EncodedPrompt:
    return dataclasses.replace(item, prompt=dataclasses.replace(item.prompt, uid=uid))


def _require_rules(answer_types: Collection[str]) -> None:
    """Raises ValueError for types that are unknown or need a judge: responses would be neither right nor wrong."""
    for answer_type in sorted(answer_types):
        require_known(answer_type)
    if needs_judge := sorted(set(answer_types) & JUDGED):
        raise ValueError(
            f"the source has answers of type {needs_judge[0]!r}, which only a judge can score, and there is no judge "
            "yet: leave these questions out, or give their golds a type that a rule scores"
        )


def _require_different(ids: Iterable[str], where: str) -> None:
    """Raises ValueError for a repeated id: the two groups would share uid, baseline and place in the replay buffer."""
    twice = sorted(question_id for question_id, count in collections.Counter(ids).items() if count > 1)
    if twice:
        raise ValueError(
            f"{len(twice)} question ids come more than once {where}, first {twice[0]!r}: the ids of a source must "
            "differ, so give each question its own (the row number will do)"
        )


def _require_data(num_questions: int, questions_per_step: int) -> None:
    fault = step_size.data_fault(num_questions, questions_per_step)
    if fault is not None:
        raise ValueError(fault)


def require_equal_shards(questions_per_step: int, num_hosts: int) -> None:
    """Raises ValueError if the shards are unequal: hosts would wait for each other, and a step's questions would depend
    on the number of hosts."""
    if questions_per_step % num_hosts:
        raise ValueError(
            f"rollout.questions_per_step={questions_per_step} is not divisible by the {num_hosts} hosts of the run; "
            f"set it to {questions_per_step - questions_per_step % num_hosts + num_hosts}"
        )


def _settle_absl_flags() -> None:
    """Marks absl flags as parsed: Grain passes them to its workers and raises if `absl.app.run` has not run."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
