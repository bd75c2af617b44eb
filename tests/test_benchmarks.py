"""What the benchmarks compute besides time."""

import numpy as np
import pytest

from benchmarks import compare, models, rollout, rollout_gpu
from benchmarks.rollout_cases import CASES


def test_all_sides_of_all_cases_are_programs():
    import importlib.util

    modules = {module for case in CASES.values() for module in rollout.sides(case).values()}
    assert len(modules) == 4
    assert all(importlib.util.find_spec(module) for module in modules)


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
    counted = {name: models.num_text_parameters(name) for name in ("1.1M", "8.9M", "0.8B")}
    assert {name: f"{count / 1e6:.1f}M" for name, count in counted.items()} == {
        "1.1M": "1.1M",
        "8.9M": "8.9M",
        "0.8B": "752.4M",
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


def test_bytes_of_a_step_are_weights_states_and_keys():
    parts = rollout_gpu.step_bytes(models.config("0.8B"), rows=256, context=768)
    assert parts["weights"] == 2 * 752_393_024
    # 18 linear layers of 16 heads with a state of 128 x 128 in float32, read and written.
    assert parts["recurrent states"] == 2 * 4 * 256 * 18 * 16 * 128 * 128
    assert parts["convolution contexts"] == 2 * 2 * 256 * 18 * 3 * 3 * 16 * 128
    # 6 full layers with two heads of 256: 12 KiB for each token so far.
    assert parts["keys and values"] == 256 * 768 * 12 * 1024
    assert rollout_gpu.copy_bandwidth(2**20) > 0
