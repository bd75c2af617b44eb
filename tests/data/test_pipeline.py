"""The Grain stream: replay that is never stale, resuming that is exact, and no device ever touched."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from zppo_jax import processor as processor_lib
from zppo_jax.data.digits import DigitsSource
from zppo_jax.data.pipeline import Shard, open_stream
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.data.reading import Reading
from zppo_jax.errors import RunError
from zppo_jax.processor.videos import Video
from zppo_jax.types import Features, Prompt
from zppo_jax.zppo import prompts

SOURCE = DigitsSource("rules", "train", 10)
TEMPLATE = prompts.TEMPLATES["compact"]


class ByteProcessor:
    """Tokens are the bytes of the text and patches the rows of the images: enough to see what was processed."""

    def features(self, text, images, videos=()):
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        assert not videos
        patches = np.concatenate([image.reshape(image.shape[0], -1) for image in images])
        grid = np.asarray([[1, image.shape[0] // 16, image.shape[1] // 16] for image in images], np.int32)
        return Features(ids, np.zeros_like(ids), np.tile(np.arange(len(ids), dtype=np.int32), (3, 1)), 0, patches, grid)

    def num_tokens(self, text, image_sizes=(), videos=()):
        return len(text.encode())

    def encode_text(self, text):
        return list(text.encode())


PROCESS = PromptProcessing(ByteProcessor(), TEMPLATE)


def real_processor() -> processor_lib.Processor:
    """A processor with a tokenizer of the questions, and one vision token per digit."""
    tokenizer = processor_lib.build_tokenizer([SOURCE[i].text for i in range(10)], 400)
    config = processor_lib.ProcessorConfig(min_pixels=32 * 32, max_pixels=9 * 32 * 32)
    return processor_lib.Processor(tokenizer, processor_lib.default_chat_template(), config)


class Fifo:
    """The obvious replay buffer: ids by first admission, the oldest leave first."""

    def __init__(self, capacity=100):
        self.ids = []
        self.capacity = capacity

    def __len__(self):
        return len(self.ids)

    def admit(self, question_id):
        if question_id not in self.ids:
            self.ids = [*self.ids, question_id][-self.capacity :]

    def draw(self, count, *, seed, step, exclude):
        free = [question_id for question_id in self.ids if question_id not in exclude]
        rng = np.random.default_rng([seed, step])
        return [free[i] for i in rng.permutation(len(free))[:count]]

    def state(self):
        return {"ids": list(self.ids)}

    def load_state(self, state):
        self.ids = list(state["ids"])


def _open(replay, **overrides):
    settings: dict[str, Any] = {"seed": 7, "questions_per_step": 4, "num_replayed": 2} | overrides
    return contextlib.closing(open_stream(Reading(SOURCE, PROCESS), replay=replay, **settings))


def _train(stream, replay, count):
    """Takes steps as a trainer does: after each, the first two new questions enter the buffer and one leaves."""
    batches = []
    for _ in range(count):
        batch = next(stream)
        for item in batch.new[:2]:
            replay.admit(item.prompt.question.id)
        if batch.step % 3 == 0:
            replay.ids.pop(0)
        batches.append(batch)
    return batches


def _content(batch):
    """The whole content of a batch, comparable with ==."""
    rows = []
    for item in (*batch.new, *batch.replayed):
        fields = vars(item.features) | {"patches": item.features.patches_IC}
        arrays = [np.asarray(value).tobytes() for value in fields.values()]
        prompt = item.prompt
        rows.append((prompt.uid, prompt.kind, prompt.parent, prompt.text, prompt.question.id, arrays))
    return (batch.step, len(batch.new), rows)


class Renamed:
    """The digits under other ids or answer types."""

    def __init__(self, name):
        self.name, self.answer_types = name, {"string": len(SOURCE)}

    def __len__(self):
        return len(SOURCE)

    def __getitem__(self, index):
        question = SOURCE[index]
        return dataclasses.replace(question, id=self.name(index, question))

    def ids(self):
        return [self[index].id for index in range(len(self))]

    def number_of(self, question_id):
        raise KeyError(question_id)

    def place(self, index):
        return f"row {index}"


def test_two_questions_of_one_id_are_refused_at_the_start():
    """They would share a uid, and with it a baseline and a place in the buffer, in any steps."""
    source = Renamed(lambda index, question: "same" if index in (3, 7) else question.id)
    settings: dict[str, Any] = {"seed": 7, "questions_per_step": 2, "num_replayed": 2, "replay": None}
    with pytest.raises(ValueError, match=r"1 question ids come more than once in the source, first 'same': the ids"):
        open_stream(Reading(source, PROCESS), **settings)


def test_two_hosts_may_not_have_one_id_either():
    with (
        contextlib.closing(
            open_stream(
                Reading(SOURCE, PROCESS), seed=7, questions_per_step=4, replay=None, num_replayed=0,
                shard=Shard(0, 2, lambda ids: [ids, ids[:1]]),
            )
        ) as stream,
        pytest.raises(ValueError, match="come more than once"),
    ):  # fmt: skip
        next(stream)


def test_a_step_holds_new_questions_as_plain_prompts():
    with _open(None) as stream:
        batches = [next(stream) for _ in range(5)]
    assert [batch.step for batch in batches] == [1, 2, 3, 4, 5]
    for batch in batches:
        assert len(batch.new) == 4 and batch.replayed == ()
        for item in batch.new:
            question = item.prompt.question
            assert item.prompt.uid == f"{batch.step}/{question.id}/plain"
            assert item.prompt.kind == "plain" and item.prompt.parent is None
            assert item.prompt.text == prompts.plain_text(question.text, TEMPLATE)
            assert bytes(item.features.token_ids_T.astype(np.uint8)).decode() == item.prompt.text
            np.testing.assert_array_equal(item.features.patches_IC, question.images[0].reshape(32, -1))


def test_no_question_occurs_twice_in_a_step_and_epochs_are_shuffled_anew():
    with _open(None) as stream:
        ids = [[item.prompt.question.id for item in next(stream).new] for _ in range(60)]
    assert all(len(set(step)) == 4 for step in ids)
    epochs = [ids[i] + ids[i + 1] for i in range(0, 60, 2)]  # 10 questions make 2 steps of 4; 2 are left over
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 25
    assert {question_id for epoch in epochs for question_id in epoch} == {SOURCE[i].id for i in range(10)}


def test_replayed_questions_are_processed_like_new_ones_and_never_repeat_the_steps_own():
    replay = Fifo()
    first_features = {}
    drawn = 0
    with _open(replay) as stream:
        for batch in _train(stream, replay, 12):
            new_ids = {item.prompt.question.id for item in batch.new}
            replayed_ids = [item.prompt.question.id for item in batch.replayed]
            assert not new_ids & set(replayed_ids) and len(set(replayed_ids)) == len(replayed_ids) <= 2
            for item in batch.new:
                first_features.setdefault(item.prompt.question.id, item)
            for item in batch.replayed:
                drawn += 1
                original = first_features[item.prompt.question.id]
                assert item.prompt.uid == f"{batch.step}/{item.prompt.question.id}/replay"
                assert item.prompt.kind == "replay" and item.prompt.text == original.prompt.text
                for name in ("token_ids_T", "positions_3T", "rope_delta", "patches_IC", "grid_thw_N3"):
                    np.testing.assert_array_equal(getattr(item.features, name), getattr(original.features, name))
    assert drawn >= 12


@pytest.mark.parametrize("expected", [0, 1, 29])
def test_as_many_are_drawn_as_are_asked_for(expected):
    class Counting(Fifo):
        asked = 0

        def draw(self, count, *, seed, step, exclude):
            self.asked = count
            return []

    replay = Counting()
    source = DigitsSource("rules", "train", 100)
    stream = open_stream(Reading(source, PROCESS), seed=0, questions_per_step=4, replay=replay, num_replayed=expected)
    with contextlib.closing(stream):
        next(stream)
    assert replay.asked == expected


@pytest.mark.parametrize("num_threads", [0, 3])
def test_what_is_admitted_after_a_step_can_be_drawn_at_the_next_and_is_in_the_state(num_threads):
    replay = Fifo()
    with _open(replay, num_threads=num_threads) as stream:
        for _ in range(3):
            assert next(stream).replayed == ()  # the threads below have run ahead by now
        with_this = next(stream)
        upcoming = _peek_ids(stream.get_state(), num_threads)
        admitted = next(SOURCE[i].id for i in range(10) if SOURCE[i].id not in upcoming)
        replay.admit(admitted)
        state = stream.get_state()
        assert json.loads(json.dumps(state))["replay"] == {"ids": [admitted]}
        assert state["step"] == with_this.step == 4
        batch = next(stream)
        assert [item.prompt.question.id for item in batch.replayed] == [admitted]
        replay.load_state({"ids": []})
        assert next(stream).replayed == ()


def _peek_ids(state, num_threads):
    """Ids of the new questions that the step after `state` will hold."""
    with _open(Fifo(), num_threads=num_threads) as stream:
        stream.set_state(state)
        return {item.prompt.question.id for item in next(stream).new}


@pytest.mark.parametrize("num_threads", [0, 3])
def test_three_steps_a_restore_and_four_are_the_same_as_seven(num_threads):
    replay = Fifo(capacity=5)
    with _open(replay, num_threads=num_threads) as stream:
        straight = [_content(batch) for batch in _train(stream, replay, 7)]
        final = stream.get_state()
    assert any(len(rows) > count for _, count, rows in straight[3:])  # something was replayed after the restore

    replay = Fifo(capacity=5)
    with _open(replay, num_threads=num_threads) as stream:
        before = [_content(batch) for batch in _train(stream, replay, 3)]
        saved = json.dumps(stream.get_state())
        _train(stream, replay, 2)  # these steps are lost with the killed process

    replay = Fifo(capacity=5)
    with _open(replay, num_threads=num_threads) as stream:
        next(stream)  # a stream that has begun, and whose threads have run ahead, can be set back too
        stream.set_state(json.loads(saved))
        after = [_content(batch) for batch in _train(stream, replay, 4)]
        assert stream.get_state() == final
    assert before + after == straight


def test_seeds_give_different_streams():
    def contents(seed):
        with _open(None, seed=seed) as stream:
            return [_content(next(stream)) for _ in range(3)]

    assert contents(7) == contents(7)
    assert contents(7) != contents(8)


def test_a_worker_process_changes_nothing():
    replay, expected = Fifo(), []
    with _open(replay) as stream:
        expected = [_content(batch) for batch in _train(stream, replay, 5)]
    replay = Fifo()
    with _open(replay, worker_count=1) as stream:
        assert [_content(batch) for batch in _train(stream, replay, 3)] == expected[:3]
        saved = json.dumps(stream.get_state())
        _train(stream, replay, 1)
        stream.set_state(json.loads(saved))
        assert [_content(batch) for batch in _train(stream, replay, 2)] == expected[3:]


def test_reformulated_prompts_take_the_same_way():
    question = SOURCE[3]
    reformulated = [Prompt(f"1/{question.id}/bcq", "bcq", question, text, "1/x/plain") for text in ("one", "zwei")]
    given = [PROCESS.plain_prompt(question, uid="u"), *reformulated]
    items = PROCESS.items_of(given)
    assert all(item.prompt is prompt for item, prompt in zip(items, given, strict=True))
    features = [item.features for item in items]
    texts = [bytes(f.token_ids_T.astype(np.uint8)).decode() for f in features]
    assert texts == [prompts.plain_text(question.text, TEMPLATE), "one", "zwei"]
    for f in features:
        np.testing.assert_array_equal(f.patches_IC, question.images[0].reshape(32, -1))
    assert PROCESS.items_of([]) == []


def test_the_opening_of_an_answer_ends_the_prompt():
    """Its tokens come after those of the text, and `num_tokens` counts them without pixels."""
    question = SOURCE[3]
    prompt = Prompt(f"1/{question.id}/prefix", "prefix", question, "one", "1/x/plain", opening="zwei")
    features = PROCESS.item(prompt).features
    assert bytes(features.token_ids_T.astype(np.uint8)).decode() == "onezwei"
    np.testing.assert_array_equal(features.positions_3T, np.tile(np.arange(7), (3, 1)))
    assert PROCESS.num_tokens(prompt) == features.num_tokens == 7
    assert PROCESS.num_tokens(dataclasses.replace(prompt, opening="")) == 3


def test_an_opening_is_text_after_the_images():
    """With a real processor: positions continue after those of the prompt, and the images do not change."""
    process = PromptProcessing(real_processor(), TEMPLATE)
    question = dataclasses.replace(SOURCE[3], images=(np.zeros((64, 96, 3), np.uint8),))  # two rows: they share places
    plain = process.plain_prompt(question, uid="u")
    prompt = dataclasses.replace(plain, opening="so </think> \\boxed{")
    before, features = process.item(plain).features, process.item(prompt).features
    ids = process.processor.encode_text(prompt.opening)
    assert len(ids) > 2 and features.token_ids_T.tolist() == [*before.token_ids_T.tolist(), *ids]
    assert features.token_ids_T.dtype == features.token_types_T.dtype == features.positions_3T.dtype == np.int32
    assert not features.token_types_T[before.num_tokens :].any() and features.rope_delta == before.rope_delta != 0
    first = before.positions_3T.max() + 1
    np.testing.assert_array_equal(features.positions_3T[:, before.num_tokens :], [range(first, first + len(ids))] * 3)
    np.testing.assert_array_equal(features.patches_IC, before.patches_IC)
    np.testing.assert_array_equal(features.grid_types_N, before.grid_types_N)
    assert process.num_tokens(prompt) == features.num_tokens
    assert before.followed_by([]) is before
    film = Video([np.zeros((64, 64, 3), np.uint8)] * 4, 2.0)
    prompt = dataclasses.replace(prompt, question=dataclasses.replace(question, videos=(film,)))
    assert process.num_tokens(prompt) == process.item(prompt).features.num_tokens > features.num_tokens


def test_videos_of_a_question_reach_the_processor():
    """As the source gives them, after the images."""
    process = PromptProcessing(real_processor(), TEMPLATE)
    frames = [np.full((32, 64, 3), level, np.uint8) for level in (0, 90, 180, 250)]
    question = dataclasses.replace(SOURCE[3], videos=(Video(frames, fps=2.0),))
    features = process.item(process.plain_prompt(question, uid="u")).features
    expected = process.processor.features(prompts.plain_text(question.text, TEMPLATE), question.images, question.videos)
    for name in ("token_ids_T", "token_types_T", "positions_3T", "rope_delta", "patches_IC", "grid_thw_N3"):
        np.testing.assert_array_equal(getattr(features, name), getattr(expected, name))
    assert features.grid_types_N.tolist() == [1, 2]


def test_a_closed_stream_and_impossible_settings_are_refused():
    with _open(None) as stream:
        next(stream)
    with pytest.raises(ValueError, match="closed"):
        next(stream)
    with pytest.raises(ValueError, match=r"data.num_questions = 10 cannot .*questions_per_step = 11: raise .* lower"):
        _open(None, questions_per_step=11)
    with pytest.raises(ValueError, match=r"rollout\.questions_per_step = 0"):
        _open(None, questions_per_step=0)
    with pytest.raises(ValueError, match=r"data\.num_questions = 0"):
        open_stream(Reading([], PROCESS), seed=0, questions_per_step=1, replay=None, num_replayed=0)  # pyright: ignore
    with _open(Fifo()) as with_buffer:
        state = with_buffer.get_state()
    with _open(None) as without, pytest.raises(ValueError, match="with a replay buffer and this run is without one"):
        without.set_state(state)


def test_a_run_does_not_continue_with_other_questions():
    """Positions would mean other questions, and a replayed one may be gone."""
    with _open(Fifo()) as stream:
        next(stream)
        state = json.loads(json.dumps(stream.get_state()))
    source = Renamed(lambda index, question: question.id if index != 3 else "new")
    other = open_stream(Reading(source, PROCESS), seed=7, questions_per_step=4, num_replayed=2, replay=Fifo())
    with contextlib.closing(other) as stream, pytest.raises(RunError, match="no longer those that it began with"):
        stream.set_state(state)


@pytest.mark.parametrize("worker_count", [0, 1])
def test_the_real_processor_sees_one_vision_token_a_digit(worker_count):
    processor = real_processor()
    process = PromptProcessing(processor, TEMPLATE)
    stream = open_stream(
        Reading(SOURCE, process), seed=0, questions_per_step=4, replay=None, num_replayed=0, worker_count=worker_count
    )
    with contextlib.closing(stream):
        items = [item for _ in range(2) for item in next(stream).new]
    for item in items:
        question, features = item.prompt.question, item.features
        assert (features.token_types_T == 1).sum() == len(question.answer)
        assert features.patches_IC.shape[0] == 4 * len(question.answer)
        assert item.prompt.text in processor.decode(features.token_ids_T)
        again = processor.features(item.prompt.text, question.images)
        np.testing.assert_array_equal(features.token_ids_T, again.token_ids_T)
        np.testing.assert_array_equal(features.patches_IC, again.patches_IC)


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_read_the_shards_of_what_one_reads(count):
    """For more than an epoch, in the same order; and a saved position is valid for any number of hosts."""

    def opened(index: int, of: int):
        shard = Shard(index, of, lambda ids: [ids])
        return open_stream(
            Reading(SOURCE, PROCESS), seed=7, questions_per_step=4, replay=None, num_replayed=0, shard=shard
        )

    with contextlib.ExitStack() as stack:
        one, *hosts = (
            stack.enter_context(contextlib.closing(opened(index, of)))
            for index, of in [(0, 1), *((index, count) for index in range(count))]
        )
        for _ in range(2 * len(SOURCE) // 4):
            parts = [[item.prompt.uid for item in next(host).new] for host in hosts]
            assert [uid for row in zip(*parts, strict=True) for uid in row] == [i.prompt.uid for i in next(one).new]
        state = hosts[1].get_state()
        assert state == one.get_state()
        expected = [item.prompt.uid for item in next(one).new]
        one.set_state(state)
        assert [item.prompt.uid for item in next(one).new] == expected


def test_shards_that_are_not_equal_are_refused():
    with pytest.raises(
        ValueError, match=r"questions_per_step=4 is not divisible by the 3 hosts of the run; set it to 6"
    ):
        open_stream(
            Reading(SOURCE, PROCESS), seed=7, questions_per_step=4, replay=None, num_replayed=0, shard=Shard(0, 3)
        )


def test_no_jax_backend_is_initialised():
    script = """
        import contextlib, sys
        from tests.data.test_pipeline import Fifo, PROCESS, SOURCE, Reading, _train, open_stream

        replay = Fifo()
        stream = open_stream(
            Reading(SOURCE, PROCESS), seed=0, questions_per_step=4, replay=replay, num_replayed=2, num_threads=2
        )
        with contextlib.closing(stream):
            batches = _train(stream, replay, 4)
            stream.set_state(stream.get_state())
        assert batches[-1].replayed
        PROCESS.items_of([item.prompt for item in batches[-1].new])
        if "jax" in sys.modules:
            from jax._src import xla_bridge
            assert not xla_bridge.backends_are_initialized()
        print("untouched")
    """
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"JAX_PLATFORMS": "nonexistent", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "untouched"
