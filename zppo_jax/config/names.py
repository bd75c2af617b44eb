"""The keys of a configuration by dotted name, and the most likely key for a misspelt name."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from zppo_jax.config.schema import Config
from zppo_jax.config.setting import Setting
from zppo_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration: dotted name, type (for a tuple, with that of its items) and `Setting`."""

    name: str
    type: Any
    setting: Setting


_TYPE_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "text",
    tuple[int, ...]: "integers, as 48,192",
    tuple[str, ...]: "texts, as vision/**,text/embed",
}


def keys(schema: type = Config, prefix: str = "") -> Iterator[Key]:
    """All keys of the configuration in order, sections flattened to dotted names."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from keys(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            kind, declared = typing.get_args(hint)
            yield Key(prefix + name, kind, declared)


def type_words(kind: Any) -> str:
    """The type in words, for messages: `int` is "an integer"."""
    return _TYPE_WORDS[kind]


def closest_key(name: str, known: Sequence[str]) -> str | None:
    """The known key that was most likely meant: the same last part, else the most similar name, else None."""
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(name, same_leaf or known, 1, cutoff=0.0 if same_leaf else 0.6)
    if close:
        return close[0]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in known}
    return next((by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, 1, cutoff=0.7)), None)


def unknown_key(name: str, value: object) -> ConfigError:
    """The error for an unknown key, with the key that was probably meant."""
    known = [key.name for key in keys()]
    members = [key for key in known if key.startswith(name + ".")]
    if members:
        return ConfigError(f"{name} = {value!r}: {name} is a section; set one of its keys: {', '.join(members)}")
    close = closest_key(name, known)
    hint = f"did you mean {close}?" if close else "`python -m zppo_jax.main --help` lists all keys"
    return ConfigError(f"{name} = {value!r}: there is no such key; {hint}")


def flat(values: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted name, in their order."""
    found: dict[str, Any] = {}
    for name in values:
        value = values[name]
        if isinstance(value, Mapping | ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
