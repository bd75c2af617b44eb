"""`generate` on Hugging Face batches: greedy against transformers, its conventions, and its compilations.

All batches have the same shape, so the sampler is compiled once: 4 rows of LENGTH slots with one image, two samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import conftest as oracles
from tests.models import tiny
from tests.models.tiny import image
from tests.tiny_model import cache_size
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import Generation, generate, slots
from zppo_jax.rollout.banned import banned_mask

LENGTH, NUM_SAMPLES, NUM_NEW = 24, 2, 12
PADS = (0, 3, 1, 16)
ROWS = ([3, image(4, 6)], [], [], [])
VISION_IDS = [tiny.CONFIG[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")]


@pytest.fixture(scope="module")
def model() -> qwen3_5.Model:
    """A model with an untied head: with a tied one, a random model repeats its last token."""
    return tiny.random_model(tied=False, seed=1)


def with_head(model: qwen3_5.Model, edit: Callable[[Any], Any]) -> qwen3_5.Model:
    """The model with another head: other likely tokens, the same compiled programs."""
    text = model.params["text"]
    return qwen3_5.Model(model.config, model.params | {"text": text | {"lm_head": edit(text["lm_head"])}})


def batch(pads=(0, 0, 0, 0), side="left", seed=3) -> dict[str, np.ndarray]:
    return tiny.batch(ROWS, LENGTH, pads, side, seed)


def sampled(model, inputs=None, **settings: Any) -> Generation:
    settings = {"num_samples": NUM_SAMPLES, "max_new_tokens": NUM_NEW} | settings
    return generate(model, batch(PADS) if inputs is None else inputs, **settings)


@pytest.fixture(scope="module")
def endless(model) -> Generation:
    """Samples that never stop."""
    return sampled(model, stop_ids=[])


@pytest.fixture(scope="module")
def oracle(model, tmp_path_factory):
    directory: Path = tmp_path_factory.mktemp("generate")
    qwen3_5.save(model, directory)
    return oracles.torch_model(directory)


def transformers_greedy(oracle, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        ids = oracle.generate(
            **tensors, max_new_tokens=NUM_NEW, do_sample=False, suppress_tokens=VISION_IDS, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    return ids[:, LENGTH:].numpy()


@pytest.mark.parametrize(("pads", "side"), [((0, 0, 0, 0), "left"), (PADS, "left"), (PADS, "right")])
def test_greedy_tokens_are_those_of_transformers(pads, side, model, oracle):
    """transformers generates from left-padded prompts only; a right-padded batch must give the same tokens."""
    expected_BT = transformers_greedy(oracle, batch(pads))
    ours = sampled(model, batch(pads, side), temperature=0.0, stop_ids=[])
    for n in range(NUM_SAMPLES):
        np.testing.assert_array_equal(ours.tokens[:, n], expected_BT)
    assert len(np.unique(expected_BT)) > 10, "a model that repeats itself proves little"


def test_the_image_matters(model):
    inputs = batch(PADS)
    other = inputs | {"pixel_values": -inputs["pixel_values"]}
    with_image, without = (sampled(model, x, temperature=0.0, stop_ids=[]).tokens for x in (inputs, other))
    assert (with_image[0] != without[0]).any()
    np.testing.assert_array_equal(with_image[1:], without[1:])


def forward_logits(model, inputs, tokens_BT) -> np.ndarray:
    """Scores [B, T, V] of the responses' tokens, from one pass over left-padded prompts and responses."""
    more = np.ones_like(tokens_BT)
    whole = inputs | {
        "input_ids": np.concatenate([inputs["input_ids"], tokens_BT], axis=1),
        "attention_mask": np.concatenate([inputs["attention_mask"], more], axis=1),
        "mm_token_type_ids": np.concatenate([inputs["mm_token_type_ids"], 0 * more], axis=1),
    }
    return np.asarray(qwen3_5.forward(model, **whole))[:, LENGTH - 1 : -1].astype(np.float64)


def forward_logprobs(model, inputs, tokens_BT, temperature=1.0) -> np.ndarray:
    logits = forward_logits(model, inputs, tokens_BT) / temperature
    logits = np.where(banned_mask(model.config), -np.inf, logits)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


@pytest.mark.parametrize(
    ("settings", "at"),
    [({}, 1.0), ({"temperature": 0.7}, 0.7), ({"temperature": 0.0}, 1.0), ({"top_k": 5, "top_p": 0.8}, 1.0)],
)
def test_logprobs_are_those_of_one_pass_untruncated(settings, at, model):
    """Greedy ones at temperature 1; those of truncated samples still of the whole distribution."""
    inputs = batch(PADS)
    out = sampled(model, inputs, stop_ids=[], **settings)
    for n in range(NUM_SAMPLES):
        expected_BTV = forward_logprobs(model, inputs, out.tokens[:, n], at)
        expected_BT = np.take_along_axis(expected_BTV, out.tokens[:, n, :, None], axis=-1)[..., 0]
        np.testing.assert_allclose(out.logprobs[:, n], expected_BT, atol=1e-4)


def test_shapes_and_types(model, endless):
    assert endless.tokens.shape == endless.logprobs.shape == (4, NUM_SAMPLES, NUM_NEW)
    assert endless.lengths.shape == endless.finish_reasons.shape == (4, NUM_SAMPLES)
    assert (endless.tokens.dtype, endless.logprobs.dtype) == (np.int32, np.float32)
    assert (endless.lengths == NUM_NEW).all() and (endless.finish_reasons == "length").all()
    assert (endless.logprobs < 0).all()
    assert len({endless.tokens[b, n].tobytes() for b in range(4) for n in range(NUM_SAMPLES)}) == 8


def test_after_the_stop_token_come_pads_without_logprobs(model, endless):
    """The stop token counts in length and log-probabilities; before it nothing changes."""
    stop = int(endless.tokens[1, 0, 4])
    out = sampled(model, stop_ids=[stop])
    assert out.tokens.shape == endless.tokens.shape, "T is max_new_tokens whatever the lengths"
    num_stopped = 0
    for place in np.ndindex(4, NUM_SAMPLES):
        found = np.flatnonzero(endless.tokens[place] == stop)
        length = int(found[0]) + 1 if len(found) else NUM_NEW
        num_stopped += len(found) > 0
        assert out.lengths[place] == length
        assert out.finish_reasons[place] == ("stop" if len(found) else "length")
        np.testing.assert_array_equal(out.tokens[place][:length], endless.tokens[place][:length])
        np.testing.assert_array_equal(out.logprobs[place][:length], endless.logprobs[place][:length])
        assert (out.tokens[place][length:] == model.config.pad_token_id).all()
        assert (out.logprobs[place][length:] == 0.0).all()
    assert 1 <= num_stopped < 8


def test_every_row_may_stop_at_once(model):
    """Decoding ends early when no row lives; the output keeps its length."""
    mute = with_head(model, lambda head: 0 * head)
    out = sampled(mute, temperature=0.0, stop_ids=[0])
    assert (out.lengths == 1).all() and (out.finish_reasons == "stop").all()
    assert (out.tokens[..., 0] == 0).all() and (out.tokens[..., 1:] == model.config.pad_token_id).all()
    assert out.tokens.shape == (4, NUM_SAMPLES, NUM_NEW)


def test_stop_ids_none_means_the_models_own(model):
    """The model's stop id gets the score of a token that greedy decoding says: of two equals the first is taken."""
    (stop_id,) = model.config.stop_token_ids
    said = int(sampled(model, temperature=0.0, stop_ids=[]).tokens[2, 0, 3])
    assert stop_id < said
    stopping = with_head(model, lambda head: head.at[stop_id].set(head[said]))
    out = sampled(stopping, temperature=0.0)
    np.testing.assert_array_equal(out.lengths, sampled(stopping, temperature=0.0, stop_ids=[stop_id]).lengths)
    assert out.lengths[2, 0] <= 4 and out.finish_reasons[2, 0] == "stop"
    assert (sampled(stopping, temperature=0.0, stop_ids=[]).lengths == NUM_NEW).all()


def test_the_last_token_may_be_the_stop_token(model, endless):
    """A row that stops with its very last token has stopped: it was not cut."""
    stop = int(endless.tokens[0, 0, -1])
    assert stop not in endless.tokens[0, 0, :-1], "choose another seed"
    out = sampled(model, stop_ids=[stop])
    assert (out.lengths[0, 0], out.finish_reasons[0, 0]) == (NUM_NEW, "stop")


def test_the_seed_decides_and_settings_compile_nothing(model, endless):
    compiled = cache_size(slots.decode)
    np.testing.assert_array_equal(sampled(model, stop_ids=[]).tokens, endless.tokens)
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3}, {"top_k": 7}, {"top_p": 0.9},
        {"seed": 2, "temperature": 2.0, "top_k": 9, "top_p": 0.4},
    ]  # fmt: skip
    for change in changes:
        assert (sampled(model, stop_ids=[], **change).tokens != endless.tokens).any(), change
    assert cache_size(slots.decode) == compiled


def test_truncated_samples_are_among_the_kept_tokens(model):
    inputs = batch(PADS)
    out = sampled(model, inputs, stop_ids=[], top_k=2, temperature=3.0)
    for n in range(NUM_SAMPLES):
        best_BTK = np.argsort(-forward_logprobs(model, inputs, out.tokens[:, n]), axis=-1)[..., :2]
        assert (best_BTK == out.tokens[:, n, :, None]).any(axis=-1).all()
    assert (out.tokens != sampled(model, inputs, stop_ids=[], temperature=0.0).tokens).any()


def test_vision_ids_are_never_sampled_even_by_a_model_that_loves_them(model):
    """Pairs of opposite rows in the head: whatever the hidden state, one of them is far above all others."""
    noise = np.random.default_rng(0).standard_normal((2, model.config.text.hidden_size), np.float32)
    ids, inputs = np.asarray(VISION_IDS), batch(PADS)
    lover = with_head(model, lambda head: head.at[ids].set(30 * np.concatenate([noise, -noise])))
    for temperature in (1.0, 0.0, 5.0):
        out = sampled(lover, inputs, temperature=temperature, stop_ids=[])
        assert not np.isin(out.tokens, ids).any()
        assert np.isfinite(out.logprobs).all()
        favourites = forward_logits(lover, inputs, out.tokens[:, 0]).argmax(axis=-1)
        assert np.isin(favourites, ids).mean() > 0.9, "without the ban it would say little else"


def test_a_prompt_without_tokens_is_refused(model):
    inputs = batch(PADS)
    inputs["attention_mask"] = inputs["attention_mask"].copy()
    inputs["attention_mask"][2] = 0
    with pytest.raises(ValueError, match=r"rows \[2\]"):
        sampled(model, inputs)
