"""python -m zppo_jax.aot --config=configs/9b.py --topology=v5p-128: does a run fit a slice, before you pay for it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from zppo_jax import command
from zppo_jax.config import Config
from zppo_jax.errors import ConfigError

_EXAMPLE = "python -m zppo_jax.aot --config=configs/9b.py --topology=v5p-128"

_HELP = f"""\
Compiles a run's programs for a TPU slice on a machine without any: what each needs, and whether it fits.

  {_EXAMPLE}

The programs are those that the trainer runs (gradient, update, log-probabilities, prefill, decode, the teacher's), from
shapes alone: no weights are read. Needs libtpu (`pip install 'zppo-jax[tpu]'`). A program takes some minutes on two
cores; one that does not fit is refused in seconds. That is an answer too: exit status 0.

Flags:
  --config=FILE.py[:METHOD]     the configuration; --config.KEY=VALUE changes a key
  --topology=NAME               v5e-16, v5p-128 (which counts cores), v6e-64, ..., or a grid such as v5p:4x4x4
  --programs=TEXT,TEXT          only programs whose names begin so, such as update,decode,"teacher prefill"
  --[no]teacher                 whether the teacher's programs and parameters count; yes
  --json                        one JSON object on standard output, and nothing else there
  --search                      instead: the largest update.rows_per_microbatch whose gradient fits, doubling
  --minutes=N                   give up a program that takes longer; those after it are not begun

Columns: GiB of one device. `arguments` are the program's inputs, `temporary` its allocations, `peak` the maximum of
both together, `beside` the other memory of the run (for example the optimiser during sampling, and the code of all
programs that were compiled here), `limit` the device's memory. `between devices` are GiB by kind; a loop's body counts
once. `TFLOP` are the model's in one call on all devices (on those of a host, if it samples), without recomputation;
`s at 40 %` is their time at 40 % of the devices' peak, or for decoding the time of reading weights and slots for each
token of a chunk at 40 % of the bandwidth, if that is longer.
"""

_FLAGS = flags.FlagValues()
_TOPOLOGY = flags.DEFINE_string("topology", None, "slice", flag_values=_FLAGS)
_PROGRAMS = flags.DEFINE_list("programs", [], "names", flag_values=_FLAGS)
_TEACHER = flags.DEFINE_boolean("teacher", True, "teacher's programs", flag_values=_FLAGS)
_JSON = flags.DEFINE_boolean("json", False, "JSON", flag_values=_FLAGS)
_SEARCH = flags.DEFINE_boolean("search", False, "largest micro-batch", flag_values=_FLAGS)
_MINUTES = flags.DEFINE_float("minutes", None, "of a program", lower_bound=0.0, flag_values=_FLAGS)
_WITH_VALUE = ("topology", "programs", "minutes")
_OWN = (*_WITH_VALUE, "teacher", "noteacher", "json", "nojson", "search", "nosearch")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 for any answer; 2 for a mistake on the command line."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    config = parse(argv)
    try:
        _settle_environment()
        _check(config, argv)
    except KeyboardInterrupt:
        print("zppo_jax: stopped; nothing is kept of what was compiled", file=sys.stderr)
        os._exit(130)  # does not wait for a compilation, which may take minutes


def parse(argv: Sequence[str]) -> Config:
    """Reads the flags; raises ConfigError in one line on any mistake that shows without jax."""
    from zppo_jax import main as trainer
    from zppo_jax.config import from_config_dict

    own_flags, trainer_flags = _divided(argv[1:])
    command.read(_FLAGS, [argv[0], *own_flags], "zppo_jax.aot", _EXAMPLE, (_TOPOLOGY,))
    if _SEARCH.value and _PROGRAMS.value:
        raise ConfigError("--search compiles gradients alone: leave --programs out")
    trainer.parse([argv[0], *trainer_flags, "--workdir=none"], "zppo_jax.aot", _EXAMPLE)
    config = from_config_dict(flags.FLAGS.config)
    trainer.check_method(config)
    return config


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits the words into this command's flags, with the values that follow them, and the trainer's flags."""
    own_flags, trainer_flags, wants = [], [], False
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        is_own = wants or (word.startswith("-") and name in _OWN)
        (own_flags if is_own else trainer_flags).append(word)
        wants = is_own and not wants and not equals and name in _WITH_VALUE
    return own_flags, trainer_flags


def _settle_environment() -> None:
    """Sets libtpu up as a compiler only: it asks no metadata server, and several processes may compile at once."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # on any machine; only the compiler has the slice's devices
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _check(config: Config, argv: Sequence[str]) -> None:
    import importlib.util

    from zppo_jax.aot import report, table, topologies
    from zppo_jax.run.console import RunConsole

    if sys.stdout is None:
        raise ConfigError("standard output is closed, where the answer would go")
    topology = topologies.parse(_TOPOLOGY.value or "")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is not installed, which compiles for TPUs: pip install 'zppo-jax[tpu]'")
    limit = 60 * _MINUTES.value if _MINUTES.value else None
    asked = report.Question(config, topology, _PROGRAMS.value, _TEACHER.value, limit)
    with _standard_output_kept(_JSON.value), RunConsole(0, file=sys.stderr) as console:
        command_line = shlex.join(["python", "-m", "zppo_jax.aot", *argv[1:]])
        answer = {"command": command_line} | report.answer(asked, _SEARCH.value, console)
    status = _print(json.dumps(answer) if _JSON.value else "\n".join(table.lines(answer)))
    if status or limit is not None:  # does not wait for a compilation that was given up
        os._exit(status)


def _print(text: str) -> int:
    """Prints the answer; returns the exit status: 1 if it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        print(f"zppo_jax: the answer cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _standard_output_kept(active: bool) -> Any:
    """Sends what libraries print inside the block to standard error."""
    with contextlib.redirect_stdout(sys.stderr) if active else contextlib.nullcontext():
        yield


if __name__ == "__main__":
    main()
