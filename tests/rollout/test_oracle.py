"""200 greedy tokens of the engine against transformers, and log-probabilities against the trainer's forward pass.

Sixteen prompts, some with images, of mixed lengths: left-padded in one batch there, and one by one; here through six
slots, so that most of them are admitted while others decode. No id ends a response.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests.models import conftest as oracles
from tests.models import tiny
from tests.models.tiny import image
from tests.rollout import build
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Features

NUM_NEW, LENGTH, NUM_ROWS = 200, 40, 16
SHAPES = Shapes(buckets=(16, 40), patch_slots=24, max_new_tokens=NUM_NEW)
TIE = 1e-4
"""The least difference of two logits that matters: closer ones may come in either order, because float32 sums depend on
the shape of the batch."""

ROWS: list[list[tiny.Segment]] = [[3, image(4, 6)], [], [2, image(2, 4)], [], [image(6, 4)], [], [], [9, image(2, 2)]]
ROWS = ROWS + [[] for _ in range(NUM_ROWS - len(ROWS))]
PADS = (0, 3, 17, 25, 11, 39, 38, 20, 1, 2, 26, 24, 23, 33, 7, 30)
GREEDY = Sampling(temperature=0.0)


@functools.cache
def model() -> qwen3_5.Model:
    """A model with an untied head: with a tied one, a random model repeats its last token."""
    found = tiny.random_model(tied=False, seed=1)
    return qwen3_5.Model(dataclasses.replace(found.config, stop_token_ids=()), found.params)


def hf_inputs(*rows: int) -> dict[str, np.ndarray]:
    """Left-padded prompts as a Hugging Face processor returns them; a row is the same in any choice of rows."""
    alone = [tiny.batch([ROWS[row]], LENGTH - PADS[row], [0], seed=row) for row in rows]
    longest = LENGTH - min(PADS[row] for row in rows)
    joined = {}
    for name in sorted(set().union(*alone)):
        parts = [one[name] for one in alone if name in one]
        if parts[0].ndim == 2 and parts[0].shape[0] == 1 and "grid" not in name and "pixel" not in name:
            parts = [np.pad(part, [(0, 0), (longest - part.shape[1], 0)]) for part in parts]
        joined[name] = np.concatenate(parts)
    return joined


@functools.cache
def prompts() -> tuple[Features, ...]:
    return tuple(build.features_of(model().config, hf_inputs(*range(NUM_ROWS))))


def engine():
    return build.engine(model(), "oracle", SHAPES, num_slots=6, prompts_per_call=4)


def answers(*rows: int, sampling: Sampling = GREEDY) -> list[Sample]:
    requests = [Request(f"row {row}", prompts()[row], 1, sampling, RandomStream()) for row in rows]
    return [one for (one,) in sample(engine(), model().params, requests)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    directory = tmp_path_factory.mktemp("oracle")
    qwen3_5.save(model(), directory)
    return oracles.torch_model(directory)


def tensors(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(value) for name, value in batch.items()}


def transformers_greedy(oracle, *rows: int) -> np.ndarray:
    import torch

    batch = hf_inputs(*rows)
    with torch.no_grad():
        ids = oracle.generate(
            **tensors(batch), max_new_tokens=NUM_NEW, do_sample=False, suppress_tokens=build.VISION_IDS,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return ids[:, batch["input_ids"].shape[1] :].numpy()


def transformers_logits(oracle, row: int, tokens_T: np.ndarray) -> np.ndarray:
    """Scores [T, V] of the tokens after a prompt, in one pass over both; ids of vision at minus infinity."""
    import torch

    batch = hf_inputs(row)
    for name, value in (("input_ids", tokens_T), ("attention_mask", 1), ("mm_token_type_ids", 0)):
        batch[name] = np.concatenate([batch[name], np.broadcast_to(value, (1, len(tokens_T)))], axis=1)
    with torch.no_grad():
        logits_TV = oracle(**tensors(batch)).logits[0, -len(tokens_T) - 1 : -1].double().numpy()
    logits_TV[:, build.VISION_IDS] = -np.inf
    return logits_TV


def near_ties(oracle, row: int, ours_T: np.ndarray, theirs_T: np.ndarray) -> int:
    """The number of near-ties among our tokens; 0 if both are equal. Otherwise our first different token must be a
    near-tie for transformers as well, and each later one the best (or nearly) after those before it."""
    if (ours_T == theirs_T).all():
        return 0
    logits_TV = transformers_logits(oracle, row, ours_T)
    gap_T = logits_TV.max(axis=1) - np.take_along_axis(logits_TV, ours_T[:, None], axis=1)[:, 0]
    first = int(np.argmax(ours_T != theirs_T))
    assert gap_T.max() < TIE, f"row {row}, token {first}: {ours_T[first]} is {gap_T[first]:.1e} below {theirs_T[first]}"
    return int((gap_T > 0).sum())


def test_greedy_tokens_are_those_of_transformers_in_a_batch_of_16(oracle):
    expected_BT, ours = transformers_greedy(oracle, *range(NUM_ROWS)), answers(*range(NUM_ROWS))
    ties = [near_ties(oracle, row, one.token_ids_T, expected_BT[row]) for row, one in enumerate(ours)]
    distinct = [len(np.unique(row)) for row in expected_BT]
    print(f"batch of 16: {sum(ties)} near-ties in {expected_BT.size} tokens; distinct tokens of a row {distinct}")
    assert [len(one.token_ids_T) for one in ours] == [NUM_NEW] * NUM_ROWS
    assert sum(ties) <= 2 and np.median(distinct) > 10, "a model that repeats itself proves little"


@pytest.mark.parametrize("row", [0, 5, 9], ids=["an image", "one token", "text"])
def test_greedy_tokens_are_those_of_transformers_alone(row, oracle):
    (expected_T,), (one,) = transformers_greedy(oracle, row), answers(row)
    assert near_ties(oracle, row, one.token_ids_T, expected_T) == 0
    (among_others,) = (both for both in answers(3, row, 4)[1:2])
    np.testing.assert_array_equal(among_others.token_ids_T, one.token_ids_T)


def test_the_images_matter(oracle):
    """The same prompts with other pixels get other answers: images and prompts are not mixed up."""
    rows, changed = (0, 2, 4, 7), []
    for row in rows:
        other = dataclasses.replace(prompts()[row], patches=-prompts()[row].patches_IC)
        changed.append(Request(f"row {row}", other, 1, GREEDY))
    others = sample(engine(), model().params, changed)
    for (other,), one in zip(others, answers(*rows), strict=True):
        assert (other.token_ids_T != one.token_ids_T).any()


def test_logprobs_are_those_of_the_trainers_forward(temperature=0.7):
    """The trainer's function, from prompts packed for it, images included; 200 tokens of each of 16 prompts."""
    ours = answers(*range(NUM_ROWS), sampling=Sampling(temperature=temperature))
    sampled = [[one.token_ids_T] for one in ours]
    expected = build.trainers_logprobs(model(), prompts(), sampled, temperature, SHAPES.patch_slots)
    error = max(np.abs(one.logprobs_T - expected_T).max() for one, (expected_T,) in zip(ours, expected, strict=True))
    print(f"temperature {temperature}: log-probabilities differ by {error:.1e} at most from the trainer's")
    assert error < 1e-4
    for one in ours:
        np.testing.assert_allclose(one.kept_logprobs_T, one.logprobs_T, atol=2e-6)
