"""python -m zppo_jax.teacher.precompute --config=FILE.py --out=DIR: samples the teacher's answers before a run."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config
from zppo_jax.data.check import room_of
from zppo_jax.data.processing import EncodedPrompt, PromptProcessing
from zppo_jax.data.progress import Progress
from zppo_jax.data.reading import Reading, Skipped
from zppo_jax.data.sources import open_sources
from zppo_jax.errors import RunError
from zppo_jax.keys import RandomStream
from zppo_jax.teacher.recording import Recording
from zppo_jax.teacher.rows import PRECOMPUTED
from zppo_jax.teacher.teacher import Teacher
from zppo_jax.types import Missed
from zppo_jax.zppo import prompts

_EXAMPLE = "python -m zppo_jax.teacher.precompute --config=configs/colab.py --out=answers"

_HELP = f"""\
Asks the teacher every training question of a configuration, and records its answers, so that a run needs no teacher.

  {_EXAMPLE}

The run takes them with --config.teacher.path=recorded:answers. The teacher is the configuration's: in this process, or
behind a network (docs/teacher.md). What is recorded already is not asked again: the same command continues. Summaries
cannot be sampled beforehand, as they are about the student's responses: set teacher.compress.enabled=False in the run.

Exit status: 0 all answers are there, 1 some are missing (the same command asks for them again).

Flags:
  --config=FILE.py[:METHOD]   the configuration of the run, with its --config.KEY=VALUE
  --out=DIRECTORY             the recording
  --visits=1                  how often each question is asked; a run draws teacher.num_rollouts of all its answers
  --limit=0                   ask only so many questions; 0: all of data.num_questions
"""

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", "", "the recording", flag_values=_FLAGS)
_VISITS = flags.DEFINE_integer("visits", 1, "of each question", lower_bound=1, flag_values=_FLAGS)
_LIMIT = flags.DEFINE_integer("limit", 0, "of the questions; 0: all", lower_bound=0, flag_values=_FLAGS)

_AWAY = frozenset({"unavailable", "timeout", "late", "malformed"})
"""The reasons of a teacher that does not answer at all now; others are about a question."""

_BLOCK = 64
"""The number of questions that are asked at once."""


class Done(NamedTuple):
    """The numbers of visits to questions: those wanted, those recorded, and questions that cannot be used."""

    wanted: int
    recorded: int
    skipped: int


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 all answers are recorded, 1 some are missing, 2 a mistake on the command line."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    config, rest = command.read_config(argv, _EXAMPLE)
    command.read(_FLAGS, rest, "zppo_jax.teacher.precompute", _EXAMPLE, (_OUT,))
    try:
        with Heartbeat(sys.stderr) as heartbeat:
            progress, many = Progress(sys.stderr, heartbeat), (_VISITS.value or 1, _LIMIT.value or sys.maxsize)
            done = precompute(config, Path(_OUT.value or ""), *many, progress, heartbeat)
    except (RunError, OSError) as error:
        command.exit_with(error, 1)
    except KeyboardInterrupt:
        command.exit_with("stopped; the same command continues", 130)
    print(f"{_OUT.value}: {done.recorded:,} of {done.wanted:,} visits are recorded, {done.skipped:,} cannot be used")
    if done.recorded < done.wanted:
        command.exit_with("some answers are missing: the same command asks for them again", 1)


def precompute(config: Config, out: Path, visits: int, limit: int, progress: Progress, heartbeat: Heartbeat) -> Done:
    """Records the answers to so many `visits` of the first `limit` training questions. Raises ConfigError, and RunError
    if nothing answers."""
    # These import jax; a mistake on the command line should not wait for that.
    from zppo_jax.setup import teachers
    from zppo_jax.setup.checkpoints import load_processor
    from zppo_jax.warmstart import directories

    student, directory = directories(config, out, progress.line)
    processor = load_processor(config, student)
    process = PromptProcessing(processor, prompts.get_template(config.prompt.template))
    with heartbeat.during("opening the questions") as report:
        source = open_sources(config, report).training
    reading = Reading(source, process, room_of(config), "skip")
    with contextlib.ExitStack() as stack:
        teacher = stack.enter_context(teachers.alone(config, directory, processor, heartbeat, progress.line))
        recording = Recording(out, teachers.about(config, teacher.name), 0, progress.line)
        stack.callback(recording.close)
        return fill(recording, teacher, reading, visits, min(limit, len(source)), config.seed, progress)


def fill(
    recording: Recording,
    teacher: Teacher,
    reading: Reading,
    visits: int,
    count: int,
    seed: int,
    progress: Progress,
) -> Done:
    """Asks the first `count` questions so many times each, without what is recorded. Raises RunError if the teacher
    answers nothing any more."""
    wanted, recorded, skipped = count * visits, 0, 0
    with progress.stage("asking the teacher", "visits", wanted) as advance:
        for visit, items, known, bad in _blocks(recording, reading, visits, count):
            advance(known)
            recorded, skipped = recorded + known, skipped + bad
            missed = _ask(recording, teacher, items, RandomStream(seed, visit, "teacher"), advance)
            if items and len(missed) == len(items) and _AWAY.issuperset(missed):
                raise RunError(f"the teacher answered none of its last questions ({missed[0]}): run the command again")
            recorded += len(items) - len(missed)
    return Done(wanted - skipped, recorded, skipped)


def _blocks(
    recording: Recording, reading: Reading, visits: int, count: int
) -> Iterator[tuple[int, list[EncodedPrompt], int, int]]:
    """The visits in blocks: (number of the visit, from 1; the prompts that are open; how many questions are recorded;
    how many cannot be used)."""
    for visit, first in itertools.product(range(1, visits + 1), range(0, count, _BLOCK)):
        numbers = range(first, min(first + _BLOCK, count))
        found = [reading.at(number, lambda name, visit=visit: f"{visit}/{name}/teacher") for number in numbers]
        usable = [one for one in found if not isinstance(one, Skipped)]
        items = [one for one in usable if visit not in recording.visits(one.prompt)]
        yield visit, items, len(usable) - len(items), len(found) - len(usable)


def _ask(
    recording: Recording,
    teacher: Teacher,
    items: Sequence[EncodedPrompt],
    stream: RandomStream,
    advance: Callable[[int], None],
) -> list[str]:
    """Asks one block; returns the reasons of those that were missed."""
    teacher.begin(stream.step)
    asked = {item.prompt.uid: item.prompt for item in items}
    missed: list[str] = []
    for uid, got in teacher.answer(items, stream) if items else ():
        if isinstance(got, Missed):
            missed.append(got.reason)
        else:
            recording.add_answers(asked[uid], PRECOMPUTED, got, visit=stream.step)
            advance(1)
    return missed


if __name__ == "__main__":
    main()
