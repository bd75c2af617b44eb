"""The served teacher behind our own server, in its own process: it answers as the same weights do in this one."""

from __future__ import annotations

from typing import Any, cast

import pytest

from configs import tiny
from tests import tiny_model
from tests.remote.processes import OurServer
from zppo_jax.actors.actor import Actor
from zppo_jax.config import from_config_dict
from zppo_jax.data.digits import DigitsSource
from zppo_jax.data.processing import EncodedPrompt, PromptProcessing, processor_settings
from zppo_jax.errors import ConfigError
from zppo_jax.files import SHIPPED
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.processor import Processor
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.setup.served import served_teacher
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.teacher.served import ROLE, ServedTeacher
from zppo_jax.types import Missed

NEW_TOKENS = 12
KEY = "a-key-of-the-server"
TEACHER = SHIPPED / "teacher"
STREAM = RandomStream(0, 1, "teacher")


@pytest.fixture(scope="module")
def server(compilation_folder):
    for library in ("starlette", "uvicorn", "openai"):
        pytest.importorskip(library)
    flags = ["--num_slots=8", "--max_pixels=4096", "--max_prompt_tokens=512", "--max_new_tokens=16"]
    with OurServer(TEACHER, flags, KEY) as ours:
        yield ours.url


@pytest.fixture(scope="module")
def items() -> list[EncodedPrompt]:
    """Questions with an image."""
    source, process = DigitsSource("rules", "train", 4), PromptProcessing(processor_of(True), tiny_model.TEMPLATE)
    prompts = [process.plain_prompt(source[index], f"1/{index}/plain") for index in range(4)]
    assert all(prompt.question.images for prompt in prompts)
    return process.items_of(prompts)


def processor_of(thinking: bool) -> Processor:
    settings = processor_settings(from_config_dict(tiny.get_config()).prompt)
    return Processor.from_directory(TEACHER, enable_thinking=thinking, **settings)


def local(thinking: bool) -> LocalTeacher:
    """The greedy teacher in this process; its writer never thinks."""
    model = qwen3_5.load(TEACHER, "float32")
    banned = banned_mask(model.config, processor_of(True))
    engine = Engine(model.config, Shapes((64,), 36, NEW_TOKENS), 8, 2, banned, tiny_model.compiler(), "teacher's ", 4)
    actor, writer = (Actor(engine, processor_of(one), cast(Any, None)) for one in (thinking, False))
    return LocalTeacher("teacher", model.params, actor, 2, Sampling(0.0), writer)


@pytest.fixture
def served(server, monkeypatch):
    monkeypatch.setenv(ROLE.key_variable, KEY)
    made: list[ServedTeacher] = []

    def teacher(temperature: float, thinking: bool = True) -> ServedTeacher:
        tree = tiny.get_config()
        tree.teacher.update({"path": server, "model": "teacher", "temperature": temperature, "num_rollouts": 2})
        tree.teacher.compress.max_tokens = tree.rollout.max_new_tokens = NEW_TOKENS
        tree.prompt.enable_thinking = thinking
        said: list[str] = []
        made.append(served_teacher(from_config_dict(tree), processor_of(thinking), None, said.append))
        assert not said
        return made[-1]

    yield teacher
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("thinking", [True, False])
def test_its_greedy_texts_are_those_of_the_same_weights_in_this_process(served, items, thinking):
    """Questions with an image, and turns of text."""
    here, there = local(thinking), served(0.0, thinking)
    process = PromptProcessing(processor_of(thinking), tiny_model.TEMPLATE)
    encoded = process.items_of([one.prompt for one in items])
    expected, found = (dict(each.answer(encoded, STREAM)) for each in (here, there))
    assert {uid: list(one) for uid, one in found.items()} == {uid: list(one) for uid, one in expected.items()}
    texts = {one.text for answers in found.values() for one in answers}
    assert len(texts) > 1 and all(text.startswith("<think>\n") == thinking for text in texts)
    asks = [f"Write about {number}." for number in range(3)]
    assert list(there.write(asks, STREAM)) == list(here.write(asks, STREAM))


@pytest.mark.slow
def test_its_samples_are_the_same_for_the_same_stream(served, items):
    teacher = served(1.0)
    streams = (STREAM, STREAM, RandomStream(0, 2, "teacher"))
    first, again, other = (dict(teacher.answer(items, stream)) for stream in streams)
    assert first == again != other and not any(isinstance(one, Missed) for one in first.values())
    assert any(one[0] != one[1] for one in first.values())
    (text,) = teacher.write(["why? " * 600], STREAM)
    assert isinstance(text, Missed) and text.reason == "too_long" and "tokens" in text.detail


@pytest.mark.slow
def test_the_server_wants_its_key(served, monkeypatch):
    monkeypatch.setenv(ROLE.key_variable, "another")
    with pytest.raises(ConfigError, match=f"wants a key .*: set {ROLE.key_variable}") as refused:
        served(1.0)
    assert "another" not in str(refused.value)
