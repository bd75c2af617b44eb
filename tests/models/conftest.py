"""The tiny random model, once per session: in memory, on disk, and as transformers' own (the oracle)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import tiny
from zppo_jax.models import qwen3_5


@pytest.fixture(scope="session")
def model() -> qwen3_5.Model:
    return tiny.random_model()


@pytest.fixture(scope="session")
def untied_model() -> qwen3_5.Model:
    return tiny.random_model(tied=False, seed=1)


@pytest.fixture(scope="session")
def directory(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    qwen3_5.save(model, path)
    return path


def torch_model(path):
    """transformers' model of a directory in float32, or a skip where torch is not installed."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from transformers import Qwen3_5ForConditionalGeneration

    loaded: Any = Qwen3_5ForConditionalGeneration.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    oracle, info = loaded
    assert not any(info.values()), info
    return oracle.eval()


@pytest.fixture(scope="session")
def oracle(directory):
    return torch_model(directory)


@pytest.fixture(scope="session")
def untied_oracle(untied_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("untied")
    qwen3_5.save(untied_model, path)
    return torch_model(path)
