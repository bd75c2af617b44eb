"""The replay buffer against a ten-line model of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zppo_jax.zppo import ReplayBuffer

question_ids = st.sampled_from([f"q{index}" for index in range(12)])
accuracies = st.sampled_from([index / 8 for index in range(9)])
visits = st.lists(st.dictionaries(question_ids, accuracies, max_size=8), max_size=12)


def model_refresh(queue: list[tuple], visited: dict[str, float], step: int, capacity: int) -> list[list[str]]:
    """The ten-line model: a list of (id, accuracy, step), first admitted first."""
    inside = [entry[0] for entry in queue]
    graduated = [name for name in visited if name in inside and visited[name] >= 0.5]
    stay = [name for name in visited if name in inside and visited[name] < 0.5]
    admitted = [name for name in visited if name not in inside and visited[name] < 0.5]
    queue[:] = [entry for entry in queue if entry[0] not in graduated]
    queue += [(name, visited[name], step) for name in admitted]
    evicted = [queue.pop(0)[0] for _ in range(max(0, len(queue) - capacity))]
    return [admitted, graduated, evicted, stay]


@given(visits, st.integers(1, 9))
def test_refresh_follows_the_model(steps: list[dict[str, float]], capacity: int):
    buffer, queue, totals = ReplayBuffer(capacity), [], [0, 0]
    for step, visited in enumerate(steps):
        change = buffer.refresh(visited, step)
        expected = model_refresh(queue, visited, step, capacity)
        done = (change.admitted, change.graduated, change.evicted, change.still_hard)
        assert [list(ids) for ids in done] == expected
        assert buffer.state()["entries"] == [list(entry) for entry in queue]
        assert len(buffer) == len(queue) <= capacity
        totals = [totals[0] + len(expected[1]), totals[1] + len(expected[2])]
        assert [buffer.graduated_total, buffer.evicted_total] == totals
        assert sum(buffer.graduated_by_accuracy.values()) == totals[0]
        assert sum(buffer.inside_by_accuracy.values()) == len(queue)
        assert all(question_id in buffer for question_id, *_ in queue)


@given(visits, st.integers(1, 9))
def test_refresh_position_moves_what_stays_hard_to_the_back(steps: list[dict[str, float]], capacity: int):
    """Only admissions of the same step come after or between them, in the order of the visit."""
    buffer = ReplayBuffer(capacity, refresh_position=True)
    for step, visited in enumerate(steps):
        before = [name for name in buffer.ids if name not in visited]
        change = buffer.refresh(visited, step)
        order = before + [name for name, accuracy in visited.items() if accuracy < 0.5]
        assert buffer.ids == tuple(order[len(change.evicted) :])
        assert change.evicted == tuple(order[: len(change.evicted)])


def test_the_boundary_and_the_age():
    buffer = ReplayBuffer(2)
    assert buffer.refresh({"a": 0.375, "easy": 0.5}, step=0).admitted == ("a",)
    assert buffer.refresh({"b": 0.0}, step=1).evicted == ()
    assert buffer.refresh({"a": 0.25}, step=2).still_hard == ("a",)
    assert buffer.entry("a").accuracy == 0.375 and buffer.entry("a").step == 0  # as at the first admission
    assert buffer.refresh({"c": 0.125}, step=3).evicted == ("a",)  # the oldest, though it was visited last
    assert buffer.refresh({"b": 0.5, "unknown": 1.0}, step=4).graduated == ("b",)
    assert buffer.graduated_by_accuracy == {"0": 1} and buffer.evicted_by_accuracy == {"0.375": 1}
    assert buffer.refresh({"b": 0.25}, step=5).admitted == ("b",)  # hard again: a new entry
    assert buffer.entry("b").accuracy == 0.25 and buffer.entry("b").step == 5
    assert buffer.refresh({"b": 0.25}, step=6, threshold=0.25).graduated == ("b",)


@given(visits, st.integers(1, 9), st.booleans(), st.integers(0, 12))
def test_state_goes_through_json_and_continues_equally(
    steps: list[dict[str, float]], capacity: int, move: bool, cut: int
):
    buffer = ReplayBuffer(capacity, refresh_position=move)
    for step, visited in enumerate(steps[:cut]):
        buffer.refresh(visited, step)
    text = json.dumps(buffer.state(), allow_nan=False)
    copy = ReplayBuffer.from_state(json.loads(text))
    assert json.dumps(copy.state()) == text
    for step, visited in enumerate(steps[cut:], start=cut):
        assert copy.draw(3, 7, step) == buffer.draw(3, 7, step)
        assert copy.refresh(visited, step) == buffer.refresh(visited, step)
    assert json.dumps(copy.state()) == json.dumps(buffer.state())


def test_numpy_values_become_plain_ones():
    buffer = ReplayBuffer(np.int64(2))  # type: ignore[arg-type]
    buffer.refresh({"a": np.float32(0.125), "b": np.float32(0)}, step=np.int64(1))  # type: ignore[dict-item, arg-type]
    assert json.loads(json.dumps(buffer.state())) == buffer.state()


@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 2**40), st.integers(0, 2**40), st.sets(question_ids))
def test_draw_is_without_replacement_reproducible_and_leaves_out(
    size: int, count: int, seed: int, step: int, exclude: set[str]
):
    buffer = filled(size)
    drawn = buffer.draw(count, seed, step, exclude)
    eligible = set(buffer.ids) - exclude
    assert len(drawn) == len(set(drawn)) == min(count, len(eligible))
    assert set(drawn) <= eligible
    assert drawn == buffer.draw(count, seed, step, exclude)
    assert len(buffer) == size  # a draw removes nothing


def filled(size: int) -> ReplayBuffer:
    buffer = ReplayBuffer(100)
    buffer.refresh({f"q{index}": 0.0 for index in range(size)}, step=0)
    return buffer


@pytest.mark.parametrize("vary", ["seed", "step"])
def test_draw_is_uniform(vary: str):
    """Chi-square of 6,000 draws of 3 out of 20, over pairs of neighbours in the order too."""
    buffer, size, count, draws = filled(20), 20, 3, 6000
    hits, pairs = np.zeros(size), np.zeros((size, size))
    for number in range(draws):
        drawn = [int(name[1:]) for name in buffer.draw(count, *((number, 1) if vary == "seed" else (1, number)))]
        hits[drawn] += 1
        pairs[drawn[0], drawn[1]] += 1
    expected = draws * count / size
    assert ((hits - expected) ** 2 / expected).sum() < 43.8  # 0.1 % point of chi-square with 19 degrees of freedom
    ordered = pairs[~np.eye(size, dtype=bool)]
    expected = draws / ordered.size
    assert ((ordered - expected) ** 2 / expected).sum() < 469  # 0.1 % point with 379 degrees of freedom


def test_draws_of_different_seeds_and_steps_differ():
    buffer = filled(50)
    drawn = {tuple(buffer.draw(10, seed, step)) for seed in range(5) for step in range(5)}
    assert len(drawn) == 25


def test_what_is_refused():
    for capacity in (0, -1):
        with pytest.raises(ValueError, match=f"replay.capacity={capacity}"):
            ReplayBuffer(capacity)
    buffer = filled(3)
    before = buffer.state()
    with pytest.raises(ValueError, match="-1"):
        buffer.draw(-1, 0, 0)
    for accuracy in (float("nan"), -0.1, 1.5):
        with pytest.raises(ValueError, match="question 'bad'"):
            buffer.refresh({"new": 0.0, "q0": 1.0, "bad": accuracy}, step=1)
    assert buffer.state() == before  # nothing changed


def test_a_damaged_state_is_refused():
    state = filled(3).state()
    for damage in ({"entries": [*state["entries"], state["entries"][0]]}, {"capacity": 2}, {"graduated_total": 1}):
        with pytest.raises(ValueError, match="checkpoint is damaged"):
            ReplayBuffer.from_state({**state, **damage})
