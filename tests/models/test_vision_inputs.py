"""Interleaved M-RoPE, the vision tower on padded frames, and the packing of images; transformers is not needed here."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import tiny
from tests.models.tiny import FAST_COMPILE, MM_LENGTH, image
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import inputs, layers, vision, vlm


@pytest.fixture(scope="module")
def model() -> qwen3_5.Model:
    return tiny.short_model()


_logits = jax.jit(vlm.logits, static_argnums=1, compiler_options=FAST_COMPILE)
_encode = jax.jit(vision.encode, static_argnums=1, compiler_options=FAST_COMPILE)


@functools.cache
def image_batch():
    """Four images of H != W in two rows, and two rows of text."""
    return tiny.batch([[1, image(4, 6), 1, image(2, 8)], [], [3, image(6, 2), 2, image(6, 4)], []], MM_LENGTH)


# ---------------------------------------------------------------- positions


def test_height_and_width_rows_matter(model):
    """slime#2336: with the H and W rows dropped, text and OCR stayed right and boxes were 90 pixels off."""
    batch, _ = inputs.from_hf(model.config, **image_batch())
    right = np.asarray(_logits(model.params, model.config, batch))
    time, height, width = batch["positions_3BT"]
    for wrong in ([time, width, height], [time, time, time], [height, height, width]):
        moved = np.asarray(_logits(model.params, model.config, batch | {"positions_3BT": np.stack(wrong)}))
        error = np.abs(moved - right).max(axis=(1, 2))
        assert (error[[0, 2]] > 0.01).all(), "rows with images"
        np.testing.assert_array_equal(error[[1, 3]], 0.0, err_msg="rows of text have three equal rows")


@pytest.mark.parametrize(
    ("section", "axes"),
    [
        ((11, 11, 10), [0, 1, 2] * 10 + [0, 1]),
        ((5, 2, 1), [0, 1, 2, 0, 1, 0, 0, 0]),
        ((2, 3, 3), [0, 1, 2] * 2 + [0, 1]),
    ],
)
def test_mrope_axis_of_each_frequency(section, axes):
    """Written out for the published section and for two in which an axis ends early."""
    axis, half = np.asarray(axes), len(axes)
    positions = jnp.asarray([1, 10, 100])[:, None, None]
    cos, sin = layers.mrope_tables(positions, 2 * half, 1e7, section)
    angle = np.asarray([1, 10, 100])[axis] * 1e7 ** (-np.arange(half) / half)
    np.testing.assert_allclose(cos[0, 0], np.cos(angle), atol=1e-5)
    np.testing.assert_allclose(sin[0, 0], np.sin(angle), atol=1e-5)


def test_rotation_keeps_lengths_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 2, 16), np.float32)
    angle = rng.standard_normal((1, 3, 4))
    y = np.asarray(layers.rotate(*(jnp.asarray(z, jnp.float32) for z in (x, np.cos(angle), np.sin(angle)))))
    np.testing.assert_array_equal(y[..., 8:], x[..., 8:])
    turned = (x[..., :4] + 1j * x[..., 4:8]) * np.exp(1j * angle)[:, :, None]
    np.testing.assert_allclose(y[..., :8], np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-6)


# ---------------------------------------------------------------- padded frames


def pack(patches, sizes, num_slots, num_rows):
    starts, _ = inputs.place_frames(inputs.patch_counts(sizes), num_slots)
    return inputs.pack_frames(patches, sizes, starts, num_slots, num_rows, 2)


def test_padding_slots_and_empty_frames_change_nothing(model):
    config = model.config.vision
    sizes = np.asarray([[4, 6], [2, 4]], np.int32)
    patches = np.random.default_rng(0).standard_normal((32, config.patch_dim), np.float32)
    tight, tight_grid = pack(patches, sizes, 24, 2)
    roomy, roomy_grid = pack(patches, sizes, 36, 5)
    assert (tight_grid[..., 0].max(axis=1).tolist(), roomy_grid[0, :, 0].max()) == ([1, 2], 2), "two rows, and one"
    roomy[roomy_grid[..., 0] == 0] = 100.0
    expected = np.asarray(_encode(model.params["vision"], config, tight, tight_grid))
    actual = np.asarray(_encode(model.params["vision"], config, roomy, roomy_grid))
    assert actual.shape == (5, 9, config.out_hidden_size)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual[0, :6], expected[0, :6], atol=1e-5)
    np.testing.assert_allclose(actual[0, 6:8], expected[1, :2], atol=1e-5)
    assert np.abs(expected[0, :6]).std() > 0.05


def test_frames_are_packed_where_they_first_fit():
    patches = np.arange(1, 25, dtype=np.float32)[:, None]
    packed, grid = pack(patches, np.asarray([[2, 4], [2, 4], [2, 2], [2, 2]]), 12, 3)
    assert packed.shape == (3, 12, 1)
    np.testing.assert_array_equal(packed[0, :, 0], [1, 2, 3, 4, 5, 6, 7, 8, 17, 18, 19, 20])
    np.testing.assert_array_equal(packed[1, :, 0], [9, 10, 11, 12, 13, 14, 15, 16, 21, 22, 23, 24])
    np.testing.assert_array_equal(packed[2], 0.0)
    np.testing.assert_array_equal(grid[0, :, 0], [1] * 8 + [3] * 4)
    np.testing.assert_array_equal(grid[0, :8, 1:3].T, [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]])
    np.testing.assert_array_equal(grid[0, :8, 3:], [[2, 4]] * 8)
    np.testing.assert_array_equal(grid[2], 0)


def test_each_prompt_has_a_row_for_its_images():
    starts = inputs.place_in_own_rows([np.asarray([8, 4]), np.asarray([], np.int64), np.asarray([12])], 12)
    assert starts.tolist() == [0, 8, 24]
    with pytest.raises(ValueError, match=r"images of a prompt have 16 patches, more than the 12"):
        inputs.place_in_own_rows([np.asarray([8]), np.asarray([8, 8])], 12)


def test_new_sizes_compile_little(model):
    """A hundred batches of images of random sizes share a handful of programs of the vision tower."""
    rng, config = np.random.default_rng(0), model.config.vision
    shapes = set()
    for _ in range(100):
        sizes = rng.integers(1, 9, (rng.integers(1, 6), 2)) * 2
        patches = np.zeros((sizes.prod(axis=1).sum(), config.patch_dim), np.float32)
        packed, _ = inputs._pack_by_type(model.config, {1: sizes, 2: sizes[:0]}, {1: patches, 2: None})
        shapes.add(packed["patches_ISC"].shape)
    assert {slots for _, slots, _ in shapes} <= {16, 32, 64, 128, 256} and {rows for rows, *_ in shapes} <= {1, 2, 4, 8}
    assert len(shapes) <= 12


def test_a_new_size_of_image_compiles_nothing(model):
    """Twelve sizes of images in prompts of 49 to 60 tokens share two programs."""
    sizes = [(4, 6), (6, 4), (2, 8), (8, 2), (4, 4), (2, 6), (6, 2), (2, 4), (4, 2), (2, 10), (2, 12), (10, 2)]
    logits: Any = jax.jit(vlm.logits, static_argnums=1, compiler_options=FAST_COMPILE)
    for number, (height, width) in enumerate(sizes):
        batch = tiny.batch([[1, image(height, width), 1, image(8, 4)]], 49 + number)
        logits(model.params, model.config, inputs.from_hf(model.config, **batch)[0])
    assert logits._cache_size() <= 2


def test_feature_index_counts_each_type_by_itself():
    """Placeholders of a type consume that type's frames in order, wherever these were packed."""
    types = np.asarray([[0, 1, 1, 0, 2], [2, 0, 0, 1, 0]])
    sizes = {1: np.asarray([[4, 2], [2, 2]]), 2: np.asarray([[2, 2], [2, 2]])}
    index = inputs.feature_index(types, sizes, {1: np.asarray([0, 20]), 2: np.asarray([32, 8])}, 2)
    np.testing.assert_array_equal(index, [[-1, 0, 1, -1, 8], [2, -1, -1, 5, -1]])


# ---------------------------------------------------------------- refusals name their numbers


def change(**changes):
    return image_batch() | changes


def test_patches_that_do_not_fit_the_grids_are_refused(model):
    with pytest.raises(ValueError, match=r"75 patches.* 76"):
        inputs.from_hf(model.config, **change(pixel_values=image_batch()["pixel_values"][:-1]))


def test_placeholders_that_do_not_match_their_grid_are_refused(model):
    types = image_batch()["mm_token_type_ids"].copy()
    types[0, np.flatnonzero(types[0] == 1)[0]] = 0
    with pytest.raises(ValueError, match=r"5 tokens .*1x2x3"):
        inputs.from_hf(model.config, **change(mm_token_type_ids=types))


def test_placeholders_and_features_are_counted():
    types = np.asarray([[0, 1, 1, 0]])
    with pytest.raises(ValueError, match=r"2 image placeholder tokens for 3 image features"):
        inputs.feature_index(types, {1: np.asarray([[2, 6]])}, {1: np.asarray([0])}, 2)


def test_more_images_in_the_text_than_grids_are_refused(model):
    types = image_batch()["mm_token_type_ids"].copy()
    types[3, 5:7] = 1
    with pytest.raises(ValueError, match="more runs of image tokens than there are grids"):
        inputs.from_hf(model.config, **change(mm_token_type_ids=types))


def test_fewer_images_in_the_text_than_grids_are_refused(model):
    inputs_of_text = {name: image_batch()[name] for name in ("input_ids", "attention_mask")}
    inputs_of_text["input_ids"] = np.full_like(inputs_of_text["input_ids"], 9)
    images = {name: image_batch()[name] for name in ("pixel_values", "image_grid_thw")}
    with pytest.raises(ValueError, match=r"0 image placeholder tokens for 19"):
        inputs.from_hf(model.config, **inputs_of_text, **images)


def test_a_frame_larger_than_its_bucket_is_refused():
    with pytest.raises(ValueError, match=r"24 patches.* 16 slots"):
        inputs.place_frames(np.asarray([24]), 16)
