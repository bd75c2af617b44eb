"""Model FLOPs, counted by hand, because a compiler counts the body of a loop once.

For one token, forward and backward, without recomputation by rematerialisation:

    6 x weights in products (all of the language model but the embedding's rows; the head once)
  + 6 x T x heads x head dim, for each full-attention layer          scores and values: 2 products of 2 FLOPs, the
                                                                     causal half of T keys, times 3 for training
  + 18 x heads x key dim x value dim, for each linear layer          the delta rule token by token: read, write, query
"""

from __future__ import annotations

import jax

from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config


def of_training(config: Config, length: int) -> float:
    """FLOPs per token of a training step on rows of `length` tokens; a forward pass alone takes a third."""
    layers, head, attention, delta = _of_a_token(config)
    return 3 * (layers + head + attention * length / 2 + delta)


def of_prefill(config: Config, length: int) -> float:
    """FLOPs per token of prefilling prompts of `length` tokens, which needs no head."""
    layers, _, attention, delta = _of_a_token(config)
    return layers + attention * length / 2 + delta


def of_step(config: Config, num_keys: int) -> float:
    """FLOPs of decoding one token that attends to `num_keys` keys."""
    layers, head, attention, delta = _of_a_token(config)
    return layers + head + attention * num_keys + delta


def _of_a_token(config: Config) -> tuple[float, float, float, float]:
    """FLOPs per token of the parts of a forward pass: layers, head, attention to one key, delta rule."""
    shape = config.text
    language = vlm.abstract_params(config)["text"]
    layers = sum(leaf.size for name in ("linear", "full") for leaf in jax.tree.leaves(language[name]))
    attention = 4.0 * shape.num_groups * shape.num_attention_heads * shape.head_dim
    heads, key_dim, value_dim = shape.linear_num_value_heads, shape.linear_key_head_dim, shape.linear_value_head_dim
    delta = 6.0 * shape.num_groups * shape.num_linear * heads * key_dim * value_dim
    return 2.0 * layers, 2.0 * shape.vocab_size * shape.hidden_size, attention, delta
