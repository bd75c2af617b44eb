"""The keys of a configuration: each declared once, `name: Annotated[type, Setting(...)]`, with meaning and range."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a key means and which values it may take; bounds are inclusive unless `above` or `below` is given."""

    doc: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def mend(self) -> str:
        """The rule in words, empty when every value of the type will do."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        bounds = [
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        ]
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return not (
            (self.minimum is not None and value < self.minimum)
            or (self.above is not None and value <= self.above)
            or (self.maximum is not None and value > self.maximum)
            or (self.below is not None and value >= self.below)
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: Annotated[int, Setting("copies of the parameters over devices; -1: all devices left", minimum=-1)]
    fsdp: Annotated[int, Setting("devices that share the parameters' width; -1: all devices left", minimum=-1)]
    tensor: Annotated[int, Setting("devices that share heads and inner widths; -1: all devices left", minimum=-1)]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    path: Annotated[
        str, Setting("Hugging Face directory or hub id of the student; empty: the warm start shipped with the package")
    ]
    dtype: Annotated[str, Setting("dtype of the parameters and of the computation", choices=("float32", "bfloat16"))]
    remat: Annotated[
        str,
        Setting("what the backward pass computes again, to save memory", choices=("none", "group", "block")),
    ]


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    enabled: Annotated[bool, Setting("let the teacher shorten the candidates shown in BCQ and NCQ prompts")]
    max_tokens: Annotated[int, Setting("longest candidate, in tokens", minimum=1)]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    path: Annotated[str, Setting("Hugging Face directory or hub id of the teacher; empty: the one shipped")]
    num_rollouts: Annotated[int, Setting("teacher rollouts for a hard question (G_T)", minimum=1)]
    scope: Annotated[str, Setting("which hard questions the teacher answers", choices=("capped", "all_hard"))]
    temperature: Annotated[float, Setting("sampling temperature of the teacher; 0 is greedy", minimum=0)]
    top_p: Annotated[float, Setting("nucleus of the teacher", above=0, maximum=1)]
    mesh: MeshConfig
    compress: CompressConfig


@dataclasses.dataclass(frozen=True)
class WarmstartConfig:
    rebuild: Annotated[bool, Setting("train the shipped student and teacher anew before the run")]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: Annotated[str, Setting("where the questions come from", choices=("digits",))]
    family: Annotated[str, Setting("family of embedded questions", choices=("rules", "grid"))]
    num_questions: Annotated[int, Setting("training questions (|D|)", minimum=1)]
    worker_count: Annotated[int, Setting("Grain worker processes; 0: in this process", minimum=0)]


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    template: Annotated[str, Setting("wording of the closer, BCQ and NCQ prompts", choices=("paper", "compact"))]
    enable_thinking: Annotated[bool, Setting("the generation prompt opens <think>")]
    min_pixels: Annotated[int, Setting("smaller images are enlarged to this many pixels", minimum=1)]
    max_pixels: Annotated[int, Setting("larger images are shrunk to this many pixels", minimum=1024)]
    max_images: Annotated[int, Setting("images of max_pixels that one prompt has room for", minimum=1)]
    buckets: Annotated[
        tuple[int, ...], Setting("prompt lengths that are compiled, ascending; prompts are padded up to one")
    ]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    group_size: Annotated[int, Setting("student rollouts of a prompt (G_S)", minimum=2)]
    questions_per_step: Annotated[int, Setting("new questions of a step (|X_new|)", minimum=1)]
    max_new_tokens: Annotated[int, Setting("longest response, in tokens", minimum=1)]
    temperature: Annotated[float, Setting("sampling temperature of the student", above=0)]
    top_p: Annotated[float, Setting("nucleus of the student; 1: off", above=0, maximum=1)]
    top_k: Annotated[int, Setting("most likely tokens kept; 0: off", minimum=0)]
    slots: Annotated[
        int, Setting("rollouts that a host decodes at the same time, where cache_gigabytes holds them", minimum=1)
    ]
    chunk: Annotated[int, Setting("tokens of each rollout between two looks at what has finished", minimum=1)]
    cache_gigabytes: Annotated[
        float, Setting("most memory of a device for the keys, values and states of rollouts, in 10^9 bytes", above=0)
    ]
    state_dtype: Annotated[
        str, Setting("recurrent states of rollouts between two tokens", choices=("float32", "bfloat16"))
    ]
    mesh: MeshConfig


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    region: Annotated[
        str, Setting("where an answer counts: after the last </think>, or anywhere", choices=("final", "anywhere"))
    ]
    timeout_seconds: Annotated[float, Setting("longest time to score one response", above=0)]
    num_workers: Annotated[int, Setting("scoring processes; 0: in this process", minimum=0)]


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    fraction: Annotated[
        float, Setting("replayed questions as a share of the new ones (rho_replay)", minimum=0, maximum=1)
    ]
    capacity: Annotated[int, Setting("most questions the replay buffer holds (|B|max)", minimum=1)]
    refresh_position: Annotated[bool, Setting("a replayed question that stays hard moves to the end of the queue")]


@dataclasses.dataclass(frozen=True)
class ZppoConfig:
    threshold: Annotated[
        float, Setting("a question is hard when its mean reward is below this (tau)", above=0, maximum=1)
    ]
    augmentation_fraction: Annotated[
        float, Setting("BCQ and NCQ prompts, at most this share of the new questions (rho_aug)", minimum=0, maximum=1)
    ]


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    normalisation: Annotated[
        str, Setting("which groups enter the batch statistics", choices=("nonzero", "all", "none"))
    ]
    scope: Annotated[
        str, Setting("statistics of the whole rollout batch or of a mini-batch", choices=("batch", "minibatch"))
    ]
    eps: Annotated[float, Setting("added to the standard deviation", above=0)]


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    num_minibatches: Annotated[int, Setting("mini-batches, hence gradient updates, of a step (I)", minimum=1)]
    inner_epochs: Annotated[int, Setting("times each rollout enters the gradient", minimum=1)]
    clip_low: Annotated[float, Setting("the ratio is clipped below at 1 - clip_low", above=0, below=1)]
    clip_high: Annotated[float, Setting("the ratio is clipped above at 1 + clip_high", above=0)]
    dual_clip: Annotated[float, Setting("bound of the loss for negative advantages", above=1)]
    old_logprobs: Annotated[
        str,
        Setting(
            "whose log-probabilities the ratio divides by; trainer: one more forward pass",
            choices=("sampler", "trainer"),
        ),
    ]
    row_tokens: Annotated[
        int, Setting("slots of a row of prompts and responses; 0: what the longest of both need", minimum=0)
    ]
    prompts_per_row: Annotated[int, Setting("most prompts of a row", minimum=1)]
    rows_per_microbatch: Annotated[int, Setting("rows whose gradient is computed at once, on all devices", minimum=1)]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: Annotated[float, Setting("peak learning rate of AdamW", minimum=0)]
    schedule: Annotated[
        str, Setting("course of the learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    ]
    warmup_steps: Annotated[int, Setting("steps of linear warm-up", minimum=0)]
    b1: Annotated[float, Setting("decay of the first moment", minimum=0, below=1)]
    b2: Annotated[float, Setting("decay of the second moment", minimum=0, below=1)]
    eps: Annotated[float, Setting("added to the root of the second moment", above=0)]
    weight_decay: Annotated[float, Setting("decoupled weight decay", minimum=0)]
    grad_clip: Annotated[float, Setting("largest global norm of a gradient", above=0)]
    state_dtype: Annotated[
        str,
        Setting("dtype of the moments between updates; bfloat16 is rounded by lot", choices=("float32", "bfloat16")),
    ]
    parameter_rounding: Annotated[
        str,
        Setting(
            "how bfloat16 parameters take small changes (docs/decisions.md)",
            choices=("nearest", "stochastic", "kahan", "master"),
        ),
    ]
    freeze: Annotated[
        tuple[str, ...], Setting("patterns of parameters that do not learn, such as vision/**; empty: all learn")
    ]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: Annotated[int, Setting("steps between two checkpoints; every evaluation makes one too", minimum=1)]
    keep: Annotated[int, Setting("newest checkpoints kept", minimum=1)]
    keep_best: Annotated[int, Setting("checkpoints kept beside them, of the best held-out accuracy", minimum=0)]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: Annotated[int, Setting("steps between two evaluations; step 0 and the last are always evaluated", minimum=1)]
    num_questions: Annotated[int, Setting("held-out questions of an evaluation", minimum=1)]
    temperature: Annotated[float, Setting("sampling temperature of the evaluation; 0 is greedy", minimum=0)]
    top_p: Annotated[float, Setting("nucleus of the evaluation; 1: off", above=0, maximum=1)]
    top_k: Annotated[int, Setting("most likely tokens kept in the evaluation; 0: off", minimum=0)]
    min_p: Annotated[
        float,
        Setting("tokens below this share of the likeliest's probability are left out; 0: off", minimum=0, below=1),
    ]
    presence_penalty: Annotated[
        float, Setting("taken off the scores of tokens that a response has; 0: off", minimum=-100, maximum=100)
    ]
    repetition_penalty: Annotated[
        float, Setting("divides the scores of tokens of prompt and response (below 0: multiplies); 1: off", above=0)
    ]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    samples_max_megabytes: Annotated[float, Setting("samples.jsonl is rotated at this size", above=0)]
    samples_keep: Annotated[int, Setting("rotated sample files kept beside the current one", minimum=0)]
    tensorboard: Annotated[bool, Setting("write TensorBoard events beside metrics.jsonl")]


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    step: Annotated[int, Setting("step that is traced, for Perfetto and XProf, in profile/; 0: none", minimum=0)]


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    max_skipped: Annotated[
        int,
        Setting("updates in a row that may be skipped because they are not finite; one more ends the run", minimum=0),
    ]
    host_seconds: Annotated[float, Setting("how long a host waits for the others before it names them", above=0)]


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. The fields are the keys of a config file, in its order."""

    seed: Annotated[int, Setting("every draw derives from (seed, step, purpose)", minimum=0, maximum=2**31 - 1)]
    num_steps: Annotated[
        int, Setting("training steps; on resuming it may grow, and what belongs to the machine may change", minimum=1)
    ]
    method: Annotated[str, Setting("row of the table of methods; chosen by --config=configs/tiny.py:METHOD")]
    mesh: MeshConfig
    model: ModelConfig
    teacher: TeacherConfig
    warmstart: WarmstartConfig
    data: DataConfig
    prompt: PromptConfig
    rollout: RolloutConfig
    reward: RewardConfig
    replay: ReplayConfig
    zppo: ZppoConfig
    advantage: AdvantageConfig
    update: UpdateConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    eval: EvalConfig
    log: LogConfig
    profile: ProfileConfig
    watchdog: WatchdogConfig
