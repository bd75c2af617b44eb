r"""The paper's run at 4B: Qwen3.5-4B learns by ZPPO, Qwen3.5-27B-FP8 teaches (Table 8: configs/paper.py).

One node with 8 GPUs:

    python -m zppo_jax.main --config=configs/4b.py --workdir=runs/4b

A TPU pod slice, here 64 chips of v6e in 16 hosts that share the run directory and hold a teacher each (docs/hosts.md):

    gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd zppo_jax && python -m zppo_jax.main \
      --distributed --config=configs/4b.py --config.update.rows_per_microbatch=64 --workdir=/shared/runs/4b"

Both models are hub ids; without access to the hub, add `--config.model.path=DIR --config.teacher.path=DIR`.
`:grpo` and the other methods after the file's name are the paper's baselines.

The questions are ZPPO-77K, which this builds from its two public sources (docs/corpus.md):

    python -m zppo_jax.data.zppo77k --vero=zlab-princeton/Vero-600k --mmfinereason=DIR --out=data/zppo77k

The teacher is in the run's processes, in FP8, unless others serve it (docs/teacher.md):
`--config.teacher.path=http://HOST:8000/v1 --config.teacher.model=Qwen/Qwen3.5-27B-FP8`. Nobody has run this to its end
yet.

Memory in GB (10^9 bytes) over all devices together, as a test computes it from the shapes, without activations
(`model.remat` and `update.row_tokens` determine those):

    parameters              9.1   4,539,265,536 in bfloat16
    optimiser              27.2   two moments and the rounding error, in bfloat16
    gradient               18.2   float32
    teacher                30.4   a copy for every four devices (teacher.mesh): FP8; embedding and head in bfloat16
    student's caches      193.6   rollout.slots rows of the longest prompt and response
    teacher's caches      400.2   rollout.slots rows too, but not at the same time as the student's
    student's decoding      9.7   a copy of its weights on each device (rollout.mesh), while it decodes
    teacher's decoding      2.5   its head in another order; its kernels are read as they are

What the paper reports, macro averages in % over its 16 VLM, 10 LLM and 5 video benchmarks, and hours on 64 H100-80GB
(Table 9), 48 of them for the student and 16 for the teacher:

                VLM    LLM    video  hours
    before      66.9   61.6   71.5
    GRPO        68.2   62.1   70.6    75
    ZPPO        70.9   65.5   71.8    92
"""

from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.model.path = "Qwen/Qwen3.5-4B"
    return config
