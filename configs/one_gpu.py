from __future__ import annotations

from configs import paper
from zppo_jax.config import ConfigTree


def get_config(method: str = "zppo") -> ConfigTree:
    config = paper.get_config(method)
    config.model.path = "Qwen/Qwen3.5-0.8B"
    config.teacher.path = "Qwen/Qwen3.5-9B"
    config.data.source = "parquet:questions"
    config.data.num_questions = 200 * 64
    config.rollout.questions_per_step = 64
    config.rollout.max_new_tokens = 4096
    config.rollout.slots = 192
    config.rollout.cache_gigabytes = 20.0
    config.prompt.max_pixels = 768 * 32 * 32
    config.prompt.buckets = (1024, 2048, 4608)
    config.teacher.compress.max_tokens = 256
    config.update.rows_per_microbatch = 1
    return config
