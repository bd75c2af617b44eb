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
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

import grain
from absl import flags

from zppo_jax.config import step_size
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.data.reading import Reading, Skipped
from zppo_jax.errors import RunError
from zppo_jax.types import prompt_uid


@dataclasses.dataclass(frozen=True, eq=False)
class StepBatch:
    """The questions of training step `step` (the first is 1): new ones and ones replayed from the buffer; and those
    that were `skipped` because their rows cannot be used. `num_skipped` is the number of such new ones on all hosts: it
    may be more than a step has, since a step of which no question can be used is left out."""

    step: int
    new: tuple[EncodedPrompt, ...]
    replayed: tuple[EncodedPrompt, ...]
    skipped: tuple[Skipped, ...] = ()
    num_skipped: int = 0

    @property
    def items(self) -> list[EncodedPrompt]:
        """All questions of the step, the new ones first."""
        return [*self.new, *self.replayed]


_SKIPPED = ""
"""Stands for a question that was skipped, where hosts exchange ids."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """This host's share: every `count`-th question from `index` on. `gather` collects the lists of all hosts."""

    index: int = 0
    count: int = 1
    gather: Callable[[list[str]], list[list[str]]] = lambda ids: [ids]


class Replay(Protocol):
    """The part of the replay buffer that the stream uses; `state` is a JSON snapshot, unchanged by later admissions."""

    def __len__(self) -> int: ...

    def draw(self, count: int, *, seed: int, step: int, exclude: Collection[str]) -> list[str]:
        """Draws at most `count` different question ids, none of `exclude`; a function of (contents, seed, step)."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any], /) -> None: ...


class StepStream(grain.DatasetIterator[StepBatch]):
    """Iterator over `StepBatch`es; the last node of the Grain pipeline. Make it with `open_stream`, close it after use.

    The trainer changes the replay buffer between two `next` calls; the next batch and the next `get_state` see the
    change. `get_state` is JSON: {"new": Grain's own state, "step": last step yielded, "replay": the buffer's state,
    "data": a hash of the ids of all questions}.
    `set_state` loads the buffer in place, so the trainer's reference stays valid.
    """

    def __init__(
        self,
        new: grain.DatasetIterator[tuple[EncodedPrompt | Skipped, ...]],
        reading: Reading,
        *,
        seed: int,
        replay: Replay | None,
        num_replayed: int,
        steps_an_epoch: int = 1,
        shard: Shard = Shard(),
    ):
        super().__init__(new)
        self._new = new
        self._reading = reading
        self._seed = seed
        self._replay = replay
        self._num_replayed = num_replayed
        self._steps_an_epoch = steps_an_epoch
        self._shard = shard
        self._step = 0

    def __next__(self) -> StepBatch:
        self._assert_not_closed()
        step = self._step + 1
        skipped, num_skipped = (), 0
        for _ in range(2 * self._steps_an_epoch):  # steps of which nothing can be used are left out
            read, bad = _parted(next(self._new))
            new = tuple(_renamed(item, prompt_uid(step, item.prompt.question.id, "plain")) for item in read)
            ids, count = self._of_all_hosts(step, new, len(bad))
            skipped, num_skipped = skipped + bad, num_skipped + count
            if ids:
                replayed, lost = _parted(self._replayed(step, ids))
                self._step = step
                return StepBatch(step, new, replayed, skipped + lost, num_skipped)
        raise RunError("no question of the data can be used: python -m zppo_jax.data.check says why")

    def _of_all_hosts(self, step: int, new: Iterable[EncodedPrompt], num_skipped: int) -> tuple[list[str], int]:
        """The ids of the step's new questions, and the number of those that were skipped, on all hosts."""
        own = [item.prompt.question.id for item in new] + [_SKIPPED] * num_skipped
        every = [one for part in self._shard.gather(own) for one in part]
        ids = [one for one in every if one != _SKIPPED]
        _require_different(ids, f"among the new questions of step {step}")
        return ids, len(every) - len(ids)

    def _replayed(self, step: int, new: list[str]) -> list[EncodedPrompt | Skipped]:
        if self._replay is None or self._num_replayed == 0:
            return []
        drawn = self._replay.draw(self._num_replayed, seed=self._seed, step=step, exclude=set(new))
        share = drawn[self._shard.index :: self._shard.count]
        return [self._reading.by_id(one, prompt_uid(step, one, "replay"), "replay") for one in share]

    def get_state(self) -> dict[str, Any]:
        replay = None if self._replay is None else self._replay.state()
        return {"new": self._new.get_state(), "step": self._step, "replay": replay, "data": self._data}

    @functools.cached_property
    def _data(self) -> str:
        ids = "\0".join(self._reading.source.ids())
        return hashlib.blake2b(ids.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def set_state(self, state: dict[str, Any]) -> None:
        if (state["replay"] is None) != (self._replay is None):
            had, has = ("without" if replay is None else "with" for replay in (state["replay"], self._replay))
            raise ValueError(
                f"the data state was saved {had} a replay buffer and this run is {has} one; resume with its method"
            )
        if state.get("data", self._data) != self._data:
            raise RunError(
                "the questions of the run are no longer those that it began with (their ids, number or order differ): "
                "put the data back as they were, or begin another run with another --workdir"
            )
        self._new.set_state(state["new"])
        self._step = state["step"]
        if self._replay is not None:
            self._replay.load_state(state["replay"])


def open_stream(
    reading: Reading,
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
    one), each a step ahead; neither changes what the stream yields. Raises ValueError for data too small to fill a
    step.
    """
    source = reading.source
    _require_data(len(source), questions_per_step)
    _require_different(source.ids(), "in the source")
    require_equal_shards(questions_per_step, shard.count)
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    whole_steps = len(source) - len(source) % questions_per_step
    dataset = dataset[:whole_steps][shard.index :: shard.count].map(reading.at)
    dataset = dataset.batch(questions_per_step // shard.count, drop_remainder=True, batch_fn=tuple).repeat(None)
    # One element is a whole step: then a saved position is valid for any number of hosts.
    steps = dataset.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    if worker_count > 0:
        _settle_absl_flags()
        steps = steps.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_count))
    return StepStream(
        iter(steps), reading, seed=seed, replay=replay, num_replayed=num_replayed,
        steps_an_epoch=whole_steps // questions_per_step, shard=shard,
    )  # fmt: skip


def _parted(read: Iterable[EncodedPrompt | Skipped]) -> tuple[tuple[EncodedPrompt, ...], tuple[Skipped, ...]]:
    """The questions that can be used, and those that cannot."""
    read = tuple(read)
    items = tuple(one for one in read if isinstance(one, EncodedPrompt))
    return items, tuple(one for one in read if isinstance(one, Skipped))


def _renamed(item: EncodedPrompt, uid: str) -> EncodedPrompt:
    return dataclasses.replace(item, prompt=dataclasses.replace(item.prompt, uid=uid))


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
