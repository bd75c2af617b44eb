"""The metrics of a run as one table: name, meaning, unit, and where each is shown.

The columns of metrics.jsonl, the progress line, the panels of curves.png and docs/metrics.md are made from it.

    python -m zppo_jax.run.metrics > docs/metrics.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from zppo_jax.types import MISS_REASONS
from zppo_jax.zppo import HELPS


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a step.

    Attributes:
      name: its name in metrics.jsonl; with a `*`, a pattern for several that are not in every row.
      meaning: its meaning in one sentence.
      unit: "share" is in [0, 1], "" a plain number.
      panel: the panel of curves.png that draws it, and `label` its line there.
      console: its form in the progress line, where `{}` is the value.
      warning: words for the end of the progress line, in a step in which it is not zero.
    """

    name: str
    meaning: str
    unit: str = ""
    panel: str = ""
    label: str = ""
    console: str = ""
    warning: str = ""

    @property
    def always(self) -> bool:
        """Whether every row has it (null if the step has no such value)."""
        return "*" not in self.name


def _of_help(kind: str) -> Iterator[Metric]:
    words = kind.upper()
    yield Metric(f"zppo/{kind}_groups", f"{words} groups that were sampled", "groups", "helped", f"{words} groups")
    yield Metric(f"zppo/{kind}_listed", f"{words} prompts that were built, before the post-cap", "prompts")
    yield Metric(f"zppo/{kind}_accuracy", f"mean reward in {words} prompts", "share", "in help", words)


def _of_digest(name: str) -> Iterator[Metric]:
    yield Metric(f"{name}/summaries", f"texts that the teacher was asked to write ({name})", "texts")
    yield Metric(f"{name}/refused", "those that were refused, because they cannot replace their response", "texts")
    yield Metric(f"{name}/refused/*", "the same by author and reason", "texts")


def _of_miss(what: str, reason: str, warning: str = "") -> Metric:
    unit = "questions" if what == "unanswered" else "texts"
    return Metric(f"teacher/{what}/{reason}", f"the same for the reason {reason}", unit, warning=warning)


METRICS: tuple[Metric, ...] = (
    Metric("rollout/accuracy", "mean reward of plain rollouts, on new and replayed questions together", "share"),
    Metric(
        "rollout/new_accuracy",
        "mean reward on new questions, to compare methods with and without a buffer",
        "share",
        "rollouts",
        "accuracy, new questions",
        console="accuracy {}",
    ),
    Metric("rollout/hard_fraction", "share of plain groups below zppo.threshold", "share"),
    Metric(
        "rollout/new_hard_fraction",
        "the same for new questions",
        "share",
        "rollouts",
        "hard, new questions",
        console="hard {}",
    ),
    Metric(
        "rollout/entropy", "mean negative log-probability of the sampled tokens: an estimate of the entropy", "nats"
    ),
    Metric("rollout/tokens", "tokens sampled by the student", "tokens"),
    Metric("rollout/truncated_fraction", "share of rollouts that were cut at rollout.max_new_tokens", "share"),
    Metric("rollout/occupancy", "share of the slots' decoding steps that produced a token", "share"),
    Metric("rollout/longest", "longest rollout", "tokens"),
    Metric("reward/*", "rollouts by the scorer's status (rewards/verdict.py)", "rollouts"),
    Metric("replay/groups", "groups on questions of the replay buffer", "groups"),
    Metric("replay/accuracy", "mean reward on replayed questions", "share"),
    Metric("replay/size", "questions in the buffer", "questions", "buffer", "in the buffer", console="buffer {:>4}"),
    Metric("replay/admitted", "questions that entered the buffer", "questions"),
    Metric("replay/graduated", "questions that left it because the student solves them", "questions"),
    Metric("replay/evicted", "questions that left it because it was full", "questions"),
    Metric(
        "replay/graduated_total",
        "graduations since the start",
        "questions",
        "buffer",
        "graduated so far",
        console="graduated {:>4}",
    ),
    Metric("replay/evicted_total", "evictions since the start", "questions", "buffer", "evicted so far"),
    Metric("replay/inside/*", "questions in the buffer by their accuracy at entry (Fig 20)", "questions"),
    Metric("replay/graduated_total/*", "graduations since the start by entry accuracy (Fig 4)", "questions"),
    Metric("replay/evicted_total/*", "evictions since the start by entry accuracy (Fig 4)", "questions"),
    Metric("zppo/hard", "hard questions, before the pre-cap", "questions"),
    *(metric for kind in HELPS for metric in _of_help(kind)),
    Metric("zppo/too_long", "prompts skipped because they are longer than every bucket", "prompts", warning="too long"),
    Metric("data/skipped", "new questions left out because their rows cannot be used", "questions", warning="skipped"),
    Metric("rollout/undecided", "rollouts that the scorer could not decide", "rollouts", warning="undecided"),
    Metric("judge/judged", "responses that the judge ruled on, held-out ones included", "responses"),
    Metric("judge/cached", "responses whose verdict was there, from an earlier step or an equal response", "responses"),
    Metric("judge/malformed", "those of both that are wrong because the judge's output was no verdict", "responses"),
    Metric(
        "judge/failed",
        "responses that are undecided because the judge gave no output in time",
        "responses",
        warning="judge failed",
    ),
    Metric("teacher/asked", "hard questions that the teacher was asked", "questions"),
    Metric("teacher/unanswered", "those without an answer: they get no prompt that needs one", "questions"),
    *(
        Metric(
            f"teacher/unanswered/{reason}", f"those of the reason {reason}", "questions", warning=f"teacher {reason}"
        )
        for reason in MISS_REASONS
    ),
    Metric("teacher/unwritten", "texts that the teacher did not write", "texts"),
    *(_of_miss("unwritten", reason) for reason in MISS_REASONS),
    *(metric for name in dict.fromkeys(row.digest.name for row in HELPS.values()) for metric in _of_digest(name)),
    Metric("update/loss", "mean loss per token over the updates", "", "loss", "loss"),
    Metric("update/clip_fraction", "share of tokens whose ratio was clipped", "share", "gradient", "clip fraction"),
    Metric("update/dual_clip_fraction", "share of tokens at the dual clip", "share"),
    Metric("update/ratio", "mean probability ratio of the computed tokens", ""),
    Metric("update/kl", "k3 estimate of KL(old || new) of the computed tokens", "nats"),
    Metric("update/log_ratio_abs", "mean absolute log ratio of the computed tokens", "nats"),
    Metric(
        "update/mismatch_kl",
        "k3 estimate of KL(sampler || trainer) before the first update",
        "nats",
        "gradient",
        "mismatch KL",
    ),
    Metric("update/mismatch_abs", "mean distance of the trainer's log-probabilities from the sampler's", "nats"),
    Metric("update/grad_norm", "norm of the gradient before it is clipped", "", "gradient", "gradient norm"),
    Metric("update/tokens", "tokens that were computed in all updates", "tokens"),
    Metric(
        "update/nonzero_group_fraction",
        "share of groups with a gradient",
        "share",
        "rollouts",
        "groups with a gradient",
    ),
    Metric("update/positive_fraction", "share of responses with a positive advantage (Fig 25)", "share"),
    Metric("update/skipped", "updates that were skipped because they were not finite", "updates"),
    Metric("eval/accuracy", "held-out accuracy, one response per question", "share", "evaluation"),
    Metric("eval/standard_error", "half of Wilson's interval of one standard deviation", "share"),
    Metric("eval/wilson_low", "lower end of Wilson's interval of 95 %", "share"),
    Metric("eval/wilson_high", "upper end of Wilson's interval of 95 %", "share"),
    Metric("eval/questions", "held-out questions", "questions"),
    Metric(
        "eval/undecided",
        "held-out responses that the scorer could not decide",
        "responses",
        warning="held-out undecided",
    ),
    Metric("eval/skipped", "held-out questions left out because their rows cannot be used", "questions"),
    Metric("eval/accuracy/*", "held-out accuracy by level", "share", "evaluation"),
    Metric("eval/questions/*", "held-out questions by level", "questions"),
    Metric(
        "rollout/tokens_per_second",
        "sampled tokens per second of time/rollout",
        "tokens/s",
        "speed",
        "sampled tokens",
        console="{:>6} tokens/s",
    ),
    Metric("time/data", "reading and processing questions", "s"),
    Metric("time/rollout", "the student's rollouts, with scoring", "s", "time", "rollout"),
    Metric("time/teacher", "the teacher's responses and texts, building prompts", "s", "time", "teacher"),
    Metric("time/reformulation", "processing reformulated prompts", "s"),
    Metric("time/update", "the updates", "s", "time", "update"),
    Metric("time/eval", "evaluations; in the steps that have one", "s"),
    Metric("time/judge", "waiting for the judge, on the host that waited longest; part of the phases above", "s"),
    Metric("time/records", "writing the records", "s"),
    Metric("time/checkpoint", "starting to write a checkpoint", "s"),
    Metric("time/unaccounted", "time outside any phase", "s"),
    Metric("time/step", "from the end of the previous step", "s", "time"),
    Metric("time/agreement", "waiting for other hosts and exchanging values with them; part of the phases above", "s"),
    Metric("checkpoint/failed", "checkpoints that could not be written since this process began", "checkpoints"),
)
"""All metrics, in the order of the documentation and of the progress line."""

SCHEMA = tuple(metric.name for metric in METRICS if metric.always)
"""The names that every row of metrics.jsonl has besides `step`; null if the step has no such value."""


def depends_on_clock(name: str) -> bool:
    """Whether a metric may differ between two runs of the same seed."""
    return name.startswith(("time/", "memory/")) or "per_second" in name


def document() -> str:
    """The text of docs/metrics.md."""
    rows = "\n".join(f"| `{metric.name}` | {metric.meaning} | {metric.unit} |" for metric in METRICS)
    return f"""\
# The metrics of a run

A row of metrics.jsonl has `step` and all names below without a `*`, null if the step has no such value; the others
are in the rows that have them. TensorBoard has the same names. Written by `python -m zppo_jax.run.metrics`.

| name | meaning | unit |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    print(document(), end="")
