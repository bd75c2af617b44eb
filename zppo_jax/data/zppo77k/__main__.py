"""python -m zppo_jax.data.zppo77k --vero=DIR --mmfinereason=DIR --out=DIR: builds the corpus of the paper."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags

import zppo_jax
from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.data.zppo77k import recipe
from zppo_jax.data.zppo77k.recipe import CHOICES, Settings
from zppo_jax.errors import ConfigError, RunError

if TYPE_CHECKING:
    from zppo_jax.data.progress import Progress

_EXAMPLE = "python -m zppo_jax.data.zppo77k --vero=zlab-princeton/Vero-600k --mmfinereason=DIR --out=data/zppo77k"
_FORMATS = ("arrayrecord", "parquet")
_HUB_TOKENIZER = "Qwen/Qwen3.5-0.8B"
_EMBEDDED_TOKENIZER = Path(zppo_jax.__file__).parent / "assets" / "tiny" / "student"

_HELP = f"""\
Builds ZPPO-77K (App. B.1 of arXiv:2606.18216): questions with an image and a short gold answer from Vero-600k and
MMFineReason-SFT-586K, filtered, without duplicates, sampled up to a cap for each sub-dataset.

  {_EXAMPLE}

Writes ArrayRecord shards that `data.source=arrayrecord:DIR` and `tfds.builder_from_directory(DIR)` read, and
dataset.json, which says for each sub-dataset how many rows were read, kept, and dropped for which reason. A build that
was interrupted continues with the same command and ends with the same bytes, whatever the number of workers.

Inputs and output:
  --vero=DIR_OR_ID          Vero-600k: a folder with a folder a config, OWNER/NAME of the Hub, or any fsspec URL
  --mmfinereason=DIR_OR_ID  MMFineReason-SFT, in the same ways; one of the two may be left out
  --out=DIR                 where to; unfinished work is in DIR/.build
  --format=arrayrecord      {" or ".join(_FORMATS)}
  --workers=0               worker processes; 0: as many as cores
  --tokenizer=DIR_OR_ID     counts prompt tokens: a checkpoint's folder, or OWNER/NAME; by default {_HUB_TOKENIZER},
                            or the one in this package, which gives more tokens, if the Hub is out of reach
  --decontaminate=DIR,...   evaluation data (parquet, or image files): what shares an image or a question, however
                            general it is, is dropped
  --list                    prints the table of sub-datasets, with names, tiers, caps and answer types, and ends

The recipe. Defaults are the paper's, or our reading where it says nothing (marked *):
  --include=NAME,...        * sub-datasets besides those that the paper names (29 Vero, 17 MMFineReason names)
  --exclude=NAME,...        without these; canonical names, folders or source values
  --cap_tier1=2800          the most questions of a sub-dataset of tier 1
  --cap_tier2=1400          the same for tier 2, and for those that the paper does not name
  --cap_per=name            * name: both corpora's sub-datasets of one canonical name share a cap; upstream: they do not
  --seed=0                  * of the sample up to the cap
  --split=train             * of Vero
  --vero_wins=name          name: where Vero has a canonical name, MMFineReason's is left out; * rows: only equal rows
  --max_pass_rate=0.5       of Qwen3-VL-4B on a MMFineReason question; easier ones are dropped
  --missing_pass_rate=drop  * rows without a rate: drop or keep
  --multi_answer=keep       * golds with alternatives: keep (type list_any) or drop
  --free_form=drop          * golds that only a judge can score: drop or keep
  --recover_golds=False     * take a missing MMFineReason gold from the <answer> tag of original_answer
  --max_answer_chars=512    of the gold, without <answer> tags
  --min_side=100            pixels of the shorter side of an image
  --min_images=1, --max_images=1  * of a question
  --max_prompt_tokens=4096  * with image tokens, chat template and closer
  --template=paper          * whose closer counts: {" or ".join(CHOICES["template"])}
  --min_pixels=262144, --max_pixels=1310720  * to which images are scaled for that count, as in configs/paper.py
  --decontaminate_by=either * what may not be shared: {", ".join(CHOICES["decontaminate_by"])}
The filters come first, then duplicates (image and question), then the sample *.
"""

_FLAGS = flags.FlagValues()
_VERO = flags.DEFINE_string("vero", "", "Vero-600k", flag_values=_FLAGS)
_MMFINEREASON = flags.DEFINE_string("mmfinereason", "", "MMFineReason", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "where to write", flag_values=_FLAGS)
_FORMAT = flags.DEFINE_enum("format", "arrayrecord", _FORMATS, "of the output", flag_values=_FLAGS)
_WORKERS = flags.DEFINE_integer("workers", 0, "processes", lower_bound=0, flag_values=_FLAGS)
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "counts tokens", flag_values=_FLAGS)
_DECONTAMINATE = flags.DEFINE_multi_string("decontaminate", [], "evaluation data", flag_values=_FLAGS)
_LIST = flags.DEFINE_bool("list", False, "print the table", flag_values=_FLAGS)
_INCLUDE = flags.DEFINE_list("include", [], "more sub-datasets", flag_values=_FLAGS)
_EXCLUDE = flags.DEFINE_list("exclude", [], "fewer sub-datasets", flag_values=_FLAGS)


def _define(field: Any) -> flags.FlagHolder[Any]:
    """The flag of a field of `Settings`."""
    if field.name in CHOICES:
        return flags.DEFINE_enum(field.name, field.default, CHOICES[field.name], field.name, flag_values=_FLAGS)
    if isinstance(field.default, bool):
        return flags.DEFINE_bool(field.name, field.default, field.name, flag_values=_FLAGS)
    if isinstance(field.default, int):
        return flags.DEFINE_integer(field.name, field.default, field.name, lower_bound=0, flag_values=_FLAGS)
    if isinstance(field.default, float):
        return flags.DEFINE_float(field.name, field.default, field.name, 0.0, 1.0, flag_values=_FLAGS)
    return flags.DEFINE_string(field.name, str(field.default), field.name, flag_values=_FLAGS)


_SETTINGS = {field.name: _define(field) for field in dataclasses.fields(Settings)}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 built, 2 a mistake on the command line, 1 anything else, 130 stopped by Ctrl-C."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    command.read(_FLAGS, argv, "zppo_jax.data.zppo77k", _EXAMPLE, () if "--list" in argv else (_OUT,))
    settings = Settings(**{name: flag.value for name, flag in _SETTINGS.items()})
    rows = recipe.chosen(_INCLUDE.value or (), _EXCLUDE.value or ())
    if _LIST.value:
        print(recipe.listing(rows, settings), end="")
        return
    if not (_VERO.value or _MMFINEREASON.value):
        raise ConfigError(f"--vero and --mmfinereason are missing, give one or both, as in `{_EXAMPLE}`")
    out = Path(_OUT.value or "")
    try:
        _build(out, rows, settings)
    except ConfigError:
        raise
    except (RunError, OSError) as error:
        command.exit_with((command.disk_fault(error, out) or str(error)).replace("--workdir", "--out"), 1)
    except KeyboardInterrupt:
        command.exit_with("stopped; the same command continues", 130)


def _build(out: Path, rows: Sequence[recipe.SubDataset], settings: Settings) -> None:
    with Heartbeat(sys.stderr) as heartbeat:
        with heartbeat.during("starting"):
            from zppo_jax.data.progress import Progress
            from zppo_jax.data.zppo77k import manifest
            from zppo_jax.data.zppo77k.build import Build, Plan
            from zppo_jax.data.zppo77k.shards import Format

            progress = Progress(sys.stderr, heartbeat)
            plan = Plan(
                out=out,
                vero=_VERO.value or "",
                mmfinereason=_MMFINEREASON.value or "",
                rows=tuple(rows),
                settings=settings,
                tokenizer=_tokenizer(_TOKENIZER.value or "", progress),
                decontaminate=tuple(one for given in _DECONTAMINATE.value or () for one in given.split(",") if one),
                kind=cast(Format, _FORMAT.value),
                workers=_WORKERS.value or _cores(),
            )
        content = Build(plan, progress).run()
    print(manifest.table(content))
    print(f"{content['num_questions']:,} questions in {out}")


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tokenizer(name: str, progress: Progress) -> str:
    """The folder of the tokenizer, from the Hub's cache if it is OWNER/NAME. Raises ConfigError if there is none."""
    from zppo_jax.processor.checkpoint import load_processor

    try:
        return load_processor(name or _HUB_TOKENIZER)[1]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if not name:
            progress.line(
                f"{_HUB_TOKENIZER} is out of reach ({reason}): tokens are counted with the package's small tokenizer, "
                "which gives more of them, so some long questions are dropped; give --tokenizer=DIR for exact counts"
            )
            return str(_EMBEDDED_TOKENIZER)
        raise ConfigError(
            f"--tokenizer={name} does not load ({reason}): give the folder of a Qwen3.5 checkpoint, or its OWNER/NAME "
            "on a machine with a network"
        ) from error


if __name__ == "__main__":
    main()
