from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from zppo_jax.processor import ProcessorConfig, load_image
from zppo_jax.processor.images import smart_resize
from zppo_jax.processor.media import joined, media_patches
from zppo_jax.processor.patches import normalised

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


def patchify(images, config):
    patches = joined(media_patches(images, (), config)[0], config)
    return patches(), patches.grid_thw_N3


def _images(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


@pytest.mark.parametrize(
    "config", [CONFIG, ProcessorConfig(8, 2, 2, 256, 4096), ProcessorConfig(16, 1, 1, 4096, 65536)]
)
def test_agrees_with_transformers(config):
    rng = np.random.default_rng(0)
    images = _images(rng, [(2, 2), (2, 390), (33, 1000), (64, 64), (70, 50), (500, 300), (16, 48)])
    images += _images(rng, [tuple(size) for size in rng.integers(8, 400, (12, 2)).tolist()])
    grey_IC, grid_thw_N3 = patchify(images, config)
    patches_IC = normalised(grey_IC)
    expected = _oracle(config)(images, return_tensors="np")
    np.testing.assert_array_equal(grid_thw_N3, expected["image_grid_thw"])
    assert grey_IC.dtype == np.uint8 and patches_IC.dtype == np.float32
    assert patches_IC.shape == expected["pixel_values"].shape
    assert np.abs(patches_IC - expected["pixel_values"]).max() <= 1.01 / 127.5


def test_pixels_are_exact_without_resizing():
    image = _images(np.random.default_rng(1), [(64, 96)])
    expected = _oracle(CONFIG)(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(normalised(patchify(image, CONFIG)[0]), expected, atol=2e-7)


def test_sizes_agree_with_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    rng = np.random.default_rng(2)
    paper = ProcessorConfig(min_pixels=256 * 32 * 32, max_pixels=1280 * 32 * 32)
    for height, width in np.exp(rng.uniform(0, 8, (2000, 2))).astype(int).tolist():
        if max(height, width) <= 200 * min(height, width):
            for config in (CONFIG, paper, ProcessorConfig()):
                found = smart_resize(height, width, config)
                assert found == expected(height, width, 32, config.min_pixels, config.max_pixels)


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


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_of_size(width: int, height: int) -> bytes:
    """A valid PNG of a few kilobytes: grey, all black, whatever its size."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + width // 8) * min(height, 10))
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (1_000_000, 1_000_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_unopened(size):
    """At one to two times its limit Pillow only warns; above, it raises its own error."""
    content = _png_of_size(*size)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^sample 4: cannot be decoded: .*pixels.* exceeds? ") as caught:
        load_image(content, "sample 4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 and "\n" not in str(caught.value)


def test_bombs_are_refused_where_warnings_are_errors():
    with warnings.catch_warnings(), pytest.raises(ValueError, match="sample 4"):
        warnings.simplefilter("error")
        load_image(_png_of_size(10_000, 10_000), "sample 4")


def _gif(num_frames: int) -> bytes:
    if num_frames == 0:
        return b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6) + b";"
    frames = [Image.new("RGB", (4, 4), (60 * index, 0, 0)) for index in range(num_frames)]
    return _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def test_gifs():
    assert load_image(_gif(3)).max() == 0  # the first frame
    with pytest.raises(ValueError, match="sample 2: not an image, or an empty or damaged one"):
        load_image(_gif(0), "sample 2")
    for length in (0, 3, 6, 13, 20, len(_gif(3)) // 3):
        with pytest.raises(ValueError, match=r"sample 2: (cannot be decoded|not an image)"):
            load_image(_gif(3)[:length], "sample 2")


def test_a_truncated_jpeg_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "a.jpg").write_bytes(_encoded(Image.fromarray(noise), "JPEG")[:1500])
    with pytest.raises(ValueError, match=r"a\.jpg: cannot be decoded: .*truncated"):
        load_image(tmp_path / "a.jpg")


def test_formats_that_run_programs_are_refused():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(x) show\nshowpage\n"
    with pytest.raises(ValueError, match="the format EPS is none of PNG, JPEG"):
        load_image(postscript)


def test_modes_agree_with_transformers():
    """transformers' processor applies EXIF rotation to a file, then convert("RGB")."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    files = [
        _encoded(colours.convert("CMYK"), "JPEG"),
        _encoded(colours.convert("CMYK"), "TIFF"),
        _encoded(colours.convert("P"), "PNG"),
        _encoded(colours.convert("L"), "PNG"),
        _encoded(colours.convert("YCbCr"), "JPEG"),
        _encoded(colours.convert("LAB"), "TIFF"),
        _encoded(colours.convert("RGBA"), "WEBP", lossless=True),
        *(_encoded(colours, "JPEG", exif=_turned(turn)) for turn in range(1, 9)),
    ]
    for content in files:
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        np.testing.assert_array_equal(load_image(content), np.asarray(expected))


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_a_palette_with_partial_transparency():
    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 0, 0, 0, 200, 0, 0])
    palette.putdata([0, 1, 2])
    rgb = load_image(_encoded(palette, transparency=bytes([0, 128, 255])))
    assert rgb[0].tolist() == [[255] * 3, [127] * 3, [200, 0, 0]]


def test_16_bit_colours():
    """Pillow keeps the upper byte, as in transformers."""
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">6H", 0, 255, 256, 32_768, 65_280, 65_535))
    content = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", row) + _png_chunk(b"IEND", b"")
    assert load_image(content)[0].tolist() == [[0, 0, 1], [128, 255, 255]]


@pytest.mark.parametrize(("height", "width", "grid"), [(1, 1, [1, 16, 16]), (1, 200, [1, 2, 228]), (3, 2, [1, 20, 14])])
def test_tiny_images_are_enlarged(height, width, grid):
    config = ProcessorConfig()
    image = np.full((height, width, 3), 255, np.uint8)
    patches_IC, grid_thw_N3 = patchify([image], config)
    assert grid_thw_N3.tolist() == [grid] and (normalised(patches_IC) == 1).all()


def test_a_long_narrow_image_is_refused():
    with pytest.raises(ValueError, match="image 1: aspect ratio 1000 exceeds 200: crop the image"):
        patchify([np.zeros((4, 4, 3), np.uint8), np.zeros((10, 10_000, 3), np.uint8)], CONFIG)


def test_nan_pixels_are_named():
    image = np.zeros((4, 4, 3), np.float32)
    image[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"image 0: expected uint8 values 0\.\.255, got float32 with NaN or infinite"):
        patchify([image], CONFIG)


def test_limits_of_the_paper_agree_with_transformers():
    config = ProcessorConfig(min_pixels=256 * 32 * 32, max_pixels=1280 * 32 * 32)
    images = _images(
        np.random.default_rng(3), [(40, 60), (480, 640), (1000, 1400), (1700, 900), (60, 2000), (513, 512)]
    )
    grey_IC, grid_thw_N3 = patchify(images, config)
    patches_IC = normalised(grey_IC)
    expected = _oracle(config)(images, return_tensors="np")
    np.testing.assert_array_equal(grid_thw_N3, expected["image_grid_thw"])
    assert (grid_thw_N3.prod(axis=1) <= 1280 * 4).all() and grid_thw_N3[0].prod() >= 256 * 4
    assert np.abs(patches_IC - expected["pixel_values"]).max() <= 1.01 / 127.5
