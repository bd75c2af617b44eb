"""Several samples in a row: packed equals separate, forwards and backwards; nothing leaks across a start.

Prompts with their responses: tests/update/test_step.py.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from tests.models.tiny import FAST_COMPILE, image, video
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import attention, inputs, vlm
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.models.qwen3_5.parameters import flatten
from zppo_jax.ops.gated_delta import BEGINS, CONTINUES
from zppo_jax.update import rows
from zppo_jax.update.rows import RowShapes

LENGTH, ALONE, CHUNK = 192, 96, 16
ROWS, SLOTS = 2, 32
SAMPLES = {
    "text": [[[]], [[]], [[]], [[]]],
    "images and a video": [[[3, image(4, 6)]], [[1, image(2, 4), 2, video(2, 2, 4)]], [[]], [[2, image(6, 4)]]],
}
LENGTHS = (37, 64, 2, 31)  # over several chunks, one that fills its chunks, one shorter than the convolution


@pytest.fixture(scope="module")
def model() -> qwen3_5.Model:
    return tiny.short_model()


@functools.cache
def separate(case: str):
    """Each sample alone in a separate row; all in one shape, because compiling takes most of the time."""
    samples = []
    for seed, (prompts, length) in enumerate(zip(SAMPLES[case], LENGTHS, strict=True)):
        sample, _ = inputs.from_hf(
            tiny.short_model().config, **tiny.batch(prompts, ALONE, [ALONE - length], "right", seed)
        )
        features = sample["patches_ISC"].shape[1] // 4
        row, place = np.divmod(sample["feature_BT"], features)
        sample["feature_BT"] = np.where(sample["feature_BT"] >= 0, row * SLOTS // 4 + place, -1)
        samples.append(sample | {name: _widened(sample[name]) for name in ("patches_ISC", "grid_IS5")})
    return samples


def _widened(patches: np.ndarray) -> np.ndarray:
    rows, slots = patches.shape[:2]
    return np.pad(patches, [(0, ROWS - rows), (0, SLOTS - slots), (0, 0)])


def packed(case: str) -> dict[str, np.ndarray]:
    """One row with all samples one after the other, each a separate trunk."""
    writer = rows._Writer(RowShapes(1, LENGTH, CHUNK, 4, 0, 0), 3)
    row, merged = writer.arrays, 0
    for sample, length in zip(separate(case), LENGTHS, strict=True):
        where, tokens = writer._lay(0, length, BEGINS), slice(0, length)
        for name in ("tokens_BT", "positions_3BT", "feature_BT"):
            row[name][..., where] = sample[name][..., tokens]
        row["feature_BT"][:, where] += np.where(row["feature_BT"][:, where] >= 0, merged, 0)
        merged += ROWS * SLOTS // 4
    return row | {
        name: np.concatenate([sample[name] for sample in separate(case)]) for name in ("patches_ISC", "grid_IS5")
    }


def hidden_of(params, config, batch, remat: Remat = "none"):
    """Hidden states of a row of trees, or of a row with one sample."""
    in_tree = "segment_BT" in batch
    return vlm.run_tree(params, config, batch, remat) if in_tree else vlm.prefill(params, config, batch, remat)[0]


@functools.partial(jax.jit, static_argnums=(1, 3), compiler_options=FAST_COMPILE)
def logits_and_gradients(params, config, batch, remat, cotangent):
    def objective(params):
        hidden = hidden_of(params, config, batch, remat)
        return jnp.sum(hidden * cotangent), hidden

    gradients, hidden = jax.grad(objective, has_aux=True)(params)
    return hidden, gradients


@pytest.mark.parametrize("case", SAMPLES)
def test_packed_equals_separate(case, model):
    rng, size = np.random.default_rng(7), model.config.text.hidden_size
    row = packed(case)
    cotangent = rng.standard_normal((1, LENGTH, size), np.float32) * row["mask_BT"][..., None]
    hidden, gradients = logits_and_gradients(model.params, model.config, row, "none", cotangent)
    total: Any = None
    for number, sample in enumerate(separate(case)):
        where = np.flatnonzero((row["segment_BT"][0] == number + 1) & row["mask_BT"][0])
        padded = np.zeros((1, sample["tokens_BT"].shape[1], size), np.float32)
        padded[:, : len(where)] = cotangent[:, where]
        alone, part = logits_and_gradients(model.params, model.config, sample, "none", padded)
        np.testing.assert_allclose(hidden[0, where], alone[0, : len(where)], atol=1e-5)
        part = jax.tree.map(np.asarray, part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    for (path, together), apart in zip(flatten(gradients).items(), flatten(total).values(), strict=True):
        scale = float(np.abs(apart).max()) or 1.0
        np.testing.assert_allclose(together / scale, apart / scale, atol=1e-5, err_msg=path)


def test_nothing_of_one_sample_reaches_another(model):
    """Another first sample changes no bit after its end."""
    row = packed("text")
    other = row | {"tokens_BT": row["tokens_BT"].copy()}
    first, later = row["segment_BT"] == 1, row["segment_BT"] > 1
    other["tokens_BT"][first] = 11
    hidden = [vlm_hidden(model, batch) for batch in (row, other)]
    assert np.abs(hidden[0] - hidden[1])[first].max() > 0.1
    np.testing.assert_array_equal(hidden[0][later], hidden[1][later])
    leaks = {
        "attention": {"segment_BT": np.ones_like(row["segment_BT"]), "trunk_BT": np.ones_like(row["trunk_BT"])},
        "states": {"source_BC": np.full_like(row["source_BC"], CONTINUES)},
        "convolutions": {"context_BCJ": CHUNK * np.arange(LENGTH // CHUNK)[None, :, None] + np.arange(-3, 0)},
    }
    for name, leak in leaks.items():
        assert np.abs(vlm_hidden(model, row | leak) - hidden[0])[later].max() > 0.01, name


def vlm_hidden(model, batch) -> np.ndarray:
    return np.asarray(_hidden(model.params, model.config, batch))


_hidden = jax.jit(hidden_of, static_argnums=1, compiler_options=FAST_COMPILE)


# ---------------------------------------------------------------- what the backward pass keeps


@pytest.mark.slow
def test_recomputing_saves_memory_and_changes_no_gradient(model):
    """The compiler's memory for 12 layers: all activations, 12 inputs of layers, 4 inputs of groups."""
    config = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, num_hidden_layers=12))
    params, row = tiny.random_params(config, 4), packed("text")
    cotangent = np.random.default_rng(3).standard_normal((1, LENGTH, config.text.hidden_size), np.float32)
    temporary, gradients, plain = {}, {}, inspect.unwrap(logits_and_gradients)
    jitted = jax.jit(plain, static_argnums=(1, 3), compiler_options=FAST_COMPILE)
    for remat in ("none", "block", "group"):
        compiled: Any = jitted.lower(params, config, row, remat, cotangent).compile()
        temporary[remat] = compiled.memory_analysis().temp_size_in_bytes
        gradients[remat] = flatten(compiled(params, row, cotangent)[1])
    assert temporary["block"] < 0.4 * temporary["none"], temporary
    assert temporary["group"] < temporary["block"], temporary
    for path, kept in gradients["none"].items():
        for remat in ("block", "group"):
            scale = float(np.abs(kept).max()) or 1.0
            np.testing.assert_allclose(gradients[remat][path], kept, rtol=0, atol=1e-5 * scale, err_msg=path)


def test_blocks_of_queries_change_nothing(model, monkeypatch):
    """Long rows are attended in blocks of queries; here blocks of 40, which do not divide the row."""
    row = packed("images and a video")
    whole = _hidden.lower(model.params, model.config, row)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 40)
    recompiled = jax.jit(lambda params, batch: hidden_of(params, model.config, batch), compiler_options=FAST_COMPILE)
    blocks = recompiled.lower(model.params, row)
    assert blocks.as_text().count("while") > whole.as_text().count("while"), "a loop over blocks in each layer"
    hidden, expected = blocks.compile()(model.params, row), whole.compile()(model.params, row)
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
