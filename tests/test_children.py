"""The environment of a child holds no secret of the parent, and all that Python needs."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zppo_jax import children
from zppo_jax.rewards.pool import ScoringPool

SECRETS = ("ZPPO_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "NOBODY_THOUGHT_OF_THIS")


@pytest.fixture
def parent(monkeypatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")


def environment_of(child: Any) -> dict[str, str]:
    """The environment, as the kernel reports it."""
    process = child._process.pid
    content = Path(f"/proc/{process}/environ")
    if not content.exists():
        pytest.skip("this system has no /proc")
    return dict(entry.split("=", 1) for entry in content.read_text().split("\0") if entry)


def check(found: dict[str, str]) -> None:
    assert "s3cret" not in found.values() and not set(SECRETS) & found.keys()
    assert (found["PATH"], found["LC_ALL"]) == (os.environ["PATH"], "C.UTF-8")
    assert found["PYTHONPATH"].split(os.pathsep) == [str(Path(children.__file__).parents[1]), "elsewhere"]


def test_the_child_that_opens_pictures_has_no_secret(parent):
    pytest.importorskip("starlette")
    from zppo_jax.serve.images import ImageDecoder

    decoder, file = ImageDecoder(max_pixels=10_000, num_workers=1), io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "png")
    try:
        assert decoder.decode(file.getvalue(), "x").shape == (4, 4, 3)
        child = decoder._places.get()
        decoder._places.put(child)
        check(environment_of(child))
    finally:
        decoder.close()


def test_the_child_that_compares_answers_has_no_secret(parent):
    with ScoringPool(1) as pool:
        assert pool.compare("1/2", "0.5")[0]
        [child] = pool._alive
        check(environment_of(child))
