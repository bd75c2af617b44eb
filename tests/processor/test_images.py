from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from zppo_jax.processor import ProcessorConfig, load_image
from zppo_jax.processor.images import patchify, smart_resize

CONFIG = ProcessorConfig(min_pixels=4096, max_pixels=65536)


def _oracle(config: ProcessorConfig) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _images(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


@pytest.mark.parametrize(
    "config", [CONFIG, ProcessorConfig(8, 2, 2, 256, 4096), ProcessorConfig(16, 1, 1, 4096, 65536)]
)
def test_agrees_with_transformers(config):
    rng = np.random.default_rng(0)
    images = _images(rng, [(2, 2), (2, 390), (33, 1000), (64, 64), (70, 50), (500, 300), (16, 48)])
    images += _images(rng, [tuple(size) for size in rng.integers(8, 400, (12, 2)).tolist()])
    patches_IC, grid_thw_N3 = patchify(images, config)
    expected = _oracle(config)(images, return_tensors="np")
    np.testing.assert_array_equal(grid_thw_N3, expected["image_grid_thw"])
    assert patches_IC.dtype == np.float32 and patches_IC.shape == expected["pixel_values"].shape
    assert np.abs(patches_IC - expected["pixel_values"]).max() <= 1.01 / 127.5


def test_pixels_are_exact_without_resizing():
    image = _images(np.random.default_rng(1), [(64, 96)])
    expected = _oracle(CONFIG)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(patchify(image, CONFIG)[0], expected, atol=2e-7)


def test_sizes_agree_with_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    rng = np.random.default_rng(2)
    for height, width in np.exp(rng.uniform(0, 8, (2000, 2))).astype(int).tolist():
        if max(height, width) <= 200 * min(height, width):
            assert smart_resize(height, width, CONFIG) == expected(height, width, 32, 4096, 65536)


def test_no_images():
    patches_IC, grid_thw_N3 = patchify([], CONFIG)
    assert patches_IC.shape == (0, 1536) and grid_thw_N3.shape == (0, 3) and grid_thw_N3.dtype == np.int32


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((32, 32, 3), np.nan), "image 0: expected uint8 .* got float64"),
        (np.zeros((32, 32, 3), np.int32), "got int32"),
        (np.zeros((32, 32), np.uint8), r"shape .* got \[32, 32\]"),
        (np.zeros((3, 32, 32), np.uint8), "shape"),
        (np.zeros((0, 32, 3), np.uint8), "shape"),
        (np.zeros((1, 201, 3), np.uint8), "aspect ratio 201"),
        ([[0]], "NumPy array, got list"),
    ],
)
def test_unfit_arrays_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        patchify([image], CONFIG)


@pytest.mark.parametrize("field", ["patch_size", "merge_size", "min_pixels"])
def test_unfit_configs_are_refused(field):
    values: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=field):
        ProcessorConfig(**values)
    with pytest.raises(ValueError, match="exceeds max_pixels"):
        ProcessorConfig(min_pixels=5000, max_pixels=4000)


def _encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("CMYK", "TIFF"), ("RGBA", "PNG")],
)
def test_modes_become_rgb(mode, file_format):
    source = Image.new("RGB", (5, 4), (255, 255, 255))
    array = load_image(_encoded(source.convert(mode), file_format))
    assert array.dtype == np.uint8 and array.shape == (4, 5, 3) and array.min() == 255


def test_transparency_is_laid_on_white():
    assert load_image(_encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))).min() == 255
    assert load_image(_encoded(Image.new("LA", (2, 2), (0, 0)))).min() == 255
    palette = Image.new("P", (2, 2), 0)
    assert load_image(_encoded(palette, transparency=0)).min() == 255


def test_16_bit_grey_is_scaled():
    grey = Image.fromarray(np.asarray([[0, 257, 32_768, 65_535]], np.uint16))
    assert load_image(_encoded(grey))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_the_rotation_of_a_camera_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert load_image(_encoded(Image.new("RGB", (5, 4)), "JPEG", exif=exif)).shape == (5, 4, 3)


def test_a_path_is_read(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, 0].tolist() == [1, 2, 3]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="sample 7: not an image"):
        load_image(b"no image", "sample 7")
    with pytest.raises(ValueError, match="sample 8: cannot be decoded"):
        load_image(
            _encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:900],
            "sample 8",
        )
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="floating-point"):
        load_image(_encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="not 16-bit"):
        load_image(_encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_damage_is_never_another_error(file_format):
    rng = np.random.default_rng(0)
    content = _encoded(Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)), file_format)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 8):
            damaged[place] = rng.integers(0, 256)
        try:
            assert load_image(bytes(damaged), "sample 9").shape[2] == 3
        except ValueError as error:
            assert str(error).startswith("sample 9: ")
