from __future__ import annotations

import types

import numpy as np
import pytest

from zppo_jax.processor import rope_index


def test_an_image_between_texts():
    types_T = [0] * 8 + [1] * 6 + [0] * 2
    positions_3T, delta = rope_index(np.asarray(types_T), np.asarray([[1, 4, 6]]))
    assert positions_3T.dtype == np.int32 and positions_3T.shape == (3, 16)
    assert positions_3T[:, 7].tolist() == [7, 7, 7]
    assert positions_3T[0, 8:14].tolist() == [8] * 6
    assert positions_3T[1, 8:14].tolist() == [8, 8, 8, 9, 9, 9]
    assert positions_3T[2, 8:14].tolist() == [8, 9, 10, 8, 9, 10]
    assert positions_3T[:, 14].tolist() == [11, 11, 11] and delta == -3


def _random_layout(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Token types and grids: all in order, images, videos. Text stands between any two runs."""
    token_types, grids, images, videos = [0] * int(rng.integers(1, 9)), [], [], []
    for _ in range(rng.integers(0, 5)):
        kind = int(rng.integers(1, 3))
        t, h, w = int(rng.integers(1, 5)) if kind == 2 else 1, 2 * int(rng.integers(1, 7)), 2 * int(rng.integers(1, 7))
        for _ in range(t):
            token_types += [kind] * (h * w // 4) + [0] * int(rng.integers(1, 6))
        grids.append((t, h, w))
        (images if kind == 1 else videos).append((t, h, w))
    if rng.random() < 0.3:  # a prompt that ends with the vision run
        while token_types and token_types[-1] == 0 and len(set(token_types)) > 1:
            token_types.pop()
    all_N3, images_N3, videos_N3 = (np.asarray(rows, np.int64).reshape(-1, 3) for rows in (grids, images, videos))
    return np.asarray(token_types), all_N3, images_N3, videos_N3


def test_agrees_with_transformers_on_random_layouts():
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

    vision = types.SimpleNamespace(spatial_merge_size=2)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = types.MethodType(Qwen3_5Model.get_vision_position_ids, model)
    rng = np.random.default_rng(0)
    for _ in range(300):
        token_types_T, grid_thw_N3, images, videos = _random_layout(rng)
        expected, delta = Qwen3_5Model.get_rope_index(
            model,  # pyright: ignore[reportArgumentType]
            torch.zeros(1, len(token_types_T), dtype=torch.long),
            torch.from_numpy(token_types_T)[None],
            torch.from_numpy(images) if len(images) else None,
            torch.from_numpy(videos) if len(videos) else None,
        )
        positions_3T, rope_delta = rope_index(token_types_T, grid_thw_N3)
        np.testing.assert_array_equal(positions_3T, expected[:, 0].numpy())
        assert rope_delta == int(delta)


@pytest.mark.parametrize(
    ("token_types", "grids", "message"),
    [
        ([], [], "empty"),
        ([0, 1], [], "has no grid"),
        ([0, 1, 1], [[1, 2, 2]], "does not fit"),
        ([0], [[1, 2, 2]], "left over"),
        ([2, 0], [[2, 2, 2]], "left over"),
        ([0, 3], [[1, 2, 2]], "none of 0"),
        ([1, 1], [[1, 2, 2], [1, 2, 2]], "does not fit"),
    ],
)
def test_disagreement_of_runs_and_grids_is_refused(token_types, grids, message):
    with pytest.raises(ValueError, match=message):
        rope_index(np.asarray(token_types, np.int64), np.asarray(grids, np.int64).reshape(-1, 3))
