"""Only a verdict is a verdict."""

from __future__ import annotations

import pytest

from zppo_jax.judge.verdict import Ruling, parse


@pytest.mark.parametrize(
    ("output", "ruling"),
    [
        ('{"verdict": "correct"}', "correct"),
        (' {"verdict":"wrong"}\n', "wrong"),
        ('<think>{"verdict": "correct"}, no</think>\n\n{"verdict": "wrong"}', "wrong"),
        ('\n</think>\n\n{"verdict": "correct"}', "correct"),
        ('{"\\u0076erdict": "correct"}', "correct"),
    ],
)
def test_a_verdict_is_read(output, ruling):
    assert parse(output) == ruling


@pytest.mark.parametrize(
    "output",
    [
        *("", " ", "correct", '"correct"', "null", "[]", "{}", "1", "{", '{"verdict"', '{"verdict": "correct"'),
        *('{"verdict": "Correct"}', '{"verdict": true}', '{"verdict": ["correct"]}', '{"verdict": {"a": 1}}'),
        *('{"verdict": "correct" or "wrong"}', '{"verdict": "correct", "reason": "x"}', '{"Verdict": "correct"}'),
        *('{"verdict": "wrong", "verdict": "correct"}', '{"verdict": "correct"}{"verdict": "wrong"}'),
        *('[["verdict", "correct"]]', '[{"verdict": "correct"}]', 'Sure: {"verdict": "correct"}'),
        "{'verdict': 'correct'}",
        *('{"verdict": "correct"} because', '```json\n{"verdict": "correct"}\n```', '{"verdict": " correct "}'),
        *('{"verdict": "correct"}</think>', "[" * 100_000, '{"verdict": "correct"}' + " " * 300 + "x", "NaN", "\ud800"),
        *('{"verdict": "wrong"}\n{"verdict": "correct"}', '{"verdict": "correct",}'),
    ],
)  # fmt: skip
def test_everything_else_is_malformed(output):
    assert parse(output) is Ruling.MALFORMED
