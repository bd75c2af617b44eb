"""Logits against transformers' Qwen3_5ForConditionalGeneration in float32. `pytest -s` prints the table of errors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import tiny
from tests.models.tiny import MM_LENGTH, image, video
from zppo_jax.models import qwen3_5

TOLERANCE = 2e-4


def mm_batch(*rows, pads=None, side="left"):
    return tiny.batch(rows, MM_LENGTH, pads, side)


FOUR_IMAGES = ([3, image(4, 6)], [9, image(4, 6)], [image(6, 4)], [5, image(2, 2)])
TWO_IMAGES = ([2, image(4, 6), 3, image(6, 2)], [], [5, image(2, 4), image(6, 4), 1], [4])
CASES = {
    "text": tiny.text_batch(),
    "text, left padding": tiny.text_batch((0, 3, 13, 66)),
    "text, right padding": tiny.text_batch((0, 3, 13, 66), "right"),
    "one image": mm_batch(*FOUR_IMAGES),
    "one image, left padding": mm_batch(*FOUR_IMAGES, pads=(0, 1, 17, 50)),
    "one image, right padding": mm_batch(*FOUR_IMAGES, pads=(0, 1, 17, 50), side="right"),
    "two images, and rows of text": mm_batch(*TWO_IMAGES, pads=(2, 0, 9, 33)),
    "H != W": mm_batch([image(2, 12)], [1, image(12, 2)], [4, image(4, 6)], [image(6, 4)], pads=(0, 7, 0, 5)),
    "three images, text, one image": mm_batch(
        [1, image(2, 2), 1, image(6, 4), image(2, 6)], [], [7, image(4, 2)], [], pads=(0, 20, 3, 0)
    ),
    "video": mm_batch([4, video(4, 4, 6)], [], [], [], pads=(0, 5, 0, 0)),
    "video of 5 frames (t = 3)": mm_batch(
        [4, video(3, 4, 6)], [2], [video(3, 2, 4), image(4, 4)], [], pads=(0, 0, 4, 9)
    ),
    "image and video": mm_batch([3, image(4, 6), 2, video(2, 6, 4)], [], [image(2, 6)], [], pads=(1, 0, 6, 0)),
    "a single padded row": tiny.batch([[3, image(4, 6)]], 21, [4]),
}


def torch_logits(oracle, inputs) -> np.ndarray:
    import torch

    with torch.no_grad():
        return oracle(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()


def compare(case, model, oracle, inputs) -> None:
    expected = torch_logits(oracle, inputs)
    actual = np.asarray(qwen3_5.forward(model, **inputs))
    valid = inputs["attention_mask"] != 0
    error = float(np.abs(expected - actual)[valid].max())
    spread = float(expected[valid].std())
    print(f"{case:32s} max error {error:.1e}   logit std {spread:.2f}")
    assert 1.5 < spread < 4
    assert error < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_transformers(case, model, oracle):
    compare(case, model, oracle, CASES[case])


def test_forward_equals_transformers_with_an_untied_head(untied_model, untied_oracle):
    compare("untied head", untied_model, untied_oracle, CASES["text, left padding"])


def test_without_mask_and_types_all_tokens_count(model):
    inputs = CASES["text"]
    plain = qwen3_5.forward(model, input_ids=inputs["input_ids"])
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(qwen3_5.forward(model, **inputs)))
    inputs = dict(CASES["two images, and rows of text"])
    del inputs["mm_token_type_ids"]
    with_types = qwen3_5.forward(model, **CASES["two images, and rows of text"])
    np.testing.assert_array_equal(np.asarray(qwen3_5.forward(model, **inputs)), np.asarray(with_types))


def test_the_tiny_model_is_a_fair_judge(oracle):
    """torch's rounding noise stays far below the tolerance: the model is not chaotic."""
    import torch

    ids = torch.tensor(CASES["text"]["input_ids"])
    weight = oracle.model.language_model.embed_tokens.weight
    with torch.no_grad():
        x = weight[ids]
        noisy = x * (1 + 1e-7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        clean, moved = (
            oracle.lm_head(oracle.model.language_model(inputs_embeds=y).last_hidden_state) for y in (x, noisy)
        )
    assert float((clean - moved).abs().max()) < 5e-5
