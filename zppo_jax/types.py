"""The host's vocabulary: what travels between the stages of a training step.

NumPy only, no jax: these values cross process borders (Grain workers, scoring workers) and checkpoints.

Shape suffixes: T tokens, I patches, C values of one patch, N images and videos, G rollouts of one group.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Kind = Literal["plain", "replay", "bcq", "ncq"]
"""Where a prompt comes from: a new question, a replayed one, or a reformulation of a hard one."""

FinishReason = Literal["stop", "length", "abort"]


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """A question with its gold answer, as a data source yields it.

    `images` are RGB uint8 arrays of shape [height, width, 3]. `level` names the family or difficulty and is
    only used for reports. `text` holds neither a template nor the closer.
    """

    id: str
    text: str
    images: tuple[np.ndarray, ...]
    answer: str
    answer_type: str
    level: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One user turn that a group of rollouts answers.

    `uid` is the group's identity ("never share a baseline", App. C): plain, BCQ and NCQ prompts of one question
    have three different uids. `text` is the whole user turn, closer included. `parent` is the uid of the plain
    group that a reformulated prompt came from.
    """

    uid: str
    kind: Kind
    question: Question
    text: str
    parent: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A prompt as the model reads it, without padding.

    `token_ids_T` int32, image placeholders already expanded; `token_types_T` int32 (0 text, 1 image, 2 video);
    `positions_3T` int32, the M-RoPE rows (time, height, width); `rope_delta` is what is added to the number of
    valid tokens to get the next position; `patches_IC` float32 in merge-block order, `grid_thw_N3` int32 in patches,
    both in the order in which the images and videos stand in the prompt. A video is a run of tokens for each step of
    time.
    """

    token_ids_T: np.ndarray
    token_types_T: np.ndarray
    positions_3T: np.ndarray
    rope_delta: int
    patches_IC: np.ndarray
    grid_thw_N3: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids_T.shape[0])

    @property
    def grid_types_N(self) -> np.ndarray:
        """1 (image) or 2 (video) for each row of `grid_thw_N3`, int32."""
        types_T = np.asarray(self.token_types_T, np.int32)
        runs = types_T[np.flatnonzero(np.diff(types_T, prepend=0))]
        steps_N = self.grid_thw_N3[:, 0].astype(np.int64)
        return runs[runs > 0][np.cumsum(steps_N) - steps_N]


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response with its verdict.

    `token_ids_T` int32 includes the stop token when there is one; `logprobs_T` float32 are the sampler's own, of the
    untruncated distribution at the sampling temperature; `text` is the decoded response without the stop token and
    with the prefilled `<think>` of the generation prompt; `answer` is the parsed final answer or None. `decided` is
    False where the scorer could not tell right from wrong, `status` says why: then `correct` says nothing.
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
    """A prompt with its rollouts: the unit of the advantage baseline."""

    prompt: Prompt
    features: Features
    rollouts: tuple[Rollout, ...]

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
        """Sampled by all rollouts together."""
        return sum(len(rollout.token_ids_T) for rollout in self.rollouts)

    def outcome(self, host: int = 0) -> Outcome:
        """What the other hosts need to know of it; `host` is its own."""
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
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A group in numbers: what every host knows of every group of a step, and takes the step's decisions from.

    `num_tokens` were sampled by all rollouts together, `num_truncated` rollouts were cut at the limit; `host` has the
    group itself. `statuses` are the scorer's, by rollout; `num_undecided` rollouts are neither right nor wrong.
    """

    uid: str
    kind: Kind
    question_id: str
    correct: tuple[bool, ...]
    num_tokens: int
    num_truncated: int
    host: int = 0
    statuses: tuple[str, ...] = ()
    num_undecided: int = 0

    @property
    def decided(self) -> bool:
        """Whether every rollout is right or wrong; else the group has no mean reward, and nothing is taken from it."""
        return self.num_undecided == 0

    @property
    def rewards_G(self) -> np.ndarray:
        """Binary outcome rewards, float32 [G]."""
        return np.asarray(self.correct, np.float32)

    @property
    def accuracy(self) -> float:
        """Mean reward of the group (the paper's r-bar), in [0, 1]."""
        return float(self.rewards_G.mean())
