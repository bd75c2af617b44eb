"""The hybrid cache: prefill and decoding equal one pass over the whole sequence, and pads leave no trace in it.

Prompts end at 63, 0 and 1 modulo the delta rule's chunk of 64 (transformers#46190: pads that fill up a chunk used to
change the state), with rows padded on either side in the same batch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from tests.models.tiny import FAST_COMPILE, MM_LENGTH, image
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import decode, decode_weights, inputs, text, vlm
from zppo_jax.ops.logprobs import target_logprobs
from zppo_jax.types import Features

TOLERANCE = 2e-4
NUM_SLOTS = 132  # key slots in decoding, the same in every test: one compiled step
PADS = ((0, "left"), (5, "left"), (3, "right"), (41, "right"))


@pytest.fixture(scope="module")
def model() -> qwen3_5.Model:
    return tiny.short_model()


_prefill = jax.jit(vlm.prefill, static_argnums=1, compiler_options=FAST_COMPILE)
_unstack = jax.jit(decode.unstack_cache, static_argnums=(1, 2))
_logits = jax.jit(text.logits)


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST_COMPILE)
def _step(params, config, tokens_B, positions_B, mask_BS, states, slot):
    weights = decode_weights.prepare(params["text"], config.text, len(tokens_B))
    x_BD = text.embed(weights, tokens_B[:, None])[:, 0]
    hidden_BD, states = decode.step_layers(weights, config.text, x_BD, positions_B, mask_BS, states, slot)
    return decode.logits(weights, hidden_BD), states


def reference(model):
    """Ids [B, T] and the logits of the whole unpadded sequences, by the pass that test_parity checks."""
    hf_inputs = tiny.text_batch(seed=5)
    return hf_inputs["input_ids"], np.asarray(qwen3_5.forward(model, **hf_inputs))


def prompt_inputs(config, ids_BT, length, pads=PADS):
    """The first `length - pad` tokens of each row as a prompt of `length` slots."""
    prompt = np.full((len(ids_BT), length), 9)
    mask = np.zeros((len(ids_BT), length), np.int64)
    for row, (pad, side) in enumerate(pads):
        where = slice(pad, length) if side == "left" else slice(0, length - pad)
        prompt[row, where], mask[row, where] = ids_BT[row, : length - pad], 1
    batch, deltas_B = inputs.from_hf(config, input_ids=prompt, attention_mask=mask)
    assert not deltas_B.any()
    return batch


def decode_tokens(model, cache, length, ids_BT, starts_B, num_steps, positions_B=None):
    """Feed `num_steps` tokens of each row, from index `starts_B`; yields the logits [B, V] after each."""
    rows = np.arange(len(ids_BT))
    positions_B = starts_B if positions_B is None else positions_B
    states = _unstack(cache, model.config.text, NUM_SLOTS - length)
    mask_BS = np.pad(np.asarray(cache["mask"]), [(0, 0), (0, NUM_SLOTS - length)])
    for step in range(num_steps):
        mask_BS[:, length + step] = True
        index_B = starts_B + step
        logits_BV, states = _step(
            model.params, model.config, ids_BT[rows, index_B], positions_B + step, mask_BS.copy(), states, length + step
        )
        yield np.asarray(logits_BV)


@pytest.mark.parametrize(("length", "steps"), [(60, 3), (63, 1), (63, 2), (64, 1), (65, 63)])
def test_prefill_and_steps_equal_one_pass(length, steps, model):
    ids_BT, full_BTV = reference(model)
    batch = prompt_inputs(model.config, ids_BT, length)
    hidden_BTD, cache = _prefill(model.params, model.config, batch)
    starts_B = length - np.asarray([pad for pad, _ in PADS])
    logits_BTV = np.asarray(_logits(model.params["text"], hidden_BTD))
    for row, (pad, _) in enumerate(PADS):
        np.testing.assert_allclose(
            logits_BTV[row][batch["mask_BT"][row]], full_BTV[row, : length - pad], atol=TOLERANCE
        )
    worst = 0.0
    for step, logits_BV in enumerate(decode_tokens(model, cache, length, ids_BT, starts_B, steps)):
        worst = max(worst, float(np.abs(logits_BV - full_BTV[np.arange(4), starts_B + step]).max()))
    print(f"prefill {length} + {steps} steps: max error {worst:.1e}")
    assert worst < TOLERANCE


def test_pads_leave_no_trace_in_the_state(model):
    """The same 60 tokens left-padded, right-padded and padded on both sides give one state and one conv context."""
    ids_T = np.broadcast_to(tiny.text_batch(seed=6)["input_ids"][0], (4, tiny.TEXT_LENGTH))
    batch = prompt_inputs(model.config, ids_T, 64, [(4, "left"), (4, "right"), (4, "left"), (4, "right")])
    for name in ("tokens_BT", "mask_BT", "feature_BT"):
        batch[name][2] = np.roll(batch[name][2], -2)
    batch["positions_3BT"][:, 2] = np.roll(batch["positions_3BT"][:, 2], -2, axis=-1)
    batch["mask_BT"][3] = False
    _, cache = _prefill(model.params, model.config, batch)
    bare = prompt_inputs(model.config, ids_T, 60, [(0, "left")] * 4)
    _, expected = _prefill(model.params, model.config, bare)
    for name in ("conv", "recurrent"):
        value, unpadded = np.asarray(cache[name]), np.asarray(expected[name])
        for row in range(3):
            np.testing.assert_allclose(value[:, :, row], unpadded[:, :, 0], atol=2e-5, err_msg=f"{name} {row}")
        np.testing.assert_array_equal(value[:, :, 3], 0.0, err_msg="a row of pads keeps the empty state")


def test_two_pieces_equal_one(model):
    """A prompt padded on either side, then its continuation through `run_layers` from the cache (right-padded)."""
    ids_BT, full_BTV = reference(model)
    prompt, rest, pads = 64, 40, (0, 7, 0, 39)
    config = model.config.text
    _, cache = _prefill(model.params, model.config, prompt_inputs(model.config, ids_BT, prompt))
    starts_B = prompt - np.asarray([pad for pad, _ in PADS])
    index_BT = starts_B[:, None] + np.arange(rest)
    mask_BT = np.arange(rest) < rest - np.asarray(pads)[:, None]
    tokens_BT = np.where(mask_BT, np.take_along_axis(ids_BT, index_BT, axis=1), 9)
    positions_3BT = np.broadcast_to(np.where(mask_BT, index_BT, 0), (3, *index_BT.shape))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def continue_from(params, cache):
        x_BTD = text.embed(params["text"], jnp.asarray(tokens_BT))
        positions, mask = jnp.asarray(positions_3BT), jnp.asarray(mask_BT)
        hidden, cache = text.run_layers(params["text"], config, x_BTD, positions, mask, cache)
        return text.logits(params["text"], hidden), cache

    logits_BTV, longer = continue_from(model.params, cache)
    expected_BTV = np.take_along_axis(full_BTV, index_BT[..., None], axis=1)
    error = np.abs(np.asarray(logits_BTV) - expected_BTV)[mask_BT].max()
    print(f"two pieces: max error {error:.1e}")
    assert error < TOLERANCE
    # And the states after both pieces carry on: rows now have pads before, between and after their tokens.
    ends_B = starts_B + mask_BT.sum(axis=1)
    (logits_BV,) = decode_tokens(model, longer, prompt + rest, ids_BT, ends_B, 1)
    np.testing.assert_allclose(logits_BV, full_BTV[np.arange(4), ends_B], atol=TOLERANCE)


def test_image_prompts_from_features_decode_as_one_pass(model):
    """Prompts packed by `from_features`: the last token is fed as the first step, and positions continue from its
    position.

    An image takes fewer positions than tokens, so a decoder that counts tokens (a stale rope delta) fails here.
    """
    rows = ([3, image(4, 6)], [9, image(2, 8)], [image(6, 4)], [])
    hf_inputs = tiny.batch(rows, MM_LENGTH, seed=7)
    full_BTV = np.asarray(qwen3_5.forward(model, **hf_inputs))
    ids_BT, types_BT = hf_inputs["input_ids"], hf_inputs["mm_token_type_ids"]
    positions_3BT = inputs.from_hf(model.config, **hf_inputs)[0]["positions_3BT"]
    grids_N3, ends = hf_inputs["image_grid_thw"], (40, 33, 36, 49)
    patches = [*np.split(hf_inputs["pixel_values"], np.cumsum(grids_N3.prod(axis=1))[:-1]), np.zeros((0, 1536), "f")]
    prompts = [
        Features(
            ids_BT[row, :end].astype(np.int32), types_BT[row, :end].astype(np.int32), positions_3BT[:, row, :end],
            0, patches[row], grids_N3[row : row + 1].astype(np.int32),
        )
        for row, end in enumerate(ends)
    ]  # fmt: skip
    batch = inputs.from_features(model.config, prompts, 4, 48, tiny.MM_PATCHES)
    last_B, position_B = batch.pop("last_B"), batch.pop("last_position_B")
    np.testing.assert_array_equal(last_B, [ids_BT[row, end - 1] for row, end in enumerate(ends)])
    _, cache = _prefill(model.params, model.config, batch)
    starts_B = np.asarray(ends) - 1
    steps = decode_tokens(model, cache, 48, ids_BT, starts_B, 5, position_B)
    for step, logits_BV in enumerate(steps):
        np.testing.assert_allclose(logits_BV, full_BTV[np.arange(4), starts_B + step], atol=TOLERANCE)


def test_bfloat16_keeps_its_dtypes_through_cache_and_steps(model):
    """Activations, keys and conv contexts in the model dtype, the state in float32; shapes only, nothing compiled."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), model.params)
    mixer = params["text"]["linear"]["mixer"]
    kept = mixer | {"a_log": model.params["text"]["linear"]["mixer"]["a_log"]}
    kept["norm"] = {"weight": model.params["text"]["linear"]["mixer"]["norm"]["weight"]}
    params["text"]["linear"]["mixer"] = kept
    batch = prompt_inputs(model.config, tiny.text_batch()["input_ids"], 64)

    def run(params):
        hidden, cache = vlm.prefill(params, model.config, batch)
        states = decode.unstack_cache(cache, model.config.text, 1)
        weights = decode_weights.prepare(params["text"], model.config.text, 4)
        x_BD = text.embed(weights, jnp.zeros((4, 1), jnp.int32))[:, 0]
        mask_BS, zeros_B, slot = jnp.ones((4, 65), bool), jnp.zeros(4, jnp.int32), jnp.asarray(64)
        stepped, states = decode.step_layers(weights, model.config.text, x_BD, zeros_B, mask_BS, states, slot)
        return hidden, cache, stepped, states

    hidden, cache, stepped, states = jax.eval_shape(run, params)
    assert hidden.dtype == stepped.dtype == cache["k"].dtype == cache["conv"].dtype == jnp.bfloat16
    assert cache["recurrent"].dtype == jnp.float32
    assert [leaf.dtype for leaf in states[0][0]] == [jnp.bfloat16, jnp.float32]
    assert [leaf.dtype for leaf in states[0][2]] == [jnp.bfloat16, jnp.bfloat16]


@pytest.mark.parametrize("num_rows", [4, 16])
def test_scores_of_a_bfloat16_model_are_those_of_the_trainer(model, num_rows):
    """Products of bfloat16 numbers summed in float32, in sampling as in training: rounded to bfloat16 on one side
    alone, log-probabilities of the two would differ by a hundredth."""
    rng, config = np.random.default_rng(0), model.config.text
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params["text"])
    hidden_BD = jnp.asarray(rng.standard_normal((num_rows, config.hidden_size)), jnp.bfloat16)
    target_B, nothing_V = jnp.asarray(rng.integers(0, 500, num_rows)), np.zeros(config.vocab_size, bool)
    sampled_BV = decode.logits(decode_weights.prepare(params, config, num_rows), hidden_BD)
    forward_BV = text.logits(params, hidden_BD)
    trained_B = target_logprobs(hidden_BD, text.head(params), target_B, 1.0, nothing_V)
    for scores_BV in (sampled_BV, forward_BV):
        assert scores_BV.dtype == jnp.float32
        logprobs_B = jax.nn.log_softmax(scores_BV)[np.arange(num_rows), target_B]
        np.testing.assert_allclose(logprobs_B, trained_B, atol=2e-5)
