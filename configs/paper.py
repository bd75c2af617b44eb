"""The paper's run without its student: Table 8 of arXiv:2606.18216, each value once.

"Not stated" marks a value that the paper leaves open, "the paper: ..." one that differs from it; docs/decisions.md has
the reasons. This file cannot be run by itself: 0p8b.py, 2b.py, 4b.py and 9b.py name the student. Keys that the paper
does not mention (machine, columns of the data, checkpoints, logs) are in configs/common.py.
"""

from __future__ import annotations

from configs import common
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    """Makes all keys; `method` is a row of the table of methods (`--config=FILE.py:METHOD`)."""
    config = common.get_config(method)

    # Models
    config.model.dtype = "bfloat16"  # precision
    config.teacher.path = "Qwen/Qwen3.5-27B-FP8"  # teacher, and compressor; in this process, unless an address is given
    config.mesh.data = 1
    config.mesh.fsdp = -1  # FSDP full-shard
    config.mesh.tensor = 1  # TP 1 / 1

    # Optimisation
    config.optimizer.b1 = 0.9  # AdamW betas
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8  # AdamW eps
    config.optimizer.weight_decay = 0.1  # weight decay
    config.optimizer.state_dtype = "bfloat16"  # AnyPrecisionAdamW, bf16 optimizer state
    # Not stated; AnyPrecisionAdamW's default, as in EasyR1. Rounded to nearest, 1e-6 moves no bfloat16 weight.
    config.optimizer.parameter_rounding = "kahan"
    config.optimizer.learning_rate = 1e-6  # LR
    config.optimizer.schedule = "constant"  # no decay
    config.optimizer.warmup_steps = 0  # no warmup
    config.optimizer.grad_clip = 1.0  # grad clip
    config.optimizer.freeze = ()  # not stated: nothing is frozen
    config.update.inner_epochs = 1  # PPO inner epochs

    # Rollouts
    config.rollout.group_size = 8  # G_S
    config.teacher.num_rollouts = 4  # G_T
    config.rollout.temperature = 1.0  # temperature, student
    config.rollout.top_p = 1.0  # top-p, student
    config.rollout.top_k = 0  # no top-k
    config.teacher.temperature = 1.0  # temperature, teacher
    config.teacher.top_p = 1.0  # top-p, teacher
    config.prompt.buckets = (2048, 4096, 9216)  # max prompt 4,096; NCQ: eight candidates of 512 and their frame more
    config.rollout.max_new_tokens = 12_288  # max response
    config.prompt.template = "paper"  # Figs 8, 16, 17 and 18
    config.prompt.enable_thinking = True  # not stated
    config.prompt.min_pixels = 256 * 32 * 32  # min-pixels (stated for evaluation)
    config.prompt.max_pixels = 1280 * 32 * 32  # max-pixels (stated for evaluation)

    # GRPO
    config.reward.region = "anywhere"  # rule-based binary reward: the last box, wherever it is
    config.update.clip_low = 0.2  # clip low
    config.update.clip_high = 0.28  # clip high
    config.update.dual_clip = 10.0  # dual clip
    config.update.old_logprobs = "sampler"  # the paper: the trainer's, one more forward pass ("exp." micro-batch)

    # Recipe
    config.update.num_minibatches = 4  # I
    config.advantage.normalisation = "nonzero"  # batch advantage norm: on, zero-advantage groups excluded
    config.advantage.scope = "batch"  # not clear in the paper
    config.advantage.eps = 1e-6  # not stated

    # ZPPO
    config.zppo.threshold = 0.5  # tau
    config.replay.fraction = 0.25  # rho_replay
    config.replay.capacity = 10_000  # |B|max, FIFO
    config.replay.refresh_position = False  # not stated
    config.zppo.augmentation_fraction = 0.25  # rho_aug
    config.teacher.compress.enabled = True  # candidate compression
    config.teacher.compress.max_tokens = 512  # max tokens of a candidate
    config.teacher.scope = "capped"  # the paper: "all_hard", which gives the same prompts at a higher cost

    # Schedule
    config.data.source = "arrayrecord:data/zppo77k"  # ZPPO-77K, as python -m zppo_jax.data.zppo77k builds it
    config.data.num_questions = 76_800  # a single pass over ZPPO-77K: 200 steps of 384
    config.rollout.questions_per_step = 384  # rollout batch, |X_new|
    config.num_steps = 200  # rollout steps; 800 updates

    # Evaluation: decoding of all benchmarks (App. B.2)
    config.eval.temperature = 0.6
    config.eval.top_p = 0.95
    config.eval.top_k = 20
    config.eval.min_p = 0.0
    config.eval.presence_penalty = 1.5
    config.eval.repetition_penalty = 1.0

    # Judge (App. B.2); temperature 0 and top-p 1 are fixed
    config.judge.max_tokens = 512

    return config
