"""The values that the benchmarks compute besides time."""

import numpy as np
import pytest

from benchmarks import compare, model, models, rollout, step, update, update_cases
from benchmarks.rollout_cases import CASES
from benchmarks.turns import Turns
from zppo_jax.rewards.grade import grade
from zppo_jax.update.advantages import group_advantages


def test_all_sides_of_all_cases_are_programs():
    import importlib.util

    modules = {module for case in CASES.values() for module in rollout.sides(case).values()}
    modules |= {module for case in update_cases.UPDATES.values() for module in update.sides(case).values()}
    modules |= {step.PEERS[case.peer] for case in update_cases.STEPS.values()}
    assert len(modules) == 8
    assert all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize(
    ("script", "case"),
    [(model, "training-10M"), (rollout, "rollout-8.9M"), (update, "update-9.47M-devices"), (step, "step-9.47M-tunix")],
)
def test_an_unknown_case_is_an_error_that_lists_the_cases(script, case, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["nothing"])
    message = " ".join(capsys.readouterr().err.split())
    assert "no such case: nothing; give some of" in message and case in message


def test_lengths_are_spread_between_their_ends_and_the_same_each_time():
    case = CASES["rollout-8.9M-lengths"]
    lengths = case.lengths
    assert len(lengths) == 64 and lengths.min() >= 16 and lengths.max() <= 512
    np.testing.assert_array_equal(lengths, case.lengths)
    assert case.tokens == lengths.sum()
    # Log-normal: the median is the geometric middle of the ends, the mean lies above it.
    assert np.median(lengths) == pytest.approx(90.5, abs=2) and lengths.mean() == pytest.approx(127, abs=3)
    assert (np.diff(lengths) < 0).any() and (np.diff(lengths) > 0).any()
    assert CASES["rollout-8.9M-groups"].tokens == 8 * 8 * 128


@pytest.mark.parametrize(
    ("ours", "peer"), [([3, 1.0], [4, 1.0]), ([3, 1.0], [3, 1.01]), ([3], [3, 1.0]), ([100_000], [100_001])]
)
def test_sides_that_differ_are_an_error(ours: list[float], peer: list[float]):
    with pytest.raises(ValueError, match=r"rollout-1.1M: ours computed .* speeds mean nothing"):
        compare.require_agreement(CASES["rollout-1.1M"], [ours, peer])


def test_sides_may_differ_by_rounding():
    compare.require_agreement(CASES["rollout-1.1M"], [[3, 1.0, -5.5], [3, 1.0005, -5.5]])


def test_names_of_models_count_their_parameters():
    counted = {name: models.num_text_parameters(name) for name in ("1.1M", "8.9M", "0.8B", "1.12M", "9.47M", "0.1M")}
    assert {name: f"{count / 1e6:.2f}M" for name, count in counted.items()} == {
        "1.1M": "1.07M",
        "8.9M": "8.88M",
        "0.8B": "752.39M",
        "1.12M": "1.12M",
        "9.47M": "9.47M",
        "0.1M": "0.12M",
    }


def test_share_of_the_roofline():
    case = CASES["rollout-0.8B"]
    results = {
        "ours": {"tokens_per_cpu_second": 10.0},
        # 8 GiB moved in a second: with 4 GiB of weights two steps a second, of four tokens each.
        "copy": {"cpu_seconds": [0.5, 1.0, 30.0]},
    }
    found = rollout.roofline(case, results, 4 * 2**30)
    assert found["roofline_tokens_per_second"] == 8.0
    assert found["roofline_share"] == 1.25


def test_recorded_rollouts_are_the_same_each_time_and_have_the_papers_advantages():
    case = update_cases.UPDATES["update-1.12M"]
    recorded = case.recorded(512)
    np.testing.assert_array_equal(recorded.responses_PGT, case.recorded(512).responses_PGT)
    assert recorded.responses_PGT.size == case.tokens == 2 * 8 * 128
    assert (recorded.rewards_PG.std(axis=1) > 0).all()
    expected_PG = group_advantages(recorded.rewards_PG, "nonzero")
    np.testing.assert_allclose(recorded.advantages_PG, expected_PG, rtol=1e-4)


def test_half_of_a_random_models_words_are_right():
    processor = models.processor(512)
    assert processor.vocab_size == 512
    words = [processor.decode([token]) for token in range(256, 512 - 26)]
    verdicts = [grade(word, str(index % 2), "integer", "anywhere") for index, word in enumerate(words)]
    assert all(getattr(verdict, "correct", False) for verdict in verdicts)


def test_models_of_different_sizes_are_compared_by_tokens_times_parameters():
    ours = {"tokens_per_cpu_second": 30.0, "parameters": 2}
    assert step.weighted({"ours": ours, "peer": {"tokens_per_cpu_second": 10.0, "parameters": 3}}) == 2.0


def test_a_loop_is_let_through_step_by_step_and_its_error_is_raised():
    done = []

    def loop():
        for number in range(2):
            turns.begin()
            done.append(number)
        raise ValueError("no third step")

    turns = Turns(loop)
    turns.start()
    assert done == []
    turns.step()
    assert done == [0]
    with pytest.raises(ValueError, match="no third step"):
        turns.step()
