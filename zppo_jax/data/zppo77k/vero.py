"""Vero-600k's rows: a folder a config, and in each file the columns that the data set's own loader reads.

`extra_info.question` is the question; the system turn, which demands tags and a box, is never read. The name of the
folder is the sub-dataset's: the column `data_source` has no domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zppo_jax.data.zppo77k.upstream import Upstream, number, plain, text
from zppo_jax.errors import RunError

_TEXTS = ("id", "prompt", "data_source", "ability", "reward_model", "extra_info")


def text_columns(names: Sequence[str], file: str) -> list[str]:
    """The columns of texts in a file with these columns; RunError if the schema is another one."""
    if "extra_info" not in names and not {"prompt", "reward_model"} <= set(names):
        raise RunError(
            f"{file} has the columns {', '.join(names)}, and not those of Vero-600k (extra_info, reward_model, prompt, "
            "image): name the parquet files of the data set, not an export of it"
        )
    return [name for name in _TEXTS if name in names]


def row(cells: Mapping[str, Any], config: str) -> Upstream:
    """The texts of a row. Fields that a row lacks are empty."""
    extra, model = (_mapping(cells.get(name)) for name in ("extra_info", "reward_model"))
    gold = extra.get("answer") if model.get("ground_truth") is None else model["ground_truth"]
    return Upstream(
        upstream=config,
        id=str(cells.get("id") or extra.get("id") or ""),
        question=text(extra.get("question")) or user_turn(cells.get("prompt")),
        gold=None if gold is None else str(gold),
        reward_type=str(extra.get("reward_type") or ""),
        tolerance=number(extra.get("tolerance")),
        extra={"ability": plain(cells.get("ability"))},
    )


def user_turn(prompt: Any) -> str:
    """The text of the last user turn of a prompt: a list of {role, content}, one of them, {role: [...], content:
    [...]}, or the text itself; a content is a text, or a list of {type, text}."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        role, content = prompt.get("role"), prompt.get("content")
        if isinstance(role, list) and isinstance(content, list):
            turns = [{"role": r, "content": c} for r, c in zip(role, content, strict=False)]
        else:
            turns = [prompt]
    else:
        given = prompt if isinstance(prompt, list | tuple) else ()
        turns = [turn for turn in given if isinstance(turn, Mapping)]
    texts = [_text(turn.get("content")) for turn in turns if turn.get("role") == "user"]
    return texts[-1] if texts else ""


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_part(part) for part in content if isinstance(part, Mapping))
    return text(content)


def _part(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    return f"<{kind}>\n" if kind in ("image", "video") else str(part.get("text") or "")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
