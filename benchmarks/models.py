"""The models of the cases: the published 0.8B cut to a depth that a CPU core can train, and one of 10M parameters."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import jax

from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import sizes
from zppo_jax.models.qwen3_5.config import Config

_SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def config(name: str) -> Config:
    """The configuration of a model. The vision tower is cut to one block, because no case shows an image."""
    published = sizes.get("0.8B")
    vision = dataclasses.replace(published.vision, depth=1)
    text = dataclasses.replace(published.text, num_hidden_layers=8)
    if name == "0.8B-8-layers":
        return dataclasses.replace(published, text=text, vision=vision)
    if name != "10M":
        raise ValueError(f"there is no model {name!r}: give 0.8B-8-layers or 10M")
    text = dataclasses.replace(
        text,
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        mrope_section=(3, 3, 2),
    )
    vision = dataclasses.replace(vision, hidden_size=96, intermediate_size=192, num_heads=4, out_hidden_size=256)
    special = {token: 4095 - index for index, token in enumerate(_SPECIAL_TOKENS)}
    return dataclasses.replace(published, text=text, vision=vision, stop_token_ids=(5,), pad_token_id=0, **special)


def write_checkpoint(name: str, directory: Path) -> None:
    """Random weights in the form that both sides load. An existing checkpoint is kept: it is the same for a seed."""
    if (directory / "config.json").is_file():
        return
    shape = config(name)
    qwen3_5.save(qwen3_5.Model(shape, qwen3_5.init_params(shape, jax.random.key(0))), directory)


def num_text_parameters(name: str) -> int:
    """Parameters of the language model, which the cases train."""
    return sum(leaf.size for leaf in jax.tree.leaves(qwen3_5.abstract_params(config(name))["text"]))


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
