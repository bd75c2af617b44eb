"""Hugging Face checkpoints <-> parameter trees: one table, used in both directions.

Conversions that are not a plain copy: every matrix is transposed (torch keeps [out, in]); the depthwise convolution is
[C, 1, K] there and [K, C] here; the patch convolution is [W, 3, 2, 16, 16] there and [1536, W] here; layers are
separate tensors there and slices of stacked leaves here. A tied checkpoint has no `lm_head.weight`; `mtp.*` is ignored.

Published bfloat16 checkpoints keep `A_log` and `linear_attn.norm.weight` in float32 (9B: 3,840 elements); whatever a
file holds of these two in float32 stays float32 in memory and on the way out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.layers import Params


class CheckpointError(ValueError):
    """A checkpoint that does not hold exactly this model; the message lists every mismatch."""


_Entry = tuple[str, str, str]  # name there, path here, conversion
_COMMON = (
    ("input_layernorm.weight", "input_norm/weight", "copy"),
    ("post_attention_layernorm.weight", "post_norm/weight", "copy"),
    ("mlp.gate_proj.weight", "mlp/gate/kernel", "matrix"),
    ("mlp.up_proj.weight", "mlp/up/kernel", "matrix"),
    ("mlp.down_proj.weight", "mlp/down/kernel", "matrix"),
)
_LINEAR = (
    ("linear_attn.in_proj_qkv.weight", "mixer/qkv/kernel", "matrix"),
    ("linear_attn.in_proj_z.weight", "mixer/z/kernel", "matrix"),
    ("linear_attn.in_proj_b.weight", "mixer/b/kernel", "matrix"),
    ("linear_attn.in_proj_a.weight", "mixer/a/kernel", "matrix"),
    ("linear_attn.conv1d.weight", "mixer/conv", "conv1d"),
    ("linear_attn.A_log", "mixer/a_log", "copy"),
    ("linear_attn.dt_bias", "mixer/dt_bias", "copy"),
    ("linear_attn.norm.weight", "mixer/norm/weight", "copy"),
    ("linear_attn.out_proj.weight", "mixer/out/kernel", "matrix"),
)
_FULL = (
    ("self_attn.q_proj.weight", "mixer/q/kernel", "matrix"),
    ("self_attn.k_proj.weight", "mixer/k/kernel", "matrix"),
    ("self_attn.v_proj.weight", "mixer/v/kernel", "matrix"),
    ("self_attn.o_proj.weight", "mixer/o/kernel", "matrix"),
    ("self_attn.q_norm.weight", "mixer/q_norm/weight", "copy"),
    ("self_attn.k_norm.weight", "mixer/k_norm/weight", "copy"),
)
_VISION_BLOCK = tuple(
    (f"{there}.{part}", f"{here}/{'kernel' if matrix and part == 'weight' else part}", conversion)
    for there, here, matrix in (
        ("norm1", "norm1", False),
        ("norm2", "norm2", False),
        ("attn.qkv", "qkv", True),
        ("attn.proj", "proj", True),
        ("mlp.linear_fc1", "fc1", True),
        ("mlp.linear_fc2", "fc2", True),
    )
    for part, conversion in (("weight", "matrix" if matrix else "copy"), ("bias", "copy"))
)
_VISION = (
    ("patch_embed.proj.weight", "patch/proj/kernel", "patch"),
    ("patch_embed.proj.bias", "patch/proj/bias", "copy"),
    ("pos_embed.weight", "patch/position", "copy"),
    ("merger.norm.weight", "merger/norm/weight", "copy"),
    ("merger.norm.bias", "merger/norm/bias", "copy"),
    ("merger.linear_fc1.weight", "merger/fc1/kernel", "matrix"),
    ("merger.linear_fc1.bias", "merger/fc1/bias", "copy"),
    ("merger.linear_fc2.weight", "merger/fc2/kernel", "matrix"),
    ("merger.linear_fc2.bias", "merger/fc2/bias", "copy"),
)
IGNORED = ("mtp.",)
_KEPT_FLOAT32 = ("text/linear/mixer/a_log", "text/linear/mixer/norm/weight")

_INWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "copy": lambda x: x,
    "matrix": lambda x: x.T,
    "conv1d": lambda x: x[:, 0, :].T,
    "patch": lambda x: x.reshape(x.shape[0], -1).T,
}


def _outward(conversion: str, config: Config) -> Callable[[np.ndarray], np.ndarray]:
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return {
        "copy": lambda x: x,
        "matrix": lambda x: x.T,
        "conv1d": lambda x: x.T[:, None, :],
        "patch": lambda x: x.T.reshape(-1, *kernel),
    }[conversion]


def table(config: Config) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Every tensor of a checkpoint: (name there, path here, index into the stacked leaf, conversion)."""
    text, vision = config.text, config.vision
    yield "model.language_model.embed_tokens.weight", "text/embed", (), "copy"
    yield "model.language_model.norm.weight", "text/norm/weight", (), "copy"
    if not text.tie_word_embeddings:
        yield "lm_head.weight", "text/lm_head", (), "copy"
    for layer in range(text.num_hidden_layers):
        group, place = divmod(layer, text.full_attention_interval)
        full = place == text.num_linear
        index = (group,) if full else (group, place)
        for there, here, conversion in (*_COMMON, *(_FULL if full else _LINEAR)):
            name = f"model.language_model.layers.{layer}.{there}"
            yield name, f"text/{'full' if full else 'linear'}/{here}", index, conversion
    for there, here, conversion in _VISION:
        yield f"model.visual.{there}", f"vision/{here}", (), conversion
    for layer in range(vision.depth):
        for there, here, conversion in _VISION_BLOCK:
            yield f"model.visual.blocks.{layer}.{there}", f"vision/blocks/{here}", (layer,), conversion


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


# ---------------------------------------------------------------- in


def _indexed_names(index: Path) -> list[str]:
    """The shards that an index names. It comes from elsewhere, so neither its form nor its paths are trusted."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
    if not names:
        raise CheckpointError(f"{index} names no shard: download it again")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(
                f"{index}: shard name {name!r} is no safetensors file or leaves the directory; damaged or hostile"
            )
    return names


def _shards(directory: Path) -> list[Path]:
    """The safetensors files, from the index where there is one; paths in an index may not leave the directory."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no *.safetensors in {directory}: give a Hugging Face checkpoint directory")
        return files
    names = _indexed_names(index)
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing, but {index.name} names it: download it again")
    return [directory / name for name in names]


def _tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in _shards(directory):
        try:
            with safe_open(path, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield name, shard.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}): download or write it again") from error


def load_params(directory: str | Path, config: Config, dtype: str) -> Params:
    """Read every parameter exactly once, as NumPy arrays of `dtype`; all mismatches are raised together."""
    shapes = {path: leaf.shape for path, leaf in flatten(vlm.abstract_params(config)).items()}
    flat = {path: np.zeros(shape, jnp.dtype(dtype)) for path, shape in shapes.items()}
    wanted = {name: (path, index, conversion) for name, path, index, conversion in table(config)}
    problems, seen = [], set()
    for name, tensor in _tensors(Path(directory)):
        if name.startswith(IGNORED) or (name == "lm_head.weight" and config.text.tie_word_embeddings):
            continue
        if name not in wanted:
            problems.append(f"unknown tensor {name} {list(tensor.shape)}")
            continue
        if name in seen:
            problems.append(f"tensor {name} occurs in more than one file")
        path, index, conversion = wanted[name]
        value, target = _INWARD[conversion](tensor), flat[path][index]
        if value.shape != target.shape:
            problems.append(f"{name}: {list(value.shape)} does not fit {path}{list(index)} {list(target.shape)}")
        else:
            if path in _KEPT_FLOAT32 and value.dtype == np.float32:
                flat[path] = flat[path].astype(np.float32, copy=False)
            flat[path][index] = value
        seen.add(name)
    problems += [f"missing tensor {name}" for name in wanted if name not in seen]
    if problems:
        raise CheckpointError(f"{directory} does not match its config.json:\n  " + "\n  ".join(problems))
    return unflatten(flat)


# ---------------------------------------------------------------- out


def tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by their names and in their layout there, each in the dtype of its leaf here."""
    flat = {path: np.asarray(jax.device_get(leaf)) for path, leaf in flatten(params).items()}
    return {
        name: np.ascontiguousarray(_outward(conversion, config)(flat[path][index]))
        for name, path, index, conversion in table(config)
    }


def save_directory(directory: str | Path, config: Config, params: Params) -> None:
    """Write config.json, generation_config.json and model.safetensors so that transformers loads the model.

    The weights are written under a temporary name and renamed last, so an interrupted save never looks complete.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    out = tensors(config, params)
    dtype = str(out["model.language_model.embed_tokens.weight"].dtype)
    (directory / "config.json").write_text(json.dumps(configs.to_dict(config, dtype), indent=2) + "\n")
    stop = {"eos_token_id": list(config.stop_token_ids), "pad_token_id": config.pad_token_id}
    stop = stop if config.stop_token_ids else {}
    (directory / "generation_config.json").write_text(json.dumps(stop, indent=2) + "\n")
    temporary = directory / ".model.safetensors.partial"
    save_file(out, temporary, metadata={"format": "pt"})
    temporary.rename(directory / "model.safetensors")


def count(params: Params) -> int:
    """Number of parameters of a tree (arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
