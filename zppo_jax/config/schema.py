"""The keys of a configuration, each declared once: `name: Annotated[type, Setting(...)]`. Those about models are in
schema_models.py."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from zppo_jax.config.schema_models import (
    JudgeConfig,
    MeshConfig,
    ModelConfig,
    RolloutConfig,
    TeacherConfig,
    WarmstartConfig,
)
from zppo_jax.config.setting import Setting


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    id: Annotated[str, Setting("column of the question's id; without one, ids are row numbers")]
    question: Annotated[str, Setting("column of the question's text, with <image> and <video> or without")]
    answer: Annotated[str, Setting("column of the gold answer")]
    images: Annotated[str, Setting("column of one image or several: bytes, path, base64 or {bytes, path}")]
    videos: Annotated[str, Setting("column of one video file or several, like images")]
    answer_type: Annotated[str, Setting("column of the answer type; data.answer_type where it is empty")]
    choices: Annotated[str, Setting("column of the options of multiple_choice, a list of texts")]
    tolerance: Annotated[str, Setting("column of the tolerance of numeric answers")]
    options: Annotated[str, Setting("column of further options of the scorer, an object")]
    level: Annotated[str, Setting("column of a family or difficulty: held-out accuracy is shown for each")]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: Annotated[
        str,
        Setting(
            "the questions: digits, parquet:DIR, jsonl:FILE_OR_DIR, arrayrecord:DIR, tfds:NAME[:SPLIT] or "
            "hf:ID[:CONFIG[:SPLIT]]"
        ),
    ]
    split: Annotated[str, Setting("split of the source; of its files, those named after it, if there are any")]
    held_out: Annotated[
        str, Setting("source of the held-out questions; empty: the digits' test split, or a share of the source")
    ]
    held_out_split: Annotated[str, Setting("split of data.held_out")]
    family: Annotated[str, Setting("family of embedded questions", choices=("rules", "grid"))]
    num_questions: Annotated[int, Setting("training questions (|D|), at most", minimum=1)]
    answer_type: Annotated[str, Setting("answer type of rows that have none")]
    allow_outside: Annotated[bool, Setting("paths of images may leave the directory of their data file")]
    bad_rows: Annotated[
        str,
        Setting("a row that cannot be used ends the run, or is left out and counted", choices=("refuse", "skip")),
    ]
    threads: Annotated[int, Setting("threads that read questions, each a step ahead", minimum=0, may_change=True)]
    worker_count: Annotated[
        int, Setting("Grain worker processes, each with data.threads; 0: in this process", minimum=0)
    ]
    columns: ColumnsConfig


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    template: Annotated[str, Setting("wording of the closer, BCQ and NCQ prompts", choices=("paper", "compact"))]
    enable_thinking: Annotated[bool, Setting("the generation prompt opens <think>")]
    min_pixels: Annotated[int, Setting("smaller images are enlarged to this many pixels", minimum=1)]
    max_pixels: Annotated[int, Setting("larger images are shrunk to this many pixels", minimum=1024)]
    max_images: Annotated[int, Setting("images of max_pixels that one prompt has room for", minimum=1)]
    buckets: Annotated[
        tuple[int, ...],
        Setting("prompt lengths to compile, ascending; a prompt is padded to the next one"),
    ]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    region: Annotated[
        str, Setting("where an answer counts: after the last </think>, or anywhere", choices=("final", "anywhere"))
    ]
    function: Annotated[
        str, Setting("your own reward, package.module:name (docs/rewards.md); empty: the rules of the answer types")
    ]
    timeout_seconds: Annotated[float, Setting("longest time to score one response", above=0)]
    num_workers: Annotated[int, Setting("scoring processes; 0: in this process", minimum=0, may_change=True)]


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    fraction: Annotated[
        float, Setting("replayed questions as a share of the new ones (rho_replay)", minimum=0, maximum=1)
    ]
    capacity: Annotated[int, Setting("largest number of questions in the replay buffer (|B|max)", minimum=1)]
    refresh_position: Annotated[bool, Setting("a replayed question that stays hard moves to the end of the queue")]


@dataclasses.dataclass(frozen=True)
class ZppoConfig:
    threshold: Annotated[
        float, Setting("a question is hard when its mean reward is below this (tau)", above=0, maximum=1)
    ]
    augmentation_fraction: Annotated[
        float,
        Setting("largest share of BCQ and NCQ prompts, relative to the new questions (rho_aug)", minimum=0, maximum=1),
    ]


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    normalisation: Annotated[
        str, Setting("which groups enter the batch statistics", choices=("nonzero", "all", "none"))
    ]
    scope: Annotated[
        str, Setting("statistics of the whole rollout batch or of each mini-batch", choices=("batch", "minibatch"))
    ]
    eps: Annotated[float, Setting("added to the standard deviation", above=0)]


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
    num_minibatches: Annotated[int, Setting("mini-batches of a step, one gradient update each (I)", minimum=1)]
    inner_epochs: Annotated[int, Setting("passes over the rollouts of a step", minimum=1)]
    clip_low: Annotated[float, Setting("the ratio is clipped below at 1 - clip_low", above=0, below=1)]
    clip_high: Annotated[float, Setting("the ratio is clipped above at 1 + clip_high", above=0)]
    dual_clip: Annotated[float, Setting("bound of the ratio in the loss for negative advantages", above=1)]
    old_logprobs: Annotated[
        str,
        Setting(
            "whose log-probabilities the ratio divides by; trainer: one more forward pass",
            choices=("sampler", "trainer"),
        ),
    ]
    row_tokens: Annotated[
        int,
        Setting(
            "tokens in a row of prompts and responses; 0: enough for the longest of both", minimum=0, may_change=True
        ),
    ]
    prompts_per_row: Annotated[int, Setting("largest number of prompts in a row", minimum=1, may_change=True)]
    rows_per_microbatch: Annotated[
        int, Setting("rows of one gradient computation, over all devices together", minimum=1, may_change=True)
    ]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: Annotated[float, Setting("peak learning rate of AdamW", minimum=0)]
    schedule: Annotated[
        str, Setting("learning-rate schedule after the warm-up", choices=("constant", "linear", "cosine"))
    ]
    warmup_steps: Annotated[int, Setting("steps of linear warm-up", minimum=0)]
    b1: Annotated[float, Setting("decay of the first moment", minimum=0, below=1)]
    b2: Annotated[float, Setting("decay of the second moment", minimum=0, below=1)]
    eps: Annotated[float, Setting("added to the root of the second moment", above=0)]
    weight_decay: Annotated[float, Setting("decoupled weight decay", minimum=0)]
    grad_clip: Annotated[float, Setting("largest global norm of a gradient", above=0)]
    state_dtype: Annotated[
        str,
        Setting(
            "dtype of the moments between updates; bfloat16 moments are rounded stochastically",
            choices=("float32", "bfloat16"),
        ),
    ]
    parameter_rounding: Annotated[
        str,
        Setting(
            "how bfloat16 parameters take small changes (docs/decisions.md)",
            choices=("nearest", "stochastic", "kahan", "master"),
        ),
    ]
    freeze: Annotated[
        tuple[str, ...], Setting("patterns of frozen parameters, such as vision/**; empty: all parameters learn")
    ]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: Annotated[
        int,
        Setting("steps between two checkpoints; an evaluation of accuracy makes one too", minimum=1, may_change=True),
    ]
    keep: Annotated[int, Setting("newest checkpoints kept", minimum=1, may_change=True)]
    keep_best: Annotated[
        int,
        Setting("further checkpoints kept: those with the best held-out accuracy", minimum=0, may_change=True),
    ]


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    every: Annotated[int, Setting("steps between two evaluations; step 0 and the last are always evaluated", minimum=1)]
    num_questions: Annotated[int, Setting("held-out questions of an evaluation", minimum=1)]
    temperature: Annotated[float, Setting("sampling temperature of the evaluation; 0: greedy", minimum=0)]
    top_p: Annotated[float, Setting("nucleus of the evaluation; 1: off", above=0, maximum=1)]
    top_k: Annotated[int, Setting("sample from this many of the most likely tokens; 0: off", minimum=0)]
    min_p: Annotated[
        float,
        Setting("drop tokens below this share of the most likely token's probability; 0: off", minimum=0, below=1),
    ]
    presence_penalty: Annotated[
        float,
        Setting("subtracted from the logits of tokens in the response; 0: off", minimum=-100, maximum=100),
    ]
    repetition_penalty: Annotated[
        float,
        Setting("divides positive logits of tokens in prompt and response, multiplies negative ones; 1: off", above=0),
    ]


@dataclasses.dataclass(frozen=True)
class LogConfig:
    samples_max_megabytes: Annotated[float, Setting("samples.jsonl is rotated at this size", above=0, may_change=True)]
    samples_keep: Annotated[
        int, Setting("rotated sample files kept besides the current one", minimum=0, may_change=True)
    ]
    tensorboard: Annotated[bool, Setting("write TensorBoard events in addition to metrics.jsonl", may_change=True)]


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    step: Annotated[
        int, Setting("step to trace into profile/, for Perfetto and XProf; 0: none", minimum=0, may_change=True)
    ]


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    max_skipped: Annotated[
        int,
        Setting("consecutive updates skipped as not finite; one more ends the run", minimum=0, may_change=True),
    ]
    host_seconds: Annotated[
        float, Setting("how long a host waits for the others before it names them", above=0, may_change=True)
    ]


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run. The fields are the keys of a config file, in the order of `--help`."""

    seed: Annotated[
        int,
        Setting("seed of all random streams: each derives from (seed, step, purpose)", minimum=0, maximum=2**31 - 1),
    ]
    num_steps: Annotated[int, Setting("training steps; may grow when a run is continued", minimum=1, may_change=True)]
    method: Annotated[str, Setting("name of the method; chosen by --config=configs/tiny.py:METHOD")]
    mesh: MeshConfig
    model: ModelConfig
    teacher: TeacherConfig
    warmstart: WarmstartConfig
    data: DataConfig
    prompt: PromptConfig
    rollout: RolloutConfig
    reward: RewardConfig
    judge: JudgeConfig
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
