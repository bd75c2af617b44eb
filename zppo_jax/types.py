"""The host's types: the values that pass between the stages of a training step.

NumPy only, no jax: these values cross process boundaries (Grain workers, scoring workers) and go into checkpoints.

Shape suffixes: T tokens, I patches, C values of one patch, N images and videos, G rollouts of one group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

PLAIN_KINDS = ("plain", "replay")
"""Kinds of prompts that ask a question unchanged: a new question, and one from the replay buffer. All other kinds are
names of `zppo.HELPS`: a hard question with help in its prompt."""

FinishReason = Literal["stop", "length", "abort"]

IMAGE_MARK, VIDEO_MARK = "\ue000image\ue001", "\ue000video\ue001"
"""The places of images and videos within a question's text: private-use characters, which no other text may bring in
(`data.questions` removes them from what it reads, `zppo.prompts.neutralise` from what a model writes)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A question with its gold answer, as a data source yields it.

    `images` and `videos` are as the processor takes them: RGB uint8 arrays of shape [height, width, 3] or
    `processor.Picture`s, which are decoded when they are used; `processor.Clip`s or `processor.Video`s. They are shown
    before the text, or where it has IMAGE_MARK and VIDEO_MARK. `options` are the scorer's for this question (`choices`,
    `tolerance`, ...: `rewards.score`). `level` names the family or difficulty and is only used for reports, `metadata`
    goes to samples.jsonl. `text` holds neither a template nor the closer.
    """

    id: str
    text: str
    images: Sequence[Any]
    answer: str
    answer_type: str
    level: str = ""
    videos: Sequence[Any] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A response that a prompt shows: its author, its whole text, its parsed answer, and the text that is shown."""

    author: str
    response: str
    answer: str | None
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One user turn that a group of rollouts answers.

    `uid` is the group's identity ("never share a baseline", App. C): plain, BCQ and NCQ prompts of one question
    have three different uids. `text` is the whole user turn, closer included. `parent` is the uid of the plain
    group that a reformulated prompt came from, `shown` are the responses that its text shows, in order. `opening` is
    the beginning of the answer, which the model continues.
    """

    uid: str
    kind: str
    question: Question
    text: str
    parent: str | None = None
    opening: str = ""
    shown: tuple[Shown, ...] = ()


def prompt_uid(step: int, question_id: str, kind: str) -> str:
    """The group identity of a prompt: groups of one question but of different kinds never share a baseline (App. C)."""
    return f"{step}/{question_id}/{kind}"


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A prompt as the model reads it, without padding.

    `token_ids_T` int32, image placeholders already expanded; `token_types_T` int32 (0 text, 1 image, 2 video);
    `positions_3T` int32, the M-RoPE rows (time, height, width); `rope_delta` is added to the number of valid tokens to
    get the next position; `patches_IC` are grey levels, uint8, in merge-block order (`processor.patches.normalised`
    converts them to the model's input), `grid_thw_N3` int32 in patches, both in the order of the images and videos in
    the prompt. A video is a run of tokens for each step of time.

    `patches` is the array, or a function that makes it from pixels: patches hold each pixel of an image twice, so a
    question that waits keeps its pixels, or only its image files.
    """

    token_ids_T: np.ndarray
    token_types_T: np.ndarray
    positions_3T: np.ndarray
    rope_delta: int
    patches: np.ndarray | Callable[[], np.ndarray]
    grid_thw_N3: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids_T.shape[0])

    @property
    def num_patches(self) -> int:
        """The number of patches of all images and videos; makes none of them."""
        return int(self.grid_thw_N3.prod(axis=1).sum())

    @property
    def patches_IC(self) -> np.ndarray:
        """The patches, made again on each access if `patches` is a function."""
        return self.patches() if callable(self.patches) else self.patches

    def followed_by(self, ids: Sequence[int]) -> Features:
        """The same prompt followed by these text tokens."""
        if not len(ids):
            return self
        new_T = np.asarray(ids, np.int32)
        first = self.num_tokens + self.rope_delta
        positions_3T = np.broadcast_to(np.arange(first, first + len(new_T), dtype=np.int32), (3, len(new_T)))
        return dataclasses.replace(
            self,
            token_ids_T=np.concatenate([self.token_ids_T, new_T]),
            token_types_T=np.concatenate([self.token_types_T, np.zeros_like(new_T)]),
            positions_3T=np.concatenate([self.positions_3T, positions_3T], axis=1),
        )

    @property
    def grid_types_N(self) -> np.ndarray:
        """1 (image) or 2 (video) for each row of `grid_thw_N3`, int32."""
        types_T = np.asarray(self.token_types_T, np.int32)
        runs = types_T[np.flatnonzero(np.diff(types_T, prepend=0))]
        steps_N = self.grid_thw_N3[:, 0].astype(np.int64)
        return runs[runs > 0][np.cumsum(steps_N) - steps_N]


class Answer(NamedTuple):
    """A response of a teacher: its whole text, with the `<think>` that the prompt opened, and why it ended."""

    text: str
    finish_reason: FinishReason


MissReason = Literal["timeout", "late", "unavailable", "refused", "malformed", "too_long", "missing"]
"""Why a request to a model has no answer: no reply in time; not before the step's deadline; it could not be reached or
failed; it did not take the request; its reply was malformed; the prompt is longer than it can read; a recording has no
such answer."""
MISS_REASONS: tuple[MissReason, ...] = get_args(MissReason)


class Missed(NamedTuple):
    """A request to a teacher without a usable reply; `detail` is for the user, in one line."""

    reason: MissReason
    detail: str = ""


class Response(Protocol):
    """A scored response of any author; `Rollout` explains the fields."""

    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def correct(self) -> bool: ...
    @property
    def status(self) -> str: ...
    @property
    def decided(self) -> bool: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response with its verdict.

    `token_ids_T` int32 includes the stop token if there is one; `logprobs_T` float32 are the sampler's, of the
    untruncated distribution at the sampling temperature; `text` is the decoded response without the stop token and
    with the prefilled `<think>` of the generation prompt; `answer` is the parsed final answer or None. `decided` is
    False if the scorer could not tell right from wrong; then `status` says why, and `correct` is meaningless.
    """

    token_ids_T: np.ndarray
    logprobs_T: np.ndarray
    finish_reason: FinishReason
    text: str
    correct: bool
    answer: str | None
    status: str
    decided: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A prompt with its rollouts: the unit of the advantage baseline. `author` has sampled them."""

    prompt: Prompt
    features: Features
    rollouts: tuple[Rollout, ...]
    author: Literal["student", "teacher"] = "student"

    @property
    def rewards_G(self) -> np.ndarray:
        """Binary outcome rewards, float32 [G]."""
        return np.asarray([rollout.correct for rollout in self.rollouts], np.float32)

    @property
    def decided(self) -> bool:
        """Whether every rollout is right or wrong."""
        return all(rollout.decided for rollout in self.rollouts)

    @property
    def num_tokens(self) -> int:
        """The number of tokens sampled by all rollouts together."""
        return sum(len(rollout.token_ids_T) for rollout in self.rollouts)

    def outcome(self, host: int = 0) -> Outcome:
        """The outcome, which the other hosts need; `host` is the index of the group's host."""
        return Outcome(
            self.prompt.uid,
            self.prompt.kind,
            self.prompt.question.id,
            tuple(bool(rollout.correct) for rollout in self.rollouts),
            self.num_tokens,
            sum(rollout.finish_reason == "length" for rollout in self.rollouts),
            host,
            tuple(rollout.status for rollout in self.rollouts),
            sum(not rollout.decided for rollout in self.rollouts),
            float(sum(np.sum(rollout.logprobs_T, dtype=np.float64) for rollout in self.rollouts)),
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A group in numbers: every host has the outcome of every group of a step, and makes the step's decisions from
    them.

    All rollouts together sampled `num_tokens`; `num_truncated` rollouts were cut at the limit; `host` has the group
    itself. `statuses` are the scorer's, by rollout; `num_undecided` rollouts are neither right nor wrong; `logprob` is
    the sum of the sampler's log-probabilities of all tokens, in nats.
    """

    uid: str
    kind: str
    question_id: str
    correct: tuple[bool, ...]
    num_tokens: int
    num_truncated: int
    host: int = 0
    statuses: tuple[str, ...] = ()
    num_undecided: int = 0
    logprob: float = 0.0

    @property
    def decided(self) -> bool:
        """Whether every rollout is right or wrong; otherwise the group has no mean reward and is not used."""
        return self.num_undecided == 0

    @property
    def rewards_G(self) -> np.ndarray:
        """Binary outcome rewards, float32 [G]."""
        return np.asarray(self.correct, np.float32)

    @property
    def accuracy(self) -> float:
        """Mean reward of the group (the paper's r-bar), in [0, 1]."""
        return float(self.rewards_G.mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Cohort:
    """The groups of one phase of a step: this host's groups, and the outcomes of all hosts' groups, in one order.

    With one host the outcomes are those of its groups. Every host has the same outcomes and makes the same decisions
    from them.
    """

    groups: tuple[Group, ...]
    outcomes: tuple[Outcome, ...]

    def __add__(self, other: Cohort) -> Cohort:
        return Cohort(self.groups + other.groups, self.outcomes + other.outcomes)

    @functools.cached_property
    def by_uid(self) -> dict[str, Group]:
        """This host's groups."""
        return {group.prompt.uid: group for group in self.groups}

    def groups_of(self, outcomes: Sequence[Outcome]) -> list[Group]:
        """This host's groups with these outcomes, in their order."""
        return [self.by_uid[outcome.uid] for outcome in outcomes if outcome.uid in self.by_uid]
