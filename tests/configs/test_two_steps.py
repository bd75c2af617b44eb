"""Two real steps of configs/0p8b.py: a student of 0.8B's exact widths, cut in depth and vocabulary alone, and an FP8
teacher; everything else is scaled down by overrides of the command line.

A random model never earns a reward, so the last MLP is set to a table of the tokens that may follow each token: the
models answer the two training questions, digit by digit, correctly about one time in eight. All other weights are
random.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

from tests import runs
from tests.models.tiny import random_params
from zppo_jax.data.digits import DigitsSource
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import hf, sizes
from zppo_jax.models.qwen3_5.parameters import flatten, unflatten
from zppo_jax.processor import Processor
from zppo_jax.warmstart import tiny

OVERRIDES: dict[str, Any] = {
    "num_steps": 2,
    "data.source": "digits",
    "data.num_questions": 2,
    "prompt.template": "compact",
    "prompt.min_pixels": 1024,
    "prompt.max_pixels": 4096,
    "prompt.buckets": "72",
    "rollout.questions_per_step": 2,
    "rollout.group_size": 3,
    "rollout.max_new_tokens": 8,
    "rollout.slots": 6,
    "teacher.num_rollouts": 3,
    "teacher.compress.enabled": False,
    "replay.fraction": 0.5,
    "zppo.augmentation_fraction": 0.5,
    "update.num_minibatches": 1,
    "update.rows_per_microbatch": 1,
    "update.row_tokens": 104,
    "reward.num_workers": 1,
    "eval.num_questions": 2,
}

QUANTISED = ("in_proj_qkv", "in_proj_z", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
             "down_proj")  # fmt: skip


@functools.cache
def config() -> qwen3_5.Config:
    """0.8B with one layer of each kind, one vision block and the vocabulary of the tests' tokenizer."""
    whole, small = sizes.get("0.8B"), tiny.config(tiny.processor())
    return dataclasses.replace(
        small,
        text=dataclasses.replace(
            whole.text, num_hidden_layers=2, full_attention_interval=2, vocab_size=small.text.vocab_size
        ),
        vision=dataclasses.replace(whole.vision, depth=1),
    )


def successors(processor: Processor) -> dict[int, set[int]]:
    """The tokens that may follow each token: the box around the answers, digit by digit."""
    ids = processor.tokenizer.get_vocab()
    questions = DigitsSource("rules", "train", OVERRIDES["data.num_questions"], 0)
    follow: dict[int, set[int]] = {ids["Ċ"]: {ids["\\boxed{"]}, ids["}"]: {ids["<|im_end|>"]}}
    for question in (questions[index] for index in range(len(questions))):
        spelled = [ids["\\boxed{"], *(ids[digit] for digit in question.answer), ids["}"]]
        for token, after in itertools.pairwise(spelled):
            follow.setdefault(token, set()).add(after)
    return follow


def weights(follow: dict[int, set[int]]) -> dict[str, Any]:
    """Random parameters whose last MLP adds to a token's embedding those of its successors."""
    flat = flatten(jax.tree.map(np.array, random_params(config(), seed=0)))
    embed = flat["text/embed"] = np.random.default_rng(0).standard_normal(flat["text/embed"].shape, np.float32)
    width = embed.shape[1]
    for path in ("text/linear/mixer/out", "text/linear/mlp/down", "text/full/mixer/o", "text/full/mlp/down"):
        flat[f"{path}/kernel"] *= 0.1
    gate, up, down = (flat[f"text/full/mlp/{name}/kernel"][-1] for name in ("gate", "up", "down"))
    for neuron, (token, after) in enumerate(follow.items()):
        gate[:, neuron], up[:, neuron] = 8 * embed[token] / width, embed[token] / width
        down[neuron] = 0.5 * sum(embed[other] for other in after)
    flat["text/norm/weight"][:] = 0.02 - 1.0  # logits of 10 to 20 for a successor, about 0 for the others
    return unflatten(flat)


def quantise(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float8 [O, I] and the scales of its blocks of 128 x 128."""
    rows, columns = (-(-size // 128) for size in value.shape)
    padded = np.zeros((rows * 128, columns * 128), np.float32)
    padded[: value.shape[0], : value.shape[1]] = value
    blocks = padded.reshape(rows, 128, columns, 128)
    scale = np.maximum(np.abs(blocks).max((1, 3)), 1e-12) / 448
    scaled = (blocks / scale[:, None, :, None]).reshape(padded.shape)[: value.shape[0], : value.shape[1]]
    return scaled.astype(ml_dtypes.float8_e4m3fn), scale


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes the format directly: the NumPy writer of safetensors does not support float8."""
    names = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype.name], "shape": tensor.shape, "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    path.write_bytes(len(words).to_bytes(8, "little") + words + b"".join(each.tobytes() for each in tensors.values()))


def write_fp8(source: Path, target: Path) -> None:
    """The checkpoint with the matrices of its language model in block-wise FP8, as Qwen publishes it."""
    target.mkdir()
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors[name] = tensor
        if name.split(".")[-2] in QUANTISED and "visual" not in name:
            tensors[name], scale = quantise(tensor.astype(np.float32))
            tensors[f"{name}_scale_inv"] = scale.astype(ml_dtypes.bfloat16)
    write_safetensors(target / "model.safetensors", tensors)
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (target / "config.json").write_text(json.dumps(raw))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((source / name).read_bytes())
    for path in source.glob("*processor_config.json"):
        (target / path.name).write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """The directories of student and teacher."""
    folder, processor = tmp_path_factory.mktemp("models"), tiny.processor()
    student, teacher = folder / "student", folder / "teacher"
    hf.save_directory(student, config(), weights(successors(processor)), "bfloat16")
    processor.save(student)
    write_fp8(student, teacher)
    return student, teacher


SCANNED = """
from zppo_jax import main
from zppo_jax.models.qwen3_5 import text
text.UNROLLED_LAYERS = 0
main.main()
"""
"""The real command, with the few layers compiled as the many of 0.8B are: once, in a loop."""


@pytest.fixture(scope="module")
def workdir(models, tmp_path_factory) -> Path:
    """The run directory that the command leaves."""
    student, teacher = models
    changes = OVERRIDES | {"model.path": student, "teacher.path": teacher}
    workdir = tmp_path_factory.mktemp("run")
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    result = runs.command(["--config=configs/0p8b.py", f"--workdir={workdir}", *flags], SCANNED, timeout=600)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
def test_two_steps(workdir):
    """Both steps learn from rewards of both kinds, with questions for BCQ or NCQ, and end in a checkpoint."""
    rows = runs.metrics(workdir)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["update/tokens"] > 0 and np.isfinite(row["update/loss"])
    assert any(row["update/grad_norm"] > 0 for row in rows[1:]), "no group had a spread"
    assert any(row["zppo/ncq_groups"] + row["zppo/bcq_groups"] > 0 for row in rows[1:])
    assert rows[2]["replay/size"] > 0
    # Sampler and trainer sum in another order, in bfloat16: that explains this much and no more.
    assert all(0 <= row["update/mismatch_kl"] < 0.002 for row in rows[1:])
    assert runs.saved_steps(workdir) == [2]


@pytest.mark.slow
def test_the_state_is_bfloat16_and_gradients_reach_the_vision_tower(workdir):
    """Two moments and the rounding error of every parameter; the checkpoint holds the optimiser's state."""
    state: Any = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / "2" / "state").absolute())
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    floating = {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert len(floating) == 4 * len(jax.tree.leaves(state["params"]))
    wide = {name for name, leaf in floating.items() if leaf.dtype != jnp.bfloat16}
    assert len(wide) == 2 and all("a_log" in name or "'norm'" in name for name in wide), wide
    moments = {name: leaf for name, leaf in floating.items() if "mu" in name and name.endswith("['kernel']")}
    assert any("vision" in name for name in moments) and all(np.any(leaf != 0) for leaf in moments.values())
