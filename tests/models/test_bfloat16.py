"""bfloat16 against float32 at the widths of 0.8B, cut to one group of four layers, with the whole vocabulary."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import FAST_COMPILE
from zppo_jax.models.qwen3_5 import sizes, text
from zppo_jax.models.qwen3_5.hf.names import KEPT_FLOAT32
from zppo_jax.models.qwen3_5.parameters import flatten, unflatten

pytestmark = [pytest.mark.slow, pytest.mark.computes]

NUM_ROWS, LENGTH = 2, 96
CONFIG = dataclasses.replace(sizes.get("0.8B").text, num_hidden_layers=4)


@functools.partial(jax.jit, static_argnums=1)
def cast(params, dtype):
    flat = flatten({"text": params})
    kept = {path: leaf if path in KEPT_FLOAT32 else leaf.astype(dtype) for path, leaf in flat.items()}
    return unflatten(kept)["text"]


@functools.partial(jax.jit, compiler_options=FAST_COMPILE)
def run(params, tokens_BT, cotangent_BTD):
    """Hidden states, logits of the last 32 tokens, and the gradient of the embeddings that go in."""
    dtype = params["embed"].dtype
    mask = jnp.ones(tokens_BT.shape, bool)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (3, *tokens_BT.shape))
    cache = text.empty_cache(CONFIG, NUM_ROWS, 0, dtype)

    def objective(x_BTD):
        hidden, new = text.run_layers(params, CONFIG, x_BTD, positions, mask, cache, remat="block")
        return jnp.sum(hidden.astype(jnp.float32) * cotangent_BTD), (hidden, new)

    gradient, (hidden, new) = jax.grad(objective, has_aux=True)(text.embed(params, tokens_BT))
    return {"hidden": hidden, "logits": text.logits(params, hidden[:, -32:]), "gradient": gradient, "cache": new}


@pytest.fixture(scope="module")
def both():
    # Optimised a little: a program for 300 million random numbers takes 50 s to optimise wholly, and runs no faster.
    init = jax.jit(text.init, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})
    params = init(CONFIG, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 248_000, (NUM_ROWS, LENGTH))
    cotangent = rng.standard_normal((NUM_ROWS, LENGTH, CONFIG.hidden_size), np.float32)
    return [run(cast(params, dtype), tokens, cotangent) for dtype in (jnp.float32, jnp.bfloat16)]


def cosine(a, b) -> np.ndarray:
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_every_token_points_the_same_way(both):
    """transformers in bfloat16 against itself in float32, on these weights and tokens: hidden 0.9987, logits 0.9992."""
    for name in ("hidden", "logits"):
        worst = cosine(both[0][name], both[1][name]).min()
        print(f"bfloat16 against float32, {name}: smallest cosine {worst:.6f}")
        assert worst > 0.998, name


def test_the_gradient_points_the_same_way(both):
    """That of all embeddings together; transformers: 0.9986."""
    together = cosine(*(np.asarray(one["gradient"], np.float32).reshape(-1) for one in both))
    print(f"bfloat16 against float32, gradient: cosine {together:.6f}")
    assert together > 0.9978


def test_the_most_likely_token_is_the_same(both):
    """With random logits; transformers: 0.953. Two tokens of 64 are 0.03."""
    top = [np.argmax(np.asarray(one["logits"], np.float32), axis=-1) for one in both]
    agreement = np.mean(top[0] == top[1])
    print(f"top-1 agreement over {CONFIG.vocab_size} tokens: {agreement:.3f}")
    assert agreement >= 0.9


def test_dtypes(both):
    """The recurrent state and the scores stay float32; the model's inputs and outputs are bfloat16."""
    _, half = both
    assert half["hidden"].dtype == half["gradient"].dtype == jnp.bfloat16
    assert half["logits"].dtype == jnp.float32
    assert half["cache"]["recurrent"].dtype == jnp.float32
    assert {half["cache"][name].dtype for name in ("conv", "k", "v")} == {jnp.dtype(jnp.bfloat16)}
    state = cosine(*(one["cache"]["recurrent"].reshape(-1, 128 * 128) for one in both)).min()
    print(f"recurrent state: smallest cosine {state:.6f}")
    assert state > 0.999


def test_the_embedding_of_a_frequent_token_has_its_whole_gradient():
    """8,192 summands of mean 0.2: a sum in bfloat16 would stall near 1,024."""
    tokens = jnp.zeros((1, 8192), jnp.int32)
    slope = jnp.asarray(np.random.default_rng(0).normal(0.2, 1.0, (1, 8192, 8)), jnp.bfloat16)
    table = jnp.zeros((4, 8), jnp.bfloat16)
    (found,) = jax.jit(lambda slope: jax.vjp(lambda table: text.embed({"embed": table}, tokens), table)[1](slope))(
        slope
    )
    assert found.dtype == jnp.bfloat16 and not found[1:].any()
    np.testing.assert_allclose(
        np.asarray(found[0], np.float32), np.sum(np.asarray(slope, np.float64), (0, 1)), rtol=4e-3
    )
