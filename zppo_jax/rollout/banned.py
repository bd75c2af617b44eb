"""The token ids that are never sampled."""

from __future__ import annotations

import numpy as np

from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor import Processor


def banned_mask(config: Config, processor: Processor | None = None) -> np.ndarray:
    """The ids that are never sampled, bool [V]: a sampled vision pad would refer to an image that does not exist.

    With a processor also its other control tokens of turns and images, and the embedding's rows beyond its tokenizer.
    """
    mask_V = np.arange(config.text.vocab_size) >= (processor.vocab_size if processor else config.text.vocab_size)
    ids = (config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
    ids = (*ids, *processor.banned_ids) if processor else ids
    mask_V[[token_id for token_id in ids if token_id < len(mask_V)]] = True
    return mask_V
