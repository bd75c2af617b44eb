"""python -m zppo_jax.rewards.compare FILE: responses graded by our rules and by math-verify, and where they differ."""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from zppo_jax import command
from zppo_jax.errors import ConfigError
from zppo_jax.rewards.extract import REGIONS
from zppo_jax.rewards.function import FunctionPool, RewardQuestion
from zppo_jax.rewards.grade import ANSWER_TYPES
from zppo_jax.rewards.pool import Answer, ScoringPool
from zppo_jax.rewards.verdict import Verdict

_EXAMPLE = "python -m zppo_jax.rewards.compare answers.jsonl --show=20"
_HELP = f"""\
Grades responses by our rules and by math-verify, which runs in a separate process that is killed when it takes too
long, and shows where the two differ.

  {_EXAMPLE}

Each line of the file is a JSON object:

  {{"response": "so \\\\boxed{{50\\\\%}}", "gold": "0.5", "type": "math"}}

  response    the whole text of the response
  gold        the gold answer; a list where the type takes several
  type        {", ".join(ANSWER_TYPES[:7])},
              {", ".join(ANSWER_TYPES[7:])};
              math if it is left out
  options     choices, tolerance, ... as in a question's options; may be left out
  correct     the truth, true or false; with it the table also counts the errors of both

samples.jsonl of a run has other names: write its responses and golds into such a file first. Lines that cannot be read
are named and left out. math-verify knows one rule for all types, sees the whole response and picks the answer itself.

Flags:
  --region=final   where our answer counts: final (after the last </think>) or anywhere (the paper's grader, which also
                   grades once more without degree and percent signs)
  --show=20        differences shown of each type
  --out=FILE       writes all differences as JSON lines
  --workers=2      processes of each grader
  --seconds=5      processor time of one comparison
"""

_FLAGS = flags.FlagValues()
_REGION = flags.DEFINE_enum("region", "final", list(REGIONS), "where an answer counts", flag_values=_FLAGS)
_SHOW = flags.DEFINE_integer("show", 20, "differences of a type", lower_bound=0, flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", "", "all differences", flag_values=_FLAGS)
_WORKERS = flags.DEFINE_integer("workers", 2, "processes", lower_bound=1, flag_values=_FLAGS)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "of a comparison", lower_bound=0.1, flag_values=_FLAGS)


class Row(NamedTuple):
    """A line of the file; as a question it has its number as id. `correct` is the truth, None if it is not given."""

    id: str
    response: str
    answer: Any
    answer_type: str
    options: dict[str, Any]
    correct: bool | None = None

    text = ""
    metadata: dict[str, Any] = {}  # noqa: RUF012 - part of a question, empty for all rows


class Compared(NamedTuple):
    """A row with both verdicts; `theirs` is None if math-verify failed or was killed."""

    row: Row
    ours: Verdict
    theirs: bool | None

    @property
    def differ(self) -> bool:
        return self.ours.correct != bool(self.theirs)


def by_math_verify(response: str, question: RewardQuestion) -> bool:
    """The verdict of math-verify, whose own time limits are off: this process is killed."""
    from math_verify import parse, verify

    golds = [question.answer] if isinstance(question.answer, str) else question.answer
    answer = parse(response, parsing_timeout=None)  # type: ignore[arg-type]
    return any(
        verify(parse(f"${gold}$", parsing_timeout=None), answer, timeout_seconds=None)  # type: ignore[arg-type]
        for gold in golds
    )


def read_rows(path: Path) -> Iterator[Row | str]:
    """The rows of a file, and for each line that is none a message that names it."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield _row(str(number), json.loads(line))
                except (ValueError, RecursionError) as error:
                    yield f"{path}, line {number}: {error}"


def _row(number: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    for name in ("response", "gold"):
        if name not in value:
            raise ValueError(f"{name!r} is missing")
    response, gold, kind = value["response"], value["gold"], value.get("type", value.get("answer_type", "math"))
    options, correct = value.get("options", value.get("kwargs", {})), value.get("correct")
    if not isinstance(response, str):
        raise ValueError(f"the response is {response!r:.60}, and no text")
    if not isinstance(gold, str) and not (isinstance(gold, list) and all(isinstance(one, str) for one in gold)):
        raise ValueError(f"the gold is {gold!r:.60}, and no text or list of texts")
    if kind not in ANSWER_TYPES:
        raise ValueError(f"the type {kind!r:.60} is none of {', '.join(ANSWER_TYPES)}")
    if not isinstance(options, dict) or not (correct is None or isinstance(correct, bool)):
        raise ValueError("options must be an object, and correct true or false")
    return Row(number, response, gold, kind, options, correct)


def compare(rows: Sequence[Row], region: str, workers: int, seconds: float) -> list[Compared]:
    """Both verdicts on each row. Raises ValueError for options that a type does not take."""
    with ScoringPool(workers, seconds) as pool:
        ours = pool.score_many(Answer(row.response, row.answer, row.answer_type, region, row.options) for row in rows)
    with FunctionPool("zppo_jax.rewards.compare:by_math_verify", workers, seconds) as pool:
        theirs = pool.score_many([row.response for row in rows], rows, region)
    return [
        Compared(row, one, other.correct if other.status == "ok" else None)
        for row, one, other in zip(rows, ours, theirs, strict=True)
    ]


_COLUMNS = ("rows", "both right", "both wrong", "only ours", "only theirs", "undecided", "theirs failed")


def summary(compared: Iterable[Compared]) -> list[str]:
    """The lines of the table by type; with truths, also how often each grader errs."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for one in compared:
        for name in (one.row.answer_type, "all"):
            counts[name].update(_columns_of(one))
    with_truth = any(count["has truth"] for count in counts.values())
    columns = (*_COLUMNS, *(("rewarded", "refused", "theirs rewarded", "theirs refused") if with_truth else ()))
    names = sorted(counts, key=lambda name: (name == "all", name))
    widths = [max(len(column), 6) for column in columns]
    lines = [" ".join([f"{'type':<16}", *(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))])]
    for name in names:
        numbers = (f"{counts[name][c]:>{w}}" for c, w in zip(columns, widths, strict=True))
        lines.append(" ".join([f"{name:<16}", *numbers]))
    return lines


def _columns_of(one: Compared) -> list[str]:
    """The columns that a row counts in."""
    ours, theirs = one.ours.correct, bool(one.theirs)
    verdict = {(True, True): "both right", (False, False): "both wrong", (True, False): "only ours"}
    found = ["rows", verdict.get((ours, theirs), "only theirs")]
    found += ["undecided"] * (not one.ours.decided) + ["theirs failed"] * (one.theirs is None)
    if one.row.correct is not None:
        for who, correct in (("", ours), ("theirs ", theirs)):
            if correct != one.row.correct:
                found.append(f"{who}{'rewarded' if correct else 'refused'}")
        found.append("has truth")
    return found


def shown(one: Compared) -> str:
    """A difference in one line."""
    theirs = "failed" if one.theirs is None else "right" if one.theirs else "wrong"
    ours = "right" if one.ours.correct else f"wrong ({one.ours.status})"
    truth = "" if one.row.correct is None else f", in truth {'right' if one.row.correct else 'wrong'}"
    answer = one.row.response[-80:] if one.ours.answer is None else one.ours.answer
    return f"line {one.row.id}: ours {ours}, theirs {theirs}{truth}: {answer!r:.100} for {one.row.answer!r:.80}"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 compared, 2 a mistake on the command line or in the whole file."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    given = [one for one in argv[1:] if not one.startswith("-")]
    command.read(_FLAGS, [one for one in argv if one not in given], "zppo_jax.rewards.compare", _EXAMPLE, ())
    if len(given) != 1 or not Path(given[0]).is_file():
        raise ConfigError(f"{' '.join(given) or 'no file'}: give one file of JSON lines, as in `{_EXAMPLE}`")
    read = list(read_rows(Path(given[0])))
    for message in read:
        if isinstance(message, str):
            print(f"left out: {message}", file=sys.stderr)
    rows = [row for row in read if isinstance(row, Row)]
    if not rows:
        raise ConfigError(f"{given[0]} has no line to compare; `python -m zppo_jax.rewards.compare --help` shows one")
    try:
        compared = compare(rows, _REGION.value or "final", _WORKERS.value or 1, _SECONDS.value or 5.0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{given[0]}: an option that its type does not take ({error})") from error
    _print(compared)


def _print(compared: Sequence[Compared]) -> None:
    different = [one for one in compared if one.differ]
    seen: collections.Counter[str] = collections.Counter()
    for one in different:
        seen[one.row.answer_type] += 1
        if seen[one.row.answer_type] <= (_SHOW.value or 0):
            print(shown(one))
    print("\n".join(["", *summary(compared)]))
    if _OUT.value:
        lines = [one.row._asdict() | {"ours": one.ours._asdict(), "theirs": one.theirs} for one in different]
        Path(_OUT.value).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
