r"""Qwen3.5-0.8B learns by ZPPO on one device of 16 GB, such as one chip of v5e; its teacher is recorded or served.

    python -m zppo_jax.main --config=configs/colab.py --config.data.source=parquet:DIR \
      --config.teacher.path=recorded:TEACHER --workdir=runs/colab

DIR holds parquet files of your questions (docs/data.md). TEACHER is a folder with a teacher's answers to them, made
where there is room for the teacher, with these settings:

    python -m zppo_jax.teacher.precompute --config=configs/colab.py --config.data.source=parquet:DIR \
      --config.teacher.path=Qwen/Qwen3.5-9B --out=TEACHER

A served one: `--config.teacher.path=http://HOST:8000/v1 --config.teacher.model=NAME`.

What was given up for 16 GB and for a session of some hours, beside the paper's values (configs/paper.py):
- batch: 16 questions a step instead of 384, in four mini-batches still, each of four groups or a few more;
- response length: 2,048 tokens instead of 12,288; what is longer counts as wrong;
- prompts: 1,024 tokens with 384 image tokens instead of 4,096 with 1,280;
- candidates are not compressed: a recording of answers has no summaries of the student's responses, and to show a
  summary for the teacher's response alone would reveal who wrote which. Both show their last 256 tokens and the answer;
- evaluations have 128 questions.
Not given up: the moments are bfloat16 as in the paper, the parameters are rounded as in the paper (`kahan`, 1.7 GB for
the rounding error; `stochastic` would save it), and `model.remat` = block is that of all configurations.

Time of a step in seconds, if every response is as long as it may be; products take 30 % of 197 TFLOP/s, a
step of decoding reads its bytes (benchmarks/on_gpu/decode.py) at 40 % of 0.819 TB/s (v5e). **Not measured**:

    student decodes     116   393,216 tokens in 192 responses, 39 at once
    update               34   with each prompt once, rows of 5,632 tokens
    together            150
    evaluation           77   128 responses, 11 times in a run

200 steps take 8.6 hours. The same command continues a run whose session has ended, if `--workdir` outlives it.

Memory in GB (10^9 bytes), as a test computes it from the shapes, without activations; not all of it at the same time:

    parameters              1.7   852,985,920 in bfloat16
    optimiser               5.1   two moments and the rounding error, in bfloat16
    gradient                3.4   float32
    student's caches        3.5   39 rows of the longest prompt and response
    student's decoding      2.0   a copy of its weights, while it decodes

docs/scale.md has what the compiler needs: `python -m zppo_jax.aot --config=configs/colab.py --topology=v5e-1`.
"""

from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.model.path = "Qwen/Qwen3.5-0.8B"
    config.teacher.path = "recorded:teacher"
    config.teacher.compress.enabled = False
    config.teacher.compress.max_tokens = 256
    config.data.source = "parquet:questions"
    config.data.num_questions = 200 * 16  # a single pass, as in the paper
    config.prompt.min_pixels = 64 * 32 * 32
    config.prompt.max_pixels = 384 * 32 * 32
    config.prompt.buckets = (512, 1024, 3584)  # plain, plain, NCQ: 1,024 and eight candidates of 256 with their frame
    config.rollout.questions_per_step = 16
    config.rollout.max_new_tokens = 2048
    config.rollout.slots = 64  # cache_gigabytes allows fewer
    config.rollout.cache_gigabytes = 3.5
    config.update.rows_per_microbatch = 1
    config.eval.num_questions = 128
    return config
