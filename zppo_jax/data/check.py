"""python -m zppo_jax.data.check --config=FILE.py: finds the rows that a run could not use, before it begins."""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.command.terminal import harmless, one_harmless_line
from zppo_jax.config import Config
from zppo_jax.data import questions
from zppo_jax.data.processing import PromptProcessing, processor_settings
from zppo_jax.data.progress import Progress
from zppo_jax.data.reading import Reading, Room, Skipped
from zppo_jax.data.sources import open_source
from zppo_jax.errors import ConfigError, RunError
from zppo_jax.files import SHIPPED
from zppo_jax.processor import ProcessorConfig
from zppo_jax.processor.checkpoint import load_processor
from zppo_jax.rewards.grade import JUDGED
from zppo_jax.zppo import prompts

_EXAMPLE = "python -m zppo_jax.data.check --config=configs/tiny.py --config.data.source=parquet:DIR"

_HELP = f"""\
Reads every question of a run's sources as the run would, and says which rows it could not use, and why.

  {_EXAMPLE}

Prints a table by reason, and writes a line for each bad row: its source, id, place, reason, and a sentence. Exit status
0: every row can be used; 1: some cannot. In training, data.bad_rows says what happens to them: refuse (the run ends) or
skip (they are left out and counted).

Flags:
  --config=FILE.py[:METHOD]   the configuration of the run, with its --config.KEY=VALUE
  --out=bad_rows.jsonl        where the bad rows are written
  --threads=8                 threads that read and decode

Reasons:
{chr(10).join(f"  {reason:<20} {words}" for reason, words in questions.REASONS.items())}
"""

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", "bad_rows.jsonl", "where to write the bad rows", flag_values=_FLAGS)
_THREADS = flags.DEFINE_integer("threads", 8, "that read", lower_bound=1, flag_values=_FLAGS)


@dataclasses.dataclass(frozen=True)
class Found:
    """The result for one source: how many rows were read, the bad ones by position, and the counts of answer types."""

    source: str
    num_rows: int
    bad: dict[int, Skipped]
    answer_types: dict[str, int]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 all rows are good, 1 some are bad, 2 a mistake on the command line."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    config, rest = command.read_config(argv, _EXAMPLE)
    command.read(_FLAGS, rest, "zppo_jax.data.check", _EXAMPLE, ())
    try:
        with Heartbeat(sys.stderr) as heartbeat:
            found = check(config, Progress(sys.stderr, heartbeat), _THREADS.value)
    except (RunError, OSError) as error:
        command.exit_with(error, 1)
    except KeyboardInterrupt:
        command.exit_with("stopped", 130)
    print("\n".join(map(harmless, table(found))))
    if any(one.bad for one in found):
        try:
            print(f"written to {_write(found, Path(_OUT.value or ''))}")
        except OSError as error:
            command.exit_with(f"--out={_OUT.value} cannot be written ({error.strerror}): give another file", 1)
        sys.exit(1)


def check(config: Config, progress: Progress, num_threads: int) -> list[Found]:
    """Reads every row of `data.source`, and of `data.held_out` if it names one. Raises ConfigError."""
    process = processing(config)
    room = room_of(config)
    keys = ["source", *(["held_out"] if config.data.held_out else [])]
    found = []
    for key in keys:
        source = open_source(config.data, key, progress.line, config)
        name = config.data.source if key == "source" else config.data.held_out
        bad = dict(_bad(Reading(source, process, room, "skip"), name, progress, num_threads))
        found.append(Found(name, len(source), bad, dict(source.answer_types)))
    return found


def room_of(config: Config) -> Room:
    """The largest prompt of the run's programs."""
    patches = config.prompt.max_images * config.prompt.max_pixels // ProcessorConfig.patch_size**2
    return Room(config.prompt.buckets[-1], patches)


def processing(config: Config) -> PromptProcessing:
    """The processing of the run's prompts, without its model. Raises ConfigError."""
    path, settings = config.model.path or SHIPPED / "student", processor_settings(config.prompt)
    try:
        processor, _ = load_processor(path, enable_thinking=config.prompt.enable_thinking, **settings)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path = {str(path)!r} has no processor ({' '.join(str(error).split())})") from error
    return PromptProcessing(processor, prompts.get_template(config.prompt.template))


def _bad(reading: Reading, name: str, progress: Progress, num_threads: int) -> Iterator[tuple[int, Skipped]]:
    read = progress.mapped(f"checking {name}", "rows", reading.at, len(reading.source), num_threads)
    for number, one in enumerate(read):
        if isinstance(one, Skipped):
            yield number, one


def table(found: Sequence[Found]) -> Iterator[str]:
    """The result in lines: for each source its rows, answer types and bad rows by reason, with some ids."""
    for one in found:
        types = ", ".join(f"{count:,} {name}" for name, count in sorted(one.answer_types.items()))
        yield f"{one.source}: {one.num_rows:,} rows ({types}), {len(one.bad):,} cannot be used"
        by_reason = collections.defaultdict(list)
        for skipped in one.bad.values():
            by_reason[skipped.reason].append(skipped.question_id)
        for reason, ids in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
            some = ", ".join(map(one_harmless_line, ids[:3])) + (", ..." if len(ids) > 3 else "")
            yield f"  {reason:<20} {len(ids):>8,}  {some}"
        judged = sum(count for name, count in one.answer_types.items() if name in JUDGED)
        if judged:
            yield f"  {judged:,} answers can only be scored by a judge: a run needs one (docs/judge.md)"


def _write(found: Sequence[Found], path: Path) -> Path:
    with path.open("w") as file:
        for one in found:
            for number, bad in one.bad.items():
                file.write(json.dumps({"source": one.source, "row": number, **dataclasses.asdict(bad)}) + "\n")
    return path


if __name__ == "__main__":
    main()
