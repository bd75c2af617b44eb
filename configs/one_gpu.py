r"""Qwen3.5-0.8B learns by ZPPO on one GPU of 80 GB, beside a teacher in the same process or behind a network.

    export XLA_PYTHON_CLIENT_MEM_FRACTION=0.95
    python -m zppo_jax.main --config=configs/one_gpu.py --config.data.source=parquet:DIR --workdir=runs/one_gpu

DIR holds parquet files of your questions (docs/data.md). The teacher is Qwen3.5-9B. Others:

    --config.teacher.path=Qwen/Qwen3.5-27B-FP8 --config.num_steps=120                      in process, in FP8
    --config.teacher.path=http://HOST:8000/v1 --config.teacher.model=Qwen/Qwen3.5-27B-FP8  served by another machine

The differences from the paper (configs/paper.py), and the reasons:
- 64 questions a step instead of 384, and responses of at most 4,096 tokens instead of 12,288: a day, see below;
- questions of at most 2,048 tokens with 768 image tokens instead of 4,096 with 1,280, and candidates of 256 tokens
  instead of 512: prompts of 4,608 tokens instead of 9,216, so that more rows fit;
- 20 GB of caches, one row of the update at a time: one device.
Learning rate, updates per step, rounding, moments, replay and the shares of help are the paper's.

Time of a step in seconds, if every response is as long as it may be; products take 30 % of 989 TFLOP/s, a step
of decoding reads its bytes (benchmarks/on_gpu/decode.py) at 40 % of 3.35 TB/s (an H100). **Not measured**:

    student decodes     203   3,145,728 tokens in 768 responses, 158 at once
    update               57   with each prompt once, rows of 8,704 tokens
    teacher answers      92   262,144 tokens in 64 responses, 59 at once
    teacher reads        28   128 responses that it shortens
    teacher writes       12   32,768 tokens
    together            392
    evaluation          135   512 responses, 11 times in a run

200 steps take 22.2 hours; without a teacher on this device (served, if it answers in time) 14.9. With the 27B teacher
in FP8 (half of the bytes of its weights, 27 rows at once) a step takes 680 s, and 120 steps 22.9 hours.

Memory in GB (10^9 bytes), as a test computes it from the shapes, without activations; not all of it at the same time:

    parameters              1.7   852,985,920 in bfloat16
    optimiser               5.1   two moments and the rounding error, in bfloat16
    gradient                3.4   float32
    teacher                18.8   bfloat16
    student's caches       20.0   158 rows of the longest prompt and response
    teacher's caches       19.9   59 rows, not at the same time as the student's
    student's decoding      2.0   a copy of its weights, while it decodes
    teacher's decoding     17.9   a copy of its weights, while it decodes

docs/scale.md has what the compiler needs on the TPU chip that is nearest in memory, one of v5p with 95 GiB.
"""

from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.model.path = "Qwen/Qwen3.5-0.8B"
    config.teacher.path = "Qwen/Qwen3.5-9B"
    config.teacher.compress.max_tokens = 256
    config.data.source = "parquet:questions"
    config.data.num_questions = 200 * 64  # a single pass, as in the paper
    config.prompt.max_pixels = 768 * 32 * 32
    config.prompt.buckets = (1024, 2048, 4608)  # plain, plain, NCQ: 2,048 and eight candidates of 256 with their frame
    config.rollout.questions_per_step = 64
    config.rollout.max_new_tokens = 4096
    config.rollout.slots = 192  # cache_gigabytes allows fewer
    config.rollout.cache_gigabytes = 20.0
    config.update.rows_per_microbatch = 1
    return config
