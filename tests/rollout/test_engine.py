"""The engine: results belong to their prompts, whatever else is sampled, in any batches."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from tests import tiny_model
from tests.tiny_model import SHAPES, engine, items, sample
from zppo_jax.compilation import Compiler
from zppo_jax.keys import ROLLOUTS, RandomStream
from zppo_jax.models.qwen3_5 import decode_weights
from zppo_jax.rollout import slots, state
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample as sample_requests
from zppo_jax.rollout.shapes import PromptTooLongError, Shapes

NUM_SAMPLES = 3  # does not divide the 8 rows of a call


def requests(*places: int, num_samples: int = NUM_SAMPLES) -> list[Request]:
    chosen = [items()[place] for place in places or range(len(items()))]
    return [Request(one.prompt.uid, one.features, num_samples) for one in chosen]


def same(first: list[Sample], second: list[Sample]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.token_ids_T, b.token_ids_T)
        np.testing.assert_allclose(a.logprobs_T, b.logprobs_T, atol=1e-4)
        assert a.finish_reason == b.finish_reason


@pytest.fixture(scope="module")
def together() -> list[list[Sample]]:
    return sample(engine(), requests())


def drawn(samples: list[list[Sample]]) -> list[tuple[int, ...]]:
    return [tuple(one.token_ids_T.tolist()) for group in samples for one in group]


def long(samples: list[list[Sample]]) -> list[tuple[int, ...]]:
    chosen = [tokens for tokens in drawn(samples) if len(tokens) > 3]
    assert chosen
    return chosen


def test_samples_are_what_they_say(together):
    stop_ids, reasons = tiny_model.model().config.stop_token_ids, set()
    assert [len(group) for group in together] == [NUM_SAMPLES] * len(items())
    assert len(set(drawn(together))) > 0.8 * NUM_SAMPLES * len(items())
    for one in (one for group in together for one in group):
        length = len(one.token_ids_T)
        assert 1 <= length <= SHAPES.max_new_tokens and one.logprobs_T.shape == (length,)
        assert (one.token_ids_T.dtype, one.logprobs_T.dtype) == (np.int32, np.float32)
        assert (one.logprobs_T < 0).all()
        assert not np.isin(one.token_ids_T[:-1], stop_ids).any()
        assert (one.token_ids_T[-1] in stop_ids) == (one.finish_reason == "stop")
        assert one.finish_reason == "stop" or length == SHAPES.max_new_tokens
        assert not tiny_model.banned_V()[one.token_ids_T].any()
        reasons.add(one.finish_reason)
    assert reasons == {"stop", "length"}, "the test needs both"


@pytest.mark.parametrize("order", [(6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 1, 5, 2, 4)])
def test_results_come_in_the_order_of_the_requests(order, together):
    for place, group in zip(order, sample(engine(), requests(*order)), strict=True):
        same(group, together[place])


def test_other_requests_change_nothing(together):
    for place in (0, 3):
        (alone,) = sample(engine(), requests(place))
        same(alone, together[place])


def test_more_samples_begin_with_the_same(together):
    """Sample i of a prompt depends on i, not on the number of samples; 17 of one prompt need three rounds."""
    (many,) = sample(engine(), requests(1, num_samples=17))
    same(many[:NUM_SAMPLES], together[1])
    assert len(set(drawn([many]))) > 12


@pytest.mark.parametrize(("num_slots", "prompts_per_call", "chunk"), [(5, 3, 8), (40, 7, 1)])
def test_batch_sizes_change_nothing(num_slots, prompts_per_call, chunk, together):
    """Neither do the prompt bucket (here one of another length holds all prompts) and the tokens of a chunk."""
    shapes = dataclasses.replace(SHAPES, buckets=(24,))
    other = engine(num_slots, prompts_per_call, shapes, chunk)
    for group, expected in zip(sample(other, requests()), together, strict=True):
        same(group, expected)


def test_identity_decides_the_draw(together):
    """Seed, step, purpose, uid: another value gives another stream, the same values the same one.

    Responses of three tokens or fewer may be equal by chance; at this temperature longer ones are not.
    """
    same(sample(engine(), requests(0))[0], together[0])
    asked = requests(0, num_samples=16)
    hot = functools.partial(sample, engine(), temperature=2.0)
    seen = set(long(hot(asked)))
    changed = [{"seed": 1}, {"step": 2}, *({"purpose": purpose} for purpose in ROLLOUTS if purpose != "student")]
    for settings in changed:
        other = set(long(hot(asked, **settings)))
        assert not other & seen, settings
        seen |= other
    renamed = [dataclasses.replace(asked[0], uid="1/a/bcq")]
    assert not set(long(hot(renamed))) & seen


def test_purposes_are_distinct():
    assert len(set(ROLLOUTS.values())) == len(ROLLOUTS)


def test_what_was_done_is_counted(together):
    messages: list[str] = []
    asked = [dataclasses.replace(one, draw=RandomStream(0, 1, "student")) for one in requests()]
    counting = dataclasses.replace(engine(), report=messages.append, kept=Kept())
    sample_requests(counting, tiny_model.model().params, asked)
    done = counting.kept.counters
    samples = [one for group in together for one in group]
    assert done.finished == len(samples) and len(messages) == 1 + -(-done.steps // engine().chunk), "after every chunk"
    assert messages[-1].startswith(f"rollouts {len(samples)}/{len(samples)}  ")
    assert done.tokens == sum(len(one.token_ids_T) for one in samples) and done.prompts == len(items())
    assert done.longest == SHAPES.max_new_tokens
    assert done.truncated == sum(one.finish_reason == "length" for one in samples)
    assert done.slot_steps == 8 * done.steps and done.occupancy == done.tokens / done.slot_steps


def test_no_requests_no_samples():
    assert sample(engine(), []) == []


def test_a_prompt_too_long_names_itself_and_the_mend():
    long = tiny_model.item("long", text="9" * 40)
    request = Request(long.prompt.uid, long.features, 1)
    length = long.features.num_tokens
    with pytest.raises(PromptTooLongError, match=rf"1/long/plain has {length} tokens.*prompt\.buckets=\(12, 16\)"):
        sample(engine(), [*requests(0), request])


@pytest.mark.parametrize(("num_tokens", "bucket"), [(2, 0), (13, 0), (14, 1), (17, 1)])
def test_a_bucket_holds_the_prompt_without_its_last_token(num_tokens, bucket):
    prompt = dataclasses.replace(items()[0].features, token_ids_T=np.zeros(num_tokens, np.int32))
    assert SHAPES.bucket_of(prompt) == bucket
    assert SHAPES.holds(prompt)


def test_holds_and_bucket_of_agree():
    prompt = dataclasses.replace(items()[0].features, token_ids_T=np.zeros(18, np.int32))
    assert not SHAPES.holds(prompt)
    with pytest.raises(PromptTooLongError):
        SHAPES.bucket_of(prompt)


def test_images_that_a_prompt_has_no_room_for_are_refused_by_name():
    with_image = tiny_model.item("many", num_images=1)
    few = dataclasses.replace(SHAPES, buckets=(500,), patch_slots=with_image.features.num_patches - 1)
    assert not few.holds(with_image.features)
    with pytest.raises(PromptTooLongError, match=r"prompt many shows 1 images of together .*raise prompt\.max_images"):
        few.bucket_of(with_image.features, "many")


class CountingCompiler(Compiler):
    """Runs nothing; counts the programs that would be compiled."""

    def __init__(self):
        super().__init__(num_threads=1)
        self.asked: list[str] = []

    def program(self, name, lower, kind="sequence", mesh=None):
        self.asked.append(name)
        return super().program(name, lower, kind, mesh)


def test_compiled_programs_are_bounded(together):
    """A hundred prompts of mixed lengths, with and without images: a prefill and a fill for each bucket, one decode.

    A program refuses other shapes, so the names are enough.
    """
    counting = CountingCompiler()
    small = dataclasses.replace(engine(), compiler=counting, name="bounded: ")
    counting._programs = {
        name.replace(engine().name, "bounded: "): program for name, program in tiny_model.compiler()._programs.items()
    }
    jitted = (state.empty, slots.prefill, slots.fill, slots.decode, decode_weights.join)
    before = [tiny_model.cache_size(one) for one in jitted]
    mixed = [tiny_model.item(chr(65 + i % 50), i % 2, "?" * (1 + i // 50)) for i in range(100)]
    sample(small, [Request(one.prompt.uid, one.features, 1 + i % 4) for i, one in enumerate(mixed)])
    by_bucket = [
        f"bounded: {what} {length} tokens" for what in ("prefill of", "fill of 24 keys after") for length in (12, 16)
    ]
    assert set(counting.asked) == {f"bounded: {one}" for one in ("vision", "weights", "decode over 24 keys")} | set(
        by_bucket
    )
    after = [tiny_model.cache_size(one) for one in jitted]
    assert after == before, "nothing was compiled beside the compiler"


def test_prepare_asks_for_every_program():
    class Recorder(CountingCompiler):
        def program(self, name, lower, kind="sequence", mesh=None):
            self.asked.append(name)

    recorder = Recorder()
    shapes = Shapes(buckets=(8, 10, 32), patch_slots=16, max_new_tokens=4)
    dataclasses.replace(engine(), shapes=shapes, compiler=recorder, name="").prepare(tiny_model.model().params)
    assert recorder.asked == [
        "vision", "weights",
        "prefill of 8 tokens", "fill of 14 keys after 8 tokens", "decode over 14 keys",
        "prefill of 10 tokens", "fill of 14 keys after 10 tokens", "decode over 14 keys",
        "prefill of 32 tokens", "fill of 36 keys after 32 tokens", "decode over 36 keys",
    ], "short prompts first, which are needed first"  # fmt: skip
