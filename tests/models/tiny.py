"""A tiny random Qwen3.5 that shows every mistake, and batches in the form that a Hugging Face processor returns.

Every parameter is random (norm weights, biases, decays as well), yet the model is well-conditioned: logits have a
standard deviation of 2-3 and a relative perturbation of 1e-7 moves them by less than 5e-5, so 2e-4 is a fair tolerance.
Two shapes serve almost all tests, because compiling takes most of the time: TEXT_LENGTH without vision, and MM_LENGTH
with
MM_FRAMES frames of which the largest has MM_PATCHES patches.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.models.qwen3_5.parameters import flatten, unflatten

NUM_ROWS, TEXT_LENGTH = 4, 130
MM_LENGTH, MM_FRAMES, MM_PATCHES = 72, 4, 24

FAST_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""For programs that are compiled once and run for milliseconds, also in modules with the mark `computes`."""
SAME_ROUNDING = FAST_COMPILE | ({"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {})
"""For programs whose results are compared to the bit: with what tests/conftest.py sets, fusions multiply and add with
one rounding here and two there."""

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_5",
    "tie_word_embeddings": True,
    "image_token_id": 500,
    "video_token_id": 501,
    "vision_start_token_id": 502,
    "vision_end_token_id": 503,
    "text_config": {
        "model_type": "qwen3_5_text",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_5_vision",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 64,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [],
    },
}


def config_dict(**changes: Any) -> dict[str, Any]:
    """A deep copy of CONFIG with keys replaced; `text__vocab_size=7` changes text_config.vocab_size; None removes."""
    raw = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        target = raw[f"{section}_config"] if section else raw
        target[key] = value
        if value is None:
            del target[key]
    return raw


def _random_leaf(path: str, shape: tuple[int, ...], fan_in: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    *_, owner, name = path.split("/")
    if path in ("text/embed", "text/lm_head", "vision/patch/position"):
        return 0.35 * noise
    if name == "a_log":
        return noise - 1.5
    if name == "dt_bias":
        return 0.5 * noise
    if name == "bias":
        return 0.2 * noise
    if name == "weight":
        zero_centred = path.startswith("text/") and path != "text/linear/mixer/norm/weight"
        return 0.2 * noise + (0.0 if zero_centred else 1.0)
    assert (owner, name) == ("mixer", "conv") or name == "kernel", path
    return 0.5 * noise / np.sqrt(fan_in)


def random_params(config: configs.Config, seed: int) -> dict[str, Any]:
    """Random parameters of any configuration in float32."""
    rng = np.random.default_rng(seed)
    fan_in = {entry.path: int(np.prod(entry.shape_there[1:])) for entry in hf.table(config)}
    flat = {
        path: jnp.asarray(_random_leaf(path, leaf.shape, fan_in[path], rng), jnp.float32)
        for path, leaf in flatten(qwen3_5.abstract_params(config)).items()
    }
    return unflatten(flat)


def random_model(tied: bool = True, seed: int = 0) -> qwen3_5.Model:
    """The tiny model in float32."""
    config = configs.from_dict(config_dict(tie_word_embeddings=tied))
    return qwen3_5.Model(config, random_params(config, seed))


@functools.cache
def short_model() -> qwen3_5.Model:
    """The tiny model with three layers, two linear and a full one: a stack and both kinds, in less time to compile."""
    raw = config_dict(text__num_hidden_layers=3, text__full_attention_interval=3)
    config = configs.from_dict(raw)
    return qwen3_5.Model(config, random_params(config, 0))


# ---------------------------------------------------------------- batches

Segment = int | tuple[str, int, int, int]  # so many text tokens, or (image | video, t, h, w)


@dataclasses.dataclass
class _Row:
    ids: list[int]
    types: list[int]

    def add(self, ids: Sequence[int], token_type: int = 0) -> None:
        self.ids += list(ids)
        self.types += [token_type] * len(ids)


def image(height: int, width: int) -> Segment:
    return ("image", 1, height, width)


def video(frames: int, height: int, width: int) -> Segment:
    return ("video", frames, height, width)


def _add_vision(row: _Row, segment: tuple[str, int, int, int], rng: np.random.Generator) -> None:
    """Adds vision tokens in the processor's layout: an image between two marks; a video's frames each between two marks
    after the tokens of their timestamp, and the whole again between two marks."""
    kind, frames, height, width = segment
    start, end = CONFIG["vision_start_token_id"], CONFIG["vision_end_token_id"]
    count = height * width // 4
    if kind == "image":
        row.add([start])
        row.add([CONFIG["image_token_id"]] * count, 1)
        row.add([end])
        return
    row.add([start])
    for _ in range(frames):
        row.add([*rng.integers(10, 480, 3), start])
        row.add([CONFIG["video_token_id"]] * count, 2)
        row.add([end])
    row.add([end])


def batch(
    rows: Sequence[Sequence[Segment]], length: int, pads: Sequence[int] | None = None, side: str = "left", seed: int = 0
) -> dict[str, np.ndarray]:
    """Rows of `length`, row b with `pads[b]` pads; text fills each row after its segments."""
    rng = np.random.default_rng(seed)
    pads = [0] * len(rows) if pads is None else pads
    ids = np.full((len(rows), length), 7, np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for index, (segments, pad) in enumerate(zip(rows, pads, strict=True)):
        row = _Row([], [])
        for segment in segments:
            if isinstance(segment, int):
                row.add(rng.integers(10, 480, segment).tolist())
            else:
                _add_vision(row, segment, rng)
        row.add(rng.integers(10, 480, length - pad - len(row.ids)).tolist())
        where = slice(pad, length) if side == "left" else slice(0, length - pad)
        ids[index, where], mask[index, where], types[index, where] = row.ids, 1, row.types
    inputs: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        vision = [segment for segments in rows for segment in segments if not isinstance(segment, int)]
        grids = [segment[1:] for segment in vision if segment[0] == kind]
        if grids:
            inputs[grid] = np.asarray(grids, np.int64)
            count = int(np.prod(inputs[grid], axis=1).sum())
            inputs[pixels] = rng.standard_normal((count, 3 * 2 * 16 * 16), np.float32)
    return inputs


def text_batch(pads: Sequence[int] = (0,) * NUM_ROWS, side: str = "left", seed: int = 0) -> dict[str, np.ndarray]:
    return batch([[]] * NUM_ROWS, TEXT_LENGTH, pads, side, seed)
