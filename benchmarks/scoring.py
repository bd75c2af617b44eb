r"""Answers scored per second, by one process and one child on one core.

    python -m benchmarks.scoring [--core=0] [--answers=3000]

One JSON line per case. "rule": numbers, letters, words and quantities. "mixture": every third pair is one that strings
and numbers do not settle (roots, multiples of \pi, polynomials, lists, intervals, equations); half of all answers are
right, and no pair occurs twice. "groups": the mixture, each gold with eight responses that give four answers. "child":
pairs that only the computer algebra system can compare. The rates are per second of processor time of process and
child, so that a busy machine matters less; the peer, an older commit of this repository, runs this file with its own
package.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
from collections.abc import Callable, Sequence

Pair = tuple[str, str, bool]
"""Gold, answer, and whether the answer is right."""


def _by_rule(rng: random.Random, wrong: int) -> tuple[str, str]:
    a, b = rng.randint(100, 10**6), rng.randint(2, 999)
    letter, other = rng.sample("ABCD", 2)
    word = "".join(rng.choices("bdfgklmnprst", k=8))
    return rng.choice(
        [
            (str(a), f"{a + wrong:,}"),
            (letter, f"({other if wrong else letter})"),
            (f"{a}/{b}", rf"\frac{{{2 * a + wrong}}}{{{2 * b}}}"),
            (f"{a}.5", f"{a + wrong}.50"),
            (f"{a} cm", rf"{a + wrong}\text{{ cm}}"),
            (f"o{word}", f"o{word}{'s' * wrong}"),
        ]
    )


def _by_algebra(rng: random.Random, wrong: int) -> tuple[str, str]:
    a, b, c = (rng.randint(2, 400) for _ in range(3))
    n = rng.choice([2, 3, 5, 6, 7, 10, 11, 13])
    return rng.choice(
        [
            (rf"{a}\sqrt{{{n}}}", rf"\sqrt{{{(a + wrong) ** 2 * n}}}"),
            (rf"\frac{{{a}\sqrt{{{n}}}}}{{{n}}}", rf"\frac{{{a + wrong}}}{{\sqrt{{{n}}}}}"),
            (rf"{a}+{b}\sqrt{{{n}}}", rf"{b}\sqrt{{{n}}}+{a + wrong}"),
            (rf"{a}\pi", rf"\frac{{{2 * a + wrong}\pi}}{{2}}"),
            (rf"({a},-{b})", rf"(\frac{{{2 * a}}}{{2}}, {-b - wrong})"),
            (rf"x^2+{a}x+{b}", rf"{b + wrong}+{a}x+x^{{2}}"),
            (rf"[{a},{a + b}]", rf"{a - wrong}\le x\le {a + b}"),
            (rf"\{{{a},{b + 500}\}}", rf"\{{{b + 500 + wrong},{a}\}}"),
            (rf"y={a}x+{c}", rf"y={c + wrong}+{a}x"),
        ]
    )


def _by_child(rng: random.Random, wrong: int) -> tuple[str, str]:
    a, b = rng.randint(2, 400), rng.randint(2, 400)
    return rng.choice(
        [
            (rf"{a}\ln {b}", rf"{a + wrong}\ln({b})"),
            (rf"\sin x+{a}", rf"{a + wrong}+\sin x"),
            (rf"\sqrt[3]{{{a}}}", rf"{a + wrong}^{{1/3}}"),
        ]
    )


def distinct_pairs(count: int, kinds: Sequence[Callable[[random.Random, int], tuple[str, str]]]) -> list[Pair]:
    """`count` pairs, each once, the kinds taken in turn."""
    rng = random.Random(0)
    found: dict[tuple[str, str], bool] = {}
    while len(found) < count:
        wrong = rng.randrange(2)
        found.setdefault(kinds[len(found) % len(kinds)](rng, wrong), not wrong)
    return [(gold, answer, right) for (gold, answer), right in found.items()]


def in_groups(pairs: Sequence[Pair]) -> list[Pair]:
    """The first eighth of the pairs in groups of eight: the right or wrong answer as drawn, and three others, twice."""
    others = ["17", r"\sqrt{17}", "none"]
    return [
        one
        for gold, answer, right in pairs[: len(pairs) // 8]
        for one in [(gold, answer, right), *((gold, other, False) for other in others)] * 2
    ]


def processor_seconds() -> float:
    """Processor seconds of this process and its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def seconds_of(pairs: Sequence[Pair]) -> float:
    """Processor seconds to score the pairs with a new pool, including a child's start. Raises for a wrong verdict."""
    from zppo_jax.rewards import Answer, ScoringPool

    start = processor_seconds()
    with ScoringPool(1, 10.0) as pool:
        items = [Answer(rf"<think>so it is</think> Thus \boxed{{{answer}}}.", gold) for gold, answer, _ in pairs]
        verdicts = pool.score_many(items)
    for (gold, answer, right), verdict in zip(pairs, verdicts, strict=True):
        if verdict.correct != right:
            raise RuntimeError(f"{answer!r} for {gold!r} was scored {verdict}, not {right}")
    return processor_seconds() - start


def cases(answers: int) -> dict[str, list[Pair]]:
    """The pairs of each case."""
    mixture = distinct_pairs(answers, [_by_rule, _by_rule, _by_algebra])
    return {
        "rule": distinct_pairs(answers, [_by_rule]),
        "mixture": mixture,
        "groups": in_groups(mixture),
        "child": distinct_pairs(max(answers // 30, 1), [_by_child]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--answers", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    for name, pairs in cases(options.answers).items():
        # Each round is a separate process, so that no cache of an earlier one helps.
        rates = [len(pairs) / _in_fork(pairs) for _ in range(options.rounds)]
        print(
            json.dumps({"case": name, "answers": len(pairs), "per_second": round(statistics.median(rates))}), flush=True
        )


def _in_fork(pairs: Sequence[Pair]) -> float:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(writer, str(seconds_of(pairs)).encode())
        except Exception as error:
            print(f"benchmarks.scoring: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit("benchmarks.scoring: a case failed")
    return float(text)


if __name__ == "__main__":
    main()
