"""python -m zppo_jax.export --checkpoint=runs/x --out=DIR: a run's student as a Hugging Face directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.errors import ConfigError, WorkdirError

_EXAMPLE = "python -m zppo_jax.export --checkpoint=runs/tiny --out=exports/tiny"
_DTYPES = ("float32", "bfloat16", "float16")

_HELP = f"""\
Writes the student of a run as a Hugging Face directory, which transformers, vLLM and lm-eval load.

  {_EXAMPLE}

The weights are those of the newest checkpoint; tokenizer, chat template and processor files are the ones of the model
that the run started from. Only parameters are read (no optimiser), on one CPU: a checkpoint of any number of devices
is exported on one host, also while the run goes on. The directory appears when it is complete.

Flags:
  --checkpoint=RUN     the run directory (the --workdir of the training)
  --out=DIRECTORY      where to; it must not exist or be empty, only an earlier export is replaced
  --step=N             the checkpoint of that step, instead of the newest; "best": of the best held-out accuracy
  --dtype=NAME         {", ".join(_DTYPES)}, instead of the checkpoint's own; A_log and the gated norm stay
                       float32, as in the published files
  --origin=DIRECTORY   the model that the run started from, if it is no longer where the run found it; or OWNER/NAME

Examples:
  python -m zppo_jax.export --checkpoint=runs/9b --out=exports/9b --dtype=bfloat16
  python -m zppo_jax.export --checkpoint=runs/9b --out=exports/9b-400 --step=400 --origin=/data/Qwen3.5-9B
"""

# Separate flags: absl's global ones belong to zppo_jax.main and to the libraries.
_FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "run directory", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "where to write", flag_values=_FLAGS)
_STEP = flags.DEFINE_string("step", None, "step of the checkpoint, or best", flag_values=_FLAGS)
_DTYPE = flags.DEFINE_enum("dtype", None, _DTYPES, "of the weights", flag_values=_FLAGS)
_ORIGIN = flags.DEFINE_string("origin", None, "model that the run started from", flag_values=_FLAGS)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 written, 2 a mistake on the command line, 1 anything else."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    parse(argv)
    try:
        with Heartbeat(sys.stderr) as heartbeat:
            print(_export(heartbeat))
    except ConfigError:
        raise
    except (WorkdirError, ValueError, OSError) as error:
        command.exit_with(error, 1)
    except KeyboardInterrupt:
        command.exit_with("stopped; nothing was left behind", 130)


def parse(argv: Sequence[str]) -> None:
    """Reads the flags; raises ConfigError in one line on any mistake."""
    command.read(_FLAGS, argv, "zppo_jax.export", _EXAMPLE, (_CHECKPOINT, _OUT))
    step = _STEP.value
    if step is not None and step != "best" and not step.isdecimal():
        raise ConfigError(f"--step={step}: give the number of a step, or best")


def _export(heartbeat: Heartbeat) -> str:
    run = Path(_CHECKPOINT.value or "")
    if not run.is_dir():
        raise ConfigError(f"--checkpoint={run}: there is no such directory; give the --workdir of a run")
    os.environ["JAX_PLATFORMS"] = "cpu"  # on any machine: nothing is computed
    logging.set_verbosity(logging.ERROR)  # orbax logs every action of its threads
    with heartbeat.during("starting: importing jax and orbax"):
        from zppo_jax.export import write

    return write.export(run, Path(_OUT.value or ""), _STEP.value, _DTYPE.value, _ORIGIN.value, heartbeat)


if __name__ == "__main__":
    main()
