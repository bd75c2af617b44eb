"""The command line: makes a checked configuration from `--config` and `--workdir`, and starts the training loop.

absl and config_flags read the flags, but answer a mistyped key with a traceback. So the overrides are checked first,
without jax, and every mistake is one line that names the key, the value and the fix (exit status 2).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections.config_flags import config_flags

from zppo_jax import command
from zppo_jax.command import overrides
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config, ConfigTree, Key, from_config_dict, keys
from zppo_jax.errors import ConfigError, RunError, one_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, FILE.py or FILE.py:METHOD")
_WORKDIR = flags.DEFINE_string("workdir", None, "run directory; an existing one is continued")

_DISTRIBUTED = flags.DEFINE_boolean("distributed", False, "one of several processes, which jax finds by itself")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where jax does not know the cluster")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of the run, with --coordinator", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "number of this process, with --coordinator", lower_bound=0)

_EXAMPLE = "python -m zppo_jax.main --config=configs/tiny.py --workdir=runs/tiny"

_HELP = """\
Trains a Qwen3.5 vision-language model with ZPPO (arXiv:2606.18216): a teacher helps through prompts, never gradients.

  {example}

trains on two CPU cores in minutes. The same command continues a run that was stopped; Ctrl-C gives rollouts up and
saves. The run directory holds config.json, metrics.jsonl, samples.jsonl, curves.png, TensorBoard events, checkpoints.

Flags:
  --config=FILE.py[:METHOD]   the configuration and the method (below); all files are in configs/
  --config.KEY=VALUE          changes one key (below); after --config
  --workdir=DIRECTORY         where the run lives; one run at a time
  --distributed               this is one of several processes: the same command on every host of a TPU pod, under SLURM
                              or in Kubernetes; the hosts share the run directory (docs/hosts.md)
  --coordinator=HOST:PORT     elsewhere, with --num_processes=N and --process_id=I: where process 0 listens

Examples:
  python -m zppo_jax.main --config=configs/tiny.py:grpo --workdir=runs/grpo
  python -m zppo_jax.main --config=configs/tiny.py --config.seed=1 --config.rollout.group_size=4 --workdir=runs/s1
  python -m zppo_jax.main --config=configs/tiny.py --config.prompt.buckets=64,256 --workdir=runs/long
  python -m zppo_jax.main --config=configs/tiny.py --config.optimizer.freeze=vision/** --workdir=runs/frozen

Methods:
{methods}

Keys{of}:
{keys}
"""


def main() -> None:
    """Entry point of `python -m zppo_jax.main`."""
    app.run(_run, flags_parser=_parse_or_exit)


def parse(argv: Sequence[str], program: str = "zppo_jax.main", example: str = _EXAMPLE) -> list[str]:
    """Reads the flags into `flags.FLAGS` and returns the rest; raises `ConfigError` on any mistake.

    Args:
      argv: the whole command line, program name first.
      program: the name of the command, for errors, with an `example` of its use.
    """
    path = command.last_value(argv, "config")
    if not path:
        raise ConfigError(f"--config is missing: name a configuration file, as in `{example}`")
    command.load_config(path)  # config_flags loads it again, and would hide its errors
    for name, text in overrides.overrides(argv):
        overrides.check_override(name, text)
    try:
        with command.importable(path):
            rest = flags.FLAGS(overrides.quoted(argv))
    except Exception as error:  # absl and config_flags raise many kinds, each with a readable message
        raise ConfigError(f"{one_line(error)}; `python -m {program} --help` lists the flags") from error
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is not a flag: a key is changed by --config.KEY=VALUE")
    if not flags.FLAGS.workdir or flags.FLAGS.config is None:
        raise ConfigError(f"--workdir is missing: name the directory of the run, as in `{example}`")
    return rest


def help_text(path: str | None = None) -> str:
    """The text of `--help`; with a config file also each key's value in it."""
    values = command.load_config(path) if path else None
    of = f" with their values in {path}" if path else ""
    lines = "\n".join(_key_lines(values))
    return _HELP.format(example=_EXAMPLE, methods="\n".join(_method_lines()), of=of, keys=lines)


def _run(argv: Sequence[str]) -> None:
    del argv
    try:
        config = from_config_dict(_CONFIG.value)
        check_method(config)
        with Heartbeat(sys.stdout) as heartbeat:
            _train(config, heartbeat)
    except ConfigError as error:
        _exit(error, 2)
    except RunError as error:
        _exit(error, 1)
    except KeyboardInterrupt:
        print("zppo_jax: stopped at once; the same command continues from the last checkpoint", file=sys.stderr)
        os._exit(130)  # sys.exit would wait for a program that is still compiling, which may take minutes
    except Exception as error:
        fault = command.disk_fault(error, Path(_WORKDIR.value or ""))
        if fault is not None:
            _exit(fault, 1)
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        os._exit(1)  # as in `_exit`


def _train(config: Config, heartbeat: Heartbeat) -> None:
    with heartbeat.during(f"starting {config.method} in {_WORKDIR.value}: importing jax and the trainer"):
        from zppo_jax import train  # imports jax; a mistake on the command line should not wait for that

    logging.set_verbosity(logging.WARNING)  # at INFO orbax logs every action of its threads
    if _is_one_of_several():
        from zppo_jax import parallel

        with heartbeat.during("waiting for the other hosts to start"):
            parallel.connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    train.run(config, Path(_WORKDIR.value or ""), heartbeat)


def _parse_or_exit(argv: Sequence[str]) -> list[str]:
    try:
        if command.asks_for_help(argv):
            print(help_text(command.last_value(argv, "config")), end="")
            sys.exit(0)
        return parse(argv)
    except ConfigError as error:
        _exit(error, 2)


def _exit(message: object, status: int) -> NoReturn:
    print(f"zppo_jax: {message}", file=sys.stderr, flush=True)
    if _is_one_of_several():
        os._exit(status)  # at exit jax would wait for the other hosts, whose failure may be why this one ends
    sys.exit(status)


def _is_one_of_several() -> bool:
    return bool(flags.FLAGS.is_parsed() and (_DISTRIBUTED.value or _COORDINATOR.value))


def check_method(config: Config) -> None:
    """Raises ConfigError if the method is not a row of METHODS."""
    from zppo_jax.zppo.methods import get_method

    get_method(config.method)


def _key_lines(values: ConfigTree | None) -> Iterator[str]:
    for key in keys():
        rule = f" ({key.setting.rule()})" if key.setting.rule() else ""
        value = f" = {_value_at(values, key)!r}" if values is not None else ""
        yield f"  {key.name + value:<{48 if values is not None else 34}} {key.setting.doc}{rule}"


def _value_at(values: ConfigTree, key: Key) -> Any:
    value: Any = values
    for part in key.name.split("."):
        value = value[part]
    return value


def _method_lines() -> Iterator[str]:
    from zppo_jax.zppo.methods import METHODS

    for name, method in METHODS.items():
        yield f"  {name:<18} {method.summary}"


if __name__ == "__main__":
    main()
