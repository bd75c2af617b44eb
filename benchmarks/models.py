"""The models of the cases: the published 0.8B, whole and cut to a depth that a CPU core can train, and small ones."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import sizes
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor import Processor, ProcessorConfig, build_tokenizer, default_chat_template
from zppo_jax.processor.tokenizer import CONTROL_TOKENS

_SPECIAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_PUBLISHED_LAYERS = {"0.8B": 24, "0.8B-8-layers": 8}
_SMALL = {
    "10M": {"layers": 8, "hidden": 256, "inner": 1024, "vocabulary": 4096, "mrope_section": (3, 3, 2)},
    "8.9M": {"layers": 8, "hidden": 256, "inner": 864, "vocabulary": 4096, "mrope_section": (3, 3, 2)},
    "1.1M": {"layers": 4, "hidden": 128, "inner": 448, "vocabulary": 512, "mrope_section": (2, 1, 1)},
    "9.47M": {"layers": 8, "hidden": 256, "inner": 960, "vocabulary": 4096, "mrope_section": (3, 3, 2)},
    "1.12M": {"layers": 4, "hidden": 128, "inner": 480, "vocabulary": 512, "mrope_section": (2, 1, 1)},
    "0.1M": {"layers": 2, "hidden": 64, "inner": 128, "vocabulary": 512, "mrope_section": (1, 1, 0), "interval": 2},
}
"""Four heads everywhere, two of keys in full attention; the names count the language model's parameters. The smallest,
with one layer of each kind, is for tests of scripts."""
NAMES = (*_PUBLISHED_LAYERS, *_SMALL)


def config(name: str) -> Config:
    """The configuration of a model. The vision tower is cut to one block, because no case shows an image."""
    published = sizes.get("0.8B")
    published = dataclasses.replace(published, vision=dataclasses.replace(published.vision, depth=1))
    if name in _PUBLISHED_LAYERS:
        text = dataclasses.replace(published.text, num_hidden_layers=_PUBLISHED_LAYERS[name])
        return dataclasses.replace(published, text=text)
    if name not in _SMALL:
        raise ValueError(f"there is no model {name!r}: give one of {', '.join(NAMES)}")
    return _small(published, **_SMALL[name])


def _small(
    published: Config,
    layers: int,
    hidden: int,
    inner: int,
    vocabulary: int,
    mrope_section: tuple[int, int, int],
    interval: int = 4,
) -> Config:
    heads, head_dim = 4, hidden // 4
    text = dataclasses.replace(
        published.text,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        full_attention_interval=interval,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=head_dim,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=head_dim,
        linear_value_head_dim=head_dim,
        mrope_section=mrope_section,
    )
    vision = dataclasses.replace(
        published.vision, hidden_size=96, intermediate_size=192, num_heads=4, out_hidden_size=hidden
    )
    special: dict[str, Any] = {token: vocabulary - 1 - index for index, token in enumerate(_SPECIAL_TOKENS)}
    return dataclasses.replace(published, text=text, vision=vision, stop_token_ids=(5,), pad_token_id=0, **special)


def random_params(config: Config, seed: int = 0) -> dict[str, Any]:
    """Random bfloat16 parameters, by one program: a thousand small ones would take longer to compile."""

    def made() -> dict[str, Any]:
        params = qwen3_5.init_params(config, jax.random.key(seed))
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    return jax.jit(made)()


def write_checkpoint(name: str, directory: Path) -> None:
    """Writes random weights in the format that both sides load. Keeps an existing one: it is the same for a seed."""
    if (directory / "config.json").is_file():
        return
    shape = config(name)
    qwen3_5.save(qwen3_5.Model(shape, qwen3_5.init_params(shape, jax.random.key(0))), directory)
    if name in _SMALL:
        processor(shape.text.vocab_size).save(directory)


def processor(vocabulary: int) -> Processor:
    """The processor of a random model that must be right half of the time: all tokens except bytes and control tokens
    are words with a box, and every other box holds a 1."""
    words = [f"w{number} \\boxed{{{number % 2}}}" for number in range(vocabulary - 256 - len(CONTROL_TOKENS))]
    return Processor(build_tokenizer([], vocabulary, words), default_chat_template(), ProcessorConfig())


def num_text_parameters(name: str) -> int:
    """The number of parameters of the language model, which the cases train."""
    return sum(leaf.size for leaf in jax.tree.leaves(qwen3_5.abstract_params(config(name))["text"]))


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
