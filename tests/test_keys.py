"""Random streams: a seed gives the same run in every version of the package."""

from __future__ import annotations

import pytest

from zppo_jax.keys import ORDERS, ROLLOUTS, RandomStream


def test_streams_do_not_drift_between_versions():
    """Pinned: if a number changes, a seed gives another run, and a run that was begun cannot be continued."""
    stream = RandomStream(1, 2, "bcq")
    assert stream.hash("q") == 317001534644666170537760885349637576520
    assert stream.generator("q").integers(1000, size=4).tolist() == [901, 8, 97, 246]
    assert RandomStream(3, 4, "minibatches").order(6, 1).tolist() == [3, 4, 1, 2, 0, 5]
    assert RandomStream(3, 4, "compared").order(6).tolist() == [0, 2, 3, 5, 4, 1]
    assert ROLLOUTS == {
        "student": 1,
        "teacher": 2,
        "reformulated": 3,
        "evaluate": 4,
        "write": 5,
        "request": 6,
        "judge": 7,
    }


def test_every_part_of_a_stream_makes_it_another():
    base = RandomStream(1, 2, "bcq")
    others = [RandomStream(9, 2, "bcq"), RandomStream(1, 9, "bcq"), RandomStream(1, 2, "ncq")]
    hashes = {stream.hash(question) for stream in (base, *others) for question in ("", "q", "r")}
    assert len(hashes) == 12
    assert base.generator("q").integers(2**60) == base.generator("q").integers(2**60)
    orders = {tuple(RandomStream(seed, step, purpose).order(20, epoch)) for seed in (1, 2) for step in (1, 2)
              for purpose in ORDERS for epoch in (0, 1)}  # fmt: skip
    assert len(orders) == 16
    with pytest.raises(KeyError):
        RandomStream(1, 2, "student").order(3)
