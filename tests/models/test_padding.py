"""Pads change nothing (MaxText#5295: on the left they leaked through the convolution into the first real token)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import tiny
from zppo_jax.models import qwen3_5


@pytest.mark.parametrize("pads", [(0, 1, 2, 3), (0, 4, 63, 64)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_unpadded_one(pads, side, model):
    """Row b holds the first T - pads[b] tokens of one text, so by causality row 0 is the reference for all."""
    ids = tiny.text_batch(seed=3)["input_ids"]
    rows, mask = np.full_like(ids, 11), np.zeros_like(ids)
    length = ids.shape[1]
    for row, pad in enumerate(pads):
        where = slice(pad, length) if side == "left" else slice(0, length - pad)
        rows[row, where], mask[row, where] = ids[0, : length - pad], 1
    logits = np.asarray(qwen3_5.forward(model, input_ids=rows, attention_mask=mask))
    assert np.isfinite(logits).all()
    for row, pad in enumerate(pads):
        error = np.abs(logits[row][mask[row] != 0] - logits[0, : length - pad]).max()
        assert error < 5e-5, f"{pad} pads on the {side}: {error}"
