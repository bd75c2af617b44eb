r"""How often the grader agrees with the truth, on golds in many notations: python -m benchmarks.notations

Each template draws a gold as a value, writes it in at least ten ways that mean the same, and draws near values that do
not. Prints, for each kind of gold, how many right answers are refused and how many wrong ones are rewarded.

  python -m benchmarks.notations --golds=12500 --seed=0 [--show]
"""

from __future__ import annotations

import argparse
import collections
import random
import time
from collections.abc import Sequence

from benchmarks.notation_cases import KINDS
from zppo_jax.rewards import Answer, ScoringPool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golds", type=int, default=12_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the first faults of each kind")
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    answers: list[tuple[str, Answer, bool]] = []
    for number in range(chosen.golds):
        kind = KINDS[number % len(KINDS)]
        case = kind(rng)
        for texts, expected in ((case.same, True), (case.other, False)):
            answers += [
                (kind.__name__, Answer(rf"\boxed{{{one}}}", case.gold, case.answer_type), expected) for one in texts
            ]
    start = time.perf_counter()
    with ScoringPool(chosen.workers, 10.0) as pool:
        verdicts = pool.score_many(answer for _, answer, _ in answers)
    seconds = time.perf_counter() - start
    report(answers, [verdict.correct for verdict in verdicts], chosen.show)
    print(f"{chosen.golds} golds, {len(answers)} answers in {seconds:.0f} s")


def report(answers: Sequence[tuple[str, Answer, bool]], found: Sequence[bool], show: bool) -> None:
    totals: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for (kind, answer, expected), correct in zip(answers, found, strict=True):
        fault = "" if correct == expected else "refused" if expected else "rewarded"
        for name in (kind, "all"):
            totals[name].update(["right" if expected else "wrong", *filter(None, [fault])])
        if show and fault and totals[kind][fault] <= 6:
            print(f"{fault} {kind}: {answer.response} for {answer.gold}")
    print(f"{'kind':<18}{'right':>8}{'refused':>9}{'wrong':>8}{'rewarded':>10}{'agreement':>11}")
    for name, count in totals.items():
        total = count["right"] + count["wrong"]
        share = 1 - (count["refused"] + count["rewarded"]) / total
        numbers = f"{count['right']:>8}{count['refused']:>9}{count['wrong']:>8}{count['rewarded']:>10}"
        print(f"{name:<18}{numbers}{100 * share:>10.2f}%")


if __name__ == "__main__":
    main()
