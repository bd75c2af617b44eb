"""A tiny processor shared by the tests of this folder."""

from __future__ import annotations

import pytest

from zppo_jax.processor import Processor, ProcessorConfig, build_tokenizer, default_chat_template

WHOLE_WORDS = ("\\boxed{", "<candidate>\n", "</candidate>", "user\n", "assistant\n")
CORPUS = (
    "What is the sum of the digits in the picture? Answer in \\boxed{}.",
    "The grid holds the digits of the rows. Multiply the first and the last digit, then add 3.",
    "<candidate>\nThe sum is 3 + 4 = 7, so \\boxed{7}.\n</candidate>\n\nOne is correct, one is wrong.",
)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(CORPUS * 3, 360, WHOLE_WORDS)


@pytest.fixture(scope="session")
def processor(tokenizer):
    return Processor(tokenizer, default_chat_template(), ProcessorConfig(min_pixels=1024, max_pixels=16384))


@pytest.fixture(scope="session")
def saved_directory(processor, tmp_path_factory):
    directory = tmp_path_factory.mktemp("processor")
    processor.save(directory)
    return directory
