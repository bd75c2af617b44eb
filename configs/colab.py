from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.model.path = "Qwen/Qwen3.5-0.8B"
    config.teacher.path = "recorded:teacher"
    config.data.source = "parquet:questions"
    config.data.num_questions = 200 * 16
    config.rollout.questions_per_step = 16
    config.rollout.max_new_tokens = 2048
    config.rollout.slots = 64
    config.rollout.cache_gigabytes = 3.5
    config.prompt.max_pixels = 384 * 32 * 32
    config.prompt.min_pixels = 64 * 32 * 32
    config.prompt.buckets = (512, 1024, 4096)
    config.teacher.compress.enabled = False
    config.update.rows_per_microbatch = 1
    return config
