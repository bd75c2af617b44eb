r"""The paper's run at 9B: Qwen3.5-9B learns by ZPPO, Qwen3.5-27B-FP8 teaches (Table 8 of arXiv:2606.18216).

One node with 8 GPUs:

    python -m zppo_jax.main --config=configs/9b.py --workdir=runs/9b

A TPU pod slice, here 64 chips of v6e in 16 hosts that share the directory of the run (docs/hosts.md; `rollout.slots`
are those of a host, and each host holds the teacher):

    gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd zppo_jax && python -m zppo_jax.main \
      --distributed --config=configs/9b.py --config.update.rows_per_microbatch=64 --workdir=/shared/runs/9b"

Both models are hub ids; where the hub is out of reach, add `--config.model.path=DIR --config.teacher.path=DIR`.
`:grpo` and the other methods after the file's name are the paper's baselines.

**The paper's data, ZPPO-77K, is not in this release yet**: as it stands, the file trains on the embedded digits, which
is no benchmark of anything; any `--config.data.source` of `--help` will do. Nobody has run this file to its end yet.

Memory in GB (10^9 bytes), over all devices together; a test computes the same from the shapes:

    parameters             18.8   9,409,813,744 in bfloat16
    optimiser              56.5   two moments and what rounding loses, in bfloat16
    gradient               37.6   float32
    teacher                54.7   27.4 in the files (FP8), held in bfloat16
    student's caches      193.6   rollout.slots rows of the longest prompt and response
    teacher's caches      400.2   likewise; not at the same time as the student's
    student's decoding     17.9   a copy of its weights on each device (rollout.mesh), while it decodes
    teacher's decoding     53.8   likewise, cut over the devices (teacher.mesh)

and activations on top: `model.remat` and `update.row_tokens` decide how much.

What the paper reports, macro averages in % over its 16 VLM, 10 LLM and 5 video benchmarks, and hours on 64 H100-80GB
(Table 9), 48 of them for the student and 16 for the teacher:

                VLM    LLM    video  hours
    before      70.2   64.9   73.8
    GRPO        71.2   65.7   73.2    90
    ZPPO        73.0   68.8   74.2   110
"""

from __future__ import annotations

from configs import common
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    """Every item of Table 8 that is a setting, one a line, whether or not configs/common.py has the same value."""
    config = common.get_config(method)

    # Models
    config.model.path = "Qwen/Qwen3.5-9B"  # student init
    config.model.dtype = "bfloat16"  # precision
    config.teacher.path = "Qwen/Qwen3.5-27B-FP8"  # teacher, and compressor
    config.mesh.data = 1
    config.mesh.fsdp = -1  # FSDP full-shard
    config.mesh.tensor = 1  # TP 1 / 1

    # Optimisation
    config.optimizer.b1 = 0.9  # AdamW betas
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8  # AdamW eps
    config.optimizer.weight_decay = 0.1  # weight decay
    config.optimizer.state_dtype = "bfloat16"  # AnyPrecisionAdamW, bf16 optimizer state
    config.optimizer.parameter_rounding = "kahan"  # not stated; AnyPrecisionAdamW's default as EasyR1 has it
    config.optimizer.learning_rate = 1.0e-6  # LR
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
    config.reward.region = "anywhere"  # rule-based binary reward: the last box, wherever it stands
    config.update.clip_low = 0.20  # clip low
    config.update.clip_high = 0.28  # clip high
    config.update.dual_clip = 10.0  # dual clip
    config.update.old_logprobs = "sampler"  # the paper: the trainer's, one more forward pass

    # Recipe
    config.update.num_minibatches = 4  # I
    config.advantage.normalisation = "nonzero"  # batch advantage norm: on, zero-advantage groups excluded
    config.advantage.scope = "batch"  # not clear in the paper: docs/decisions.md
    config.advantage.eps = 1e-6  # not stated

    # ZPPO
    config.zppo.threshold = 0.5  # tau
    config.replay.fraction = 0.25  # rho_replay
    config.replay.capacity = 10_000  # |B|max, FIFO
    config.replay.refresh_position = False  # not stated
    config.zppo.augmentation_fraction = 0.25  # rho_aug
    config.teacher.compress.enabled = True  # candidate compression
    config.teacher.compress.max_tokens = 512  # max tokens of a candidate
    config.teacher.scope = "capped"  # the paper: "all_hard", which gives the same prompts and costs more

    # Schedule
    config.data.num_questions = 76_800  # a single pass: 200 steps of 384
    config.rollout.questions_per_step = 384  # rollout batch
    config.num_steps = 200  # rollout steps; 800 updates
    config.update.row_tokens = 0  # the paper: a micro-batch of 4 rollouts a device
    config.update.prompts_per_row = 4
    config.update.rows_per_microbatch = 8  # one a device

    # Evaluation
    config.eval.temperature = 0.6  # decoding of the evaluation (App. B.2)
    config.eval.top_p = 0.95
    config.eval.top_k = 20
    config.eval.min_p = 0.0
    config.eval.presence_penalty = 1.5
    config.eval.repetition_penalty = 1.0

    # This machine, not the paper
    config.model.remat = "block"
    config.rollout.slots = 256
    config.rollout.chunk = 64
    config.rollout.cache_gigabytes = 24.0  # the teacher decodes beside the student's weights: docs/scale.md
    config.rollout.state_dtype = "float32"
    return config
