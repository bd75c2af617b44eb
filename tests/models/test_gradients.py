"""Gradients of the mean token loss against torch's, and the effect of pads on them.

Other projects met exploding gradients from the l2 norm at all-zero pad rows (MaxText#5295), so pads are part of every
case here.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from tests.models.tiny import FAST_COMPILE, MM_LENGTH, image, video
from zppo_jax.models.qwen3_5 import deltanet, hf, inputs, layers, text, vlm
from zppo_jax.models.qwen3_5.parameters import flatten

CASES = {
    "text, left padding": tiny.batch([[], [], []], MM_LENGTH, (0, 5, 40), seed=1),
    "images, left padding": tiny.batch(
        [[3, image(4, 6), 2, image(6, 2)], [1, image(6, 4)], [2, image(2, 2)]], MM_LENGTH, (0, 3, 31), seed=2
    ),
    "image and video": tiny.batch([[3, image(4, 6), 2, video(2, 4, 4)], [2], []], MM_LENGTH, (1, 0, 6), seed=3),
}


def token_weights(hf_inputs) -> np.ndarray:
    """1 where a valid token predicts a valid text token."""
    valid, text = hf_inputs["attention_mask"] != 0, hf_inputs["mm_token_type_ids"] == 0
    return (valid[:, :-1] & valid[:, 1:] & text[:, 1:]).astype(np.float32)


def with_a_pad_row(config, hf_inputs):
    """The model's inputs with one more row that holds nothing but pads."""
    given, _ = inputs.from_hf(config, **hf_inputs)
    return given | {
        "tokens_BT": np.pad(given["tokens_BT"], [(0, 1), (0, 0)], constant_values=7),
        "mask_BT": np.pad(given["mask_BT"], [(0, 1), (0, 0)]),
        "positions_3BT": np.pad(given["positions_3BT"], [(0, 0), (0, 1), (0, 0)]),
        "feature_BT": np.pad(given["feature_BT"], [(0, 1), (0, 0)], constant_values=-1),
    }


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST_COMPILE)
def loss_and_gradients(params, config, batch, weights):
    def loss(params):
        logits = vlm.logits(params, config, batch)[:, :-1]
        logprobs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logprobs, batch["tokens_BT"][:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * weights) / jnp.sum(weights)

    return jax.value_and_grad(loss)(params)


def torch_loss_and_gradients(oracle, hf_inputs):
    import torch

    oracle.zero_grad()
    logits = oracle(**{name: torch.tensor(value) for name, value in hf_inputs.items()}).logits[:, :-1]
    ids = torch.tensor(hf_inputs["input_ids"])[:, 1:, None]
    picked = torch.log_softmax(logits, dim=-1).gather(-1, ids)[..., 0]
    weights = torch.tensor(token_weights(hf_inputs))
    loss = -(picked * weights).sum() / weights.sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    return loss.item(), {name: 0.0 if g is None else g.numpy() for name, g in gradients.items()}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_torch(case, model, oracle):
    batch = with_a_pad_row(model.config, CASES[case])
    weights = np.zeros(np.subtract(batch["tokens_BT"].shape, (0, 1)), np.float32)
    weights[:-1, : MM_LENGTH - 1] = token_weights(CASES[case])
    loss, gradients = loss_and_gradients(model.params, model.config, batch, weights)
    actual = hf.tensors(model.config, gradients)
    expected_loss, expected = torch_loss_and_gradients(oracle, CASES[case])
    assert abs(float(loss) - expected_loss) < 1e-5
    assert set(actual) == set(expected)
    errors = {}
    for name, gradient in actual.items():
        assert np.isfinite(gradient).all(), name
        largest = float(np.abs(expected[name]).max())
        used = "image" in case or not name.startswith("model.visual")
        assert (largest > 0) == used, name
        errors[name] = float(np.abs(gradient - expected[name]).max()) / (largest or 1.0)
    worst = max(errors, key=errors.__getitem__)
    print(f"gradients, {case}: worst {errors[worst]:.1e} at {worst}")
    assert errors[worst] < 1e-3


# ---------------------------------------------------------------- pads in one linear layer


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST_COMPILE)
def layer_gradients(weights, config, x_BTD, mask_BT, cotangent_BTD):
    """Gradients of sum(cotangent * layer(x)) for the weights and for x."""

    def objective(weights, x_BTD):
        layer = layers.bind(deltanet.GatedDeltaNet, config, weights)
        cache = text.empty_cache(config, len(x_BTD), 0, jnp.float32)
        past = (cache["conv"][0, 0], cache["recurrent"][0, 0], jnp.full(len(x_BTD), x_BTD.shape[1]))
        y_BTD, _ = layer(x_BTD, mask_BT, past)
        return jnp.sum(y_BTD * cotangent_BTD)

    return jax.grad(objective, argnums=(0, 1))(weights, x_BTD)


@pytest.fixture(scope="module")
def layer_weights(model):
    return jax.tree.map(lambda x: x[0, 0], model.params["text"]["linear"]["mixer"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_do_not_see_pads(side, model, layer_weights):
    config, rng = model.config.text, np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, 1, 16, config.hidden_size), np.float32)
    before, after = (56, 0) if side == "left" else (0, 56)
    room = [(0, 0), (before, after), (0, 0)]
    garbage = rng.standard_normal((1, 72, config.hidden_size), np.float32)
    mask = np.pad(np.ones((1, 16), bool), room[:2])
    bare_weights, bare_x = layer_gradients(layer_weights, config, x, np.ones((1, 16), bool), cotangent)
    padded = np.where(mask[..., None], np.pad(x, room), garbage)
    many_weights, many_x = layer_gradients(layer_weights, config, padded, mask, np.pad(cotangent, room))
    for (path, bare), many in zip(flatten(bare_weights).items(), flatten(many_weights).values(), strict=True):
        np.testing.assert_allclose(many, bare, atol=1e-5 * float(np.abs(bare).max()), err_msg=path)
    np.testing.assert_allclose(many_x[:, before : before + 16], bare_x, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(many_x)[~mask], 0.0)


def test_a_row_of_pads_has_finite_gradients_whatever_reaches_it(model, layer_weights):
    """Even a cotangent at the pads (a loss that forgets its mask) is not amplified."""
    config, rng = model.config.text, np.random.default_rng(1)
    x, cotangent = rng.standard_normal((2, 1, 16, config.hidden_size), np.float32)
    gradients = layer_gradients(layer_weights, config, x, np.zeros((1, 16), bool), cotangent)
    for path, gradient in flatten({"weights": gradients[0], "x": gradients[1]}).items():
        assert np.abs(np.asarray(gradient)).max() < 100, path


def test_l2_normalise_at_zero_and_near_it():
    x = jnp.asarray([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0], [1e-3, 0.0, 0.0]])
    value, pull = jax.vjp(deltanet.l2_normalise, x)
    expected = np.asarray(x) / np.sqrt((np.asarray(x) ** 2).sum(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(value, expected, atol=1e-7)
    (gradient,) = pull(jnp.ones_like(x))
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert np.isfinite(np.asarray(gradient)).all()


def test_layers_one_by_one_equal_a_scan():
    """Values, states and the gradients of the stacked weights; in float64, where two approximations of tanh agree."""

    def layer(x, stacked):
        kernel, (bias,) = stacked
        x = jnp.tanh(x @ kernel + bias)
        return x, (2 * x,)

    def total(way, kernels, biases, x):
        x, (states,) = way(layer, x, (kernels, (biases,)))
        return jnp.sum(x * jnp.cumsum(states, axis=0)), (x, states)

    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=shape) for shape in ((3, 4, 4), (3, 4), (2, 4))]
    with jax.enable_x64(True):
        plain, loops = (
            jax.value_and_grad(functools.partial(total, way), argnums=(0, 1, 2), has_aux=True)(*arguments)
            for way in (text._one_by_one, jax.lax.scan)
        )
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(plain))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), plain, loops)
