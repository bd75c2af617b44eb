"""The prompt replay buffer (Sec. 3.3, Table 8 and the last lines of Algorithm 1 of arXiv:2606.18216).

It stores question ids, never responses, text or pixels: a response would be off-policy at the next visit, and the rest
is read again from the source.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from zppo_jax.keys import RandomStream


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the buffer: the question's mean reward when it was admitted, and the step of its admission."""

    accuracy: float
    step: int


@dataclasses.dataclass(frozen=True)
class Refresh:
    """The changes of one refresh, as question ids in the order of the changes.

    A question admitted into a buffer that overflows in the same step can be both in `admitted` and in `evicted`.
    """

    admitted: tuple[str, ...]
    graduated: tuple[str, ...]
    evicted: tuple[str, ...]
    still_hard: tuple[str, ...]


class ReplayBuffer:
    """A FIFO set of hard questions, keyed by question id.

    Drawing does not remove a question; only graduation (it became easy) and eviction (the buffer is full and it is the
    oldest) do. Age counts from the admission; a question that stays hard keeps its place, unless `refresh_position`
    (the paper does not say). `capacity` is in questions; a value below 1 raises ValueError.
    """

    def __init__(self, capacity: int, refresh_position: bool = False) -> None:
        if capacity < 1:
            raise ValueError(f"replay.capacity={capacity} holds no question; use 1 or more, or a method without replay")
        self.capacity = int(capacity)
        self.refresh_position = bool(refresh_position)
        self._entries: dict[str, Entry] = {}  # in FIFO order: the first is evicted first
        self._graduated_by_accuracy: collections.Counter[str] = collections.Counter()
        self._evicted_by_accuracy: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @property
    def ids(self) -> tuple[str, ...]:
        """The question ids in FIFO order: the next to be evicted comes first."""
        return tuple(self._entries)

    def entry(self, question_id: str) -> Entry:
        """The entry of a question; raises KeyError if it is not in the buffer."""
        return self._entries[question_id]

    @property
    def graduated_total(self) -> int:
        """Graduations since the start of the run."""
        return self._graduated_by_accuracy.total()

    @property
    def evicted_total(self) -> int:
        """Evictions since the start of the run."""
        return self._evicted_by_accuracy.total()

    @property
    def graduated_by_accuracy(self) -> dict[str, int]:
        """Graduations since the start by entry accuracy, "0", "0.125", ... (the bins of Fig 4)."""
        return dict(self._graduated_by_accuracy)

    @property
    def evicted_by_accuracy(self) -> dict[str, int]:
        """Evictions since the start by entry accuracy (the bins of Fig 4)."""
        return dict(self._evicted_by_accuracy)

    @property
    def inside_by_accuracy(self) -> dict[str, int]:
        """Questions now in the buffer, by entry accuracy (the stack of Fig 20)."""
        return dict(collections.Counter(_bin(entry) for entry in self._entries.values()))

    def counts(self, refreshed: Refresh) -> dict[str, int]:
        """The metrics of a refresh and of the buffer after it; names of metrics by entry accuracy end in `/0.125`."""
        bins = {
            "inside": self.inside_by_accuracy,
            "graduated_total": self.graduated_by_accuracy,
            "evicted_total": self.evicted_by_accuracy,
        }
        return {
            "size": len(self),
            "admitted": len(refreshed.admitted),
            "graduated": len(refreshed.graduated),
            "evicted": len(refreshed.evicted),
            "graduated_total": self.graduated_total,
            "evicted_total": self.evicted_total,
            **{f"{name}/{one}": count for name, counts in bins.items() for one, count in counts.items()},
        }

    def draw(self, count: int, seed: int, step: int, exclude: Collection[str] = ()) -> list[str]:
        """Draws `count` question ids uniformly without replacement, or all if there are fewer.

        The same buffer, seed and step give the same draw. `exclude` holds the ids of this step's new questions, so
        that no question has two plain groups in one step.
        """
        if count < 0:
            raise ValueError(f"cannot draw {count} questions; use 0 or more")
        excluded = frozenset(exclude)
        eligible = [question_id for question_id in self._entries if question_id not in excluded]
        order = RandomStream(seed, step, "replay_draw").generator().permutation(len(eligible))
        return [eligible[index] for index in order[:count]]

    def refresh(self, accuracies: Mapping[str, float], step: int, threshold: float = 0.5) -> Refresh:
        """Admits, graduates and evicts after a step (Algorithm 1, last lines).

        `accuracies` are mean rewards in [0, 1] by question id, from plain and replayed groups only: an answer given
        with candidates in the prompt is not mastery (App. C); `select.plain_accuracies` gives them. Questions are
        admitted in its order. An invalid accuracy raises ValueError and changes nothing.
        """
        _check_accuracies(accuracies)
        admitted, graduated, still_hard = [], [], []
        for question_id, accuracy in accuracies.items():
            if accuracy >= threshold:
                if question_id in self._entries:
                    self._graduated_by_accuracy[_bin(self._entries.pop(question_id))] += 1
                    graduated.append(question_id)
            elif question_id in self._entries:
                self._keep(question_id)
                still_hard.append(question_id)
            else:
                self._entries[question_id] = Entry(float(accuracy), int(step))
                admitted.append(question_id)
        return Refresh(tuple(admitted), tuple(graduated), tuple(self._evict()), tuple(still_hard))

    def state(self) -> dict[str, Any]:
        """The whole state as a JSON-able dict; `from_state` makes an equal buffer from it."""
        return {
            "capacity": self.capacity,
            "refresh_position": self.refresh_position,
            "entries": [[question_id, entry.accuracy, entry.step] for question_id, entry in self._entries.items()],
            "graduated_total": self.graduated_total,
            "evicted_total": self.evicted_total,
            "graduated_by_accuracy": self.graduated_by_accuracy,
            "evicted_by_accuracy": self.evicted_by_accuracy,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ReplayBuffer:
        """Makes an equal buffer from its `state`; raises ValueError if the state contradicts itself."""
        buffer = cls(state["capacity"], state["refresh_position"])
        buffer._entries = {question_id: Entry(accuracy, step) for question_id, accuracy, step in state["entries"]}
        buffer._graduated_by_accuracy.update(state["graduated_by_accuracy"])
        buffer._evicted_by_accuracy.update(state["evicted_by_accuracy"])
        if len(buffer) != len(state["entries"]) or len(buffer) > buffer.capacity:
            raise ValueError(
                f"replay state with {len(state['entries'])} entries of {len(buffer)} questions does not fit a set of "
                f"capacity {buffer.capacity}; the checkpoint is damaged, resume from an earlier one"
            )
        totals = (buffer.graduated_total, buffer.evicted_total)
        if totals != (state["graduated_total"], state["evicted_total"]):
            raise ValueError(
                f"replay state counts {state['graduated_total']} graduated and {state['evicted_total']} evicted, but "
                f"its bins sum to {totals}; the checkpoint is damaged, resume from an earlier one"
            )
        return buffer

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Loads `state` in place, so that references to this buffer stay valid."""
        self.__dict__.update(ReplayBuffer.from_state(state).__dict__)

    def _keep(self, question_id: str) -> None:
        if self.refresh_position:
            self._entries[question_id] = self._entries.pop(question_id)

    def _evict(self) -> list[str]:
        evicted = list(self._entries)[: max(0, len(self) - self.capacity)]
        for question_id in evicted:
            self._evicted_by_accuracy[_bin(self._entries.pop(question_id))] += 1
        return evicted


def _bin(entry: Entry) -> str:
    return f"{entry.accuracy:g}"


def _check_accuracies(accuracies: Mapping[str, float]) -> None:
    for question_id, accuracy in accuracies.items():
        if not 0 <= accuracy <= 1:  # also true for NaN
            raise ValueError(
                f"accuracy {accuracy} of question {question_id!r} is not a mean of binary rewards in [0, 1]"
            )
