"""Untrusted images: decoding, refusals, and children that are killed and replaced."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serve.conftest import data_uri
from zppo_jax.serve import images
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.images import ImageDecoder, content_of


@pytest.fixture(scope="module")
def decoder():
    made = ImageDecoder(max_pixels=10_000, num_workers=2)
    yield made
    made.close()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def file(height: int, width: int, kind: str = "png") -> bytes:
    return content_of(data_uri(picture(height, width), kind), "x")


def test_images_of_many_threads_come_back_whole(decoder):
    sizes = [(10 + number, 20 + 3 * number) for number in range(12)]
    with ThreadPoolExecutor(5) as threads:
        decoded = list(threads.map(lambda size: decoder.decode(file(*size), "x"), sizes))
    for (height, width), image_HWC in zip(sizes, decoded, strict=True):
        assert np.array_equal(image_HWC, picture(height, width))
    assert decoder.decode(file(8, 8, "jpeg"), "x").shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "image 3: not an image"),
        (b"GIF89a", "image 3: not an image"),
        (file(101, 100), "100 x 101 pixels exceed the limit of 10000"),
        (file(50, 50)[:-100], "image 3: cannot be decoded"),
    ],
)
def test_unfit_files_are_refused_and_the_next_is_decoded(decoder, content, words):
    with pytest.raises(ApiError, match=words) as caught:
        decoder.decode(content, "image 3")
    assert caught.value.status == 400
    assert decoder.decode(file(4, 4), "x").shape == (4, 4, 3)


def test_a_child_that_hangs_is_killed_and_replaced():
    decoder = ImageDecoder(max_pixels=10_000, num_workers=1, seconds=0.3)
    assert decoder.decode(file(4, 4), "x").shape == (4, 4, 3)
    child = decoder._places.get()
    decoder._places.put(child)
    assert child is not None
    os.kill(child._process.pid, 19)  # SIGSTOP: alive, but it does not answer
    begin = time.monotonic()
    with pytest.raises(ApiError, match=r"cannot be decoded within 0\.3 seconds"):
        decoder.decode(file(90, 90), "x")
    assert time.monotonic() - begin < 10
    assert decoder.decode(file(4, 4), "x").shape == (4, 4, 3)
    decoder.close()


def test_only_data_uris():
    for uri in ("http://a/b.png", "file:///etc/passwd", "data:text/html;base64,AAAA", "data:image/png,AAAA", ""):
        with pytest.raises(ApiError, match="give a data URI"):
            images.content_of(uri, "x")
    assert images.content_of("data:image/svg+xml;charset=utf-8;base64,QQ==", "x") == b"A"
