"""Whatever the JSON files of a directory hold, a processor is read, or refused in one line that names the directory."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest

from tests import fuzzing
from zppo_jax.processor import Processor

FILES = {
    "preprocessor_config.json": 250,
    "video_preprocessor_config.json": 150,
    "processor_config.json": 150,
    "generation_config.json": 80,
    "chat_template.json": 60,
    "tokenizer_config.json": 60,
    "tokenizer.json": 80,
}
"""The files, and how often each is changed."""


@pytest.fixture
def directory(saved_directory, tmp_path):
    return shutil.copytree(saved_directory, tmp_path / "checkpoint")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_read_or_refused_in_one_line(name, directory):
    path = directory / name
    if name == "processor_config.json":
        nested = {kind: directory / f"{kind}preprocessor_config.json" for kind in ("", "video_")}
        content = {f"{kind or 'image_'}processor": json.loads(file.read_text()) for kind, file in nested.items()}
        path.write_text(json.dumps(content))
    if name in ("chat_template.json", "tokenizer_config.json"):
        template = (directory / "chat_template.jinja").read_text()
        (directory / "chat_template.jinja").unlink()
        path.write_text(json.dumps({"chat_template": [{"name": "default", "template": template}]}))
    rng, original = np.random.default_rng(0), path.read_text()
    outcomes = {True: 0, False: 0}
    for _ in range(FILES[name]):
        text = fuzzing.change_file(path, original, rng)
        start = time.process_time()
        try:
            config = Processor.from_directory(directory).config
        except ValueError as error:
            fuzzing.assert_one_line(error, "" if "token" in name or "chat" in name else directory)
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert config.factor <= 1024 and config.min_pixels <= config.max_pixels, text
        assert time.process_time() - start < 2, text
    assert min(outcomes.values()) > 0, outcomes
