from __future__ import annotations

import types

import numpy as np
import pytest

from zppo_jax.processor import Video, rope_index


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
    """Token types and grids: all in order, images, videos. There is text between any two runs."""
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


@pytest.fixture(scope="module")
def oracle():
    """transformers' get_rope_index, and the one function that it calls, on a stand-in for the model."""
    pytest.importorskip("torch")
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

    vision = types.SimpleNamespace(spatial_merge_size=2)
    model = types.SimpleNamespace(config=types.SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = types.MethodType(Qwen3_5Model.get_vision_position_ids, model)
    return types.MethodType(Qwen3_5Model.get_rope_index, model)


def _tensor(rows: np.ndarray):
    import torch

    return torch.from_numpy(rows) if len(rows) else None


def test_agrees_with_transformers_on_random_layouts(oracle):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    mixed = 0
    for _ in range(300):
        token_types_T, grid_thw_N3, images, videos = _random_layout(rng)
        mixed += len(images) > 0 and len(videos) > 0 and videos[:, 0].max() > 1
        ids = torch.zeros(1, len(token_types_T), dtype=torch.long)
        expected, delta = oracle(ids, torch.from_numpy(token_types_T)[None], _tensor(images), _tensor(videos))
        positions_3T, rope_delta = rope_index(token_types_T, grid_thw_N3)
        np.testing.assert_array_equal(positions_3T, expected[:, 0].numpy())
        assert rope_delta == int(delta)
    assert mixed > 50  # images next to videos of several frames


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_agrees_with_transformers_on_padded_batches(oracle, padding_side):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    for _ in range(100):
        rows = [_random_layout(rng) for _ in range(rng.integers(2, 5))]
        longest = max(len(row[0]) for row in rows)
        types_BT, mask_BT = np.zeros((2, len(rows), longest), np.int64)
        for index, (token_types_T, *_) in enumerate(rows):
            count = len(token_types_T)
            place = slice(longest - count, None) if padding_side == "left" else slice(count)
            types_BT[index, place], mask_BT[index, place] = token_types_T, 1
        expected_3BT, delta_B1 = oracle(
            torch.zeros(types_BT.shape, dtype=torch.long),
            torch.from_numpy(types_BT),
            _tensor(np.concatenate([row[2] for row in rows])),
            _tensor(np.concatenate([row[3] for row in rows])),
            torch.from_numpy(mask_BT),
        )
        for index, (token_types_T, grid_thw_N3, _, _) in enumerate(rows):
            positions_3T, rope_delta = rope_index(token_types_T, grid_thw_N3)
            valid_T = mask_BT[index] == 1
            np.testing.assert_array_equal(positions_3T, expected_3BT[:, index].numpy()[:, valid_T])
            assert rope_delta == int(delta_B1[index])


def test_a_whole_prompt_agrees_with_transformers(oracle, processor):
    torch = pytest.importorskip("torch")
    image = np.zeros((64, 96, 3), np.uint8)
    video = Video([image[:, :64]] * 5, fps=3.0)
    features = processor.features("Why?", [image, image.transpose(1, 0, 2)], [video, video])
    batch = processor.hf_inputs([("Why?", [image, image.transpose(1, 0, 2)], [video, video])])
    expected, delta = oracle(
        torch.from_numpy(batch["input_ids"]),
        torch.from_numpy(batch["mm_token_type_ids"]),
        torch.from_numpy(batch["image_grid_thw"]),
        torch.from_numpy(batch["video_grid_thw"]),
        torch.from_numpy(batch["attention_mask"]),
    )
    np.testing.assert_array_equal(features.positions_3T, expected[:, 0].numpy())
    assert features.rope_delta == int(delta)


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
