"""The configuration of a run: frozen dataclasses, every value checked at the door.

A config file (configs/tiny.py) is an `ml_collections.ConfigDict`, which is what the command line overrides. The code
never reads that: it reads the `Config` that `from_config_dict` makes of it, whose fields are complete (no default
lives here or further in), typed and in range. What cannot work is refused before anything is compiled, in one line
that names the key, the value and the mend.

A key is declared once, in schema.py: its meaning, which `--help` prints, and its range.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from zppo_jax.config.combinations import COMBINATIONS
from zppo_jax.config.schema import Config, Setting
from zppo_jax.errors import ConfigError

__all__ = [
    "Config",
    "ConfigTree",
    "Key",
    "changed_keys",
    "closest_key",
    "from_config_dict",
    "keys",
    "to_json",
    "type_words",
    "unknown_key",
]


FREE_KEYS = (
    *("num_steps", "profile.", "watchdog.", "checkpoint.", "log."),
    *("mesh.", "rollout.mesh.", "teacher.mesh.", "rollout.slots", "rollout.cache_gigabytes", "model.remat"),
    *("update.row_tokens", "update.prompts_per_row", "update.rows_per_microbatch"),
    "reward.num_workers",
)
"""Beginnings of the keys that may change when a run is continued: for how long, what is written, and the machine. What
the run computes stays the same but for rounding."""


class ConfigTree(ConfigDict):
    """A ConfigDict whose section `update` is reached like any other: `config.update.num_minibatches = 2`.

    ConfigDict has a method of that name, which would hide the section from attribute access, and so from
    config_flags (`--config.update.num_minibatches=2`). The method itself is not available here.
    """

    if TYPE_CHECKING:  # sections and values alike are reached as attributes, which no checker can follow
        update: Any

        def __getattr__(self, attribute: str) -> Any: ...

    else:

        @property
        def update(self) -> Any:
            return self["update"]


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a configuration: dotted name, type (a tuple with that of its items) and `Setting`."""

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
    """How a person calls the type: `int` is "an integer"."""
    return _TYPE_WORDS[kind]


def closest_key(name: str, known: Sequence[str]) -> str | None:
    """The known key a person most likely meant: same last part, else the most similar name; None when nothing is."""
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    close = difflib.get_close_matches(name, same_leaf or known, 1, cutoff=0.0 if same_leaf else 0.6)
    if close:
        return close[0]
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in known}
    return next((by_leaf[match] for match in difflib.get_close_matches(leaf, by_leaf, 1, cutoff=0.7)), None)


def unknown_key(name: str, value: object) -> ConfigError:
    """The error for a key that no configuration has, with the key that was probably meant."""
    known = [key.name for key in keys()]
    members = [key for key in known if key.startswith(name + ".")]
    if members:
        return ConfigError(f"{name} = {value!r}: {name} is a section; set one of its keys: {', '.join(members)}")
    close = closest_key(name, known)
    mend = f"did you mean {close}?" if close else "`python -m zppo_jax.main --help` lists all keys"
    return ConfigError(f"{name} = {value!r}: there is no such key; {mend}")


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> Config:
    """Turns a ConfigDict (or nested dict) into a checked `Config`; raises `ConfigError` on the first fault."""
    flat = dict(_flatten(values))
    known = {key.name: key for key in keys()}
    for name, value in flat.items():
        if name not in known:
            raise unknown_key(name, value)
    missing = [name for name in known if name not in flat]
    if missing:
        raise ConfigError(f"{missing[0]} is missing: configs/common.py holds every key; start from its get_config()")
    checked = {name: _checked(key, flat[name]) for name, key in known.items()}
    config = _build(Config, checked)
    _check_combinations(config)
    return config


def to_json(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts and lists, exactly what `config.json` holds."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = FREE_KEYS
) -> dict[str, tuple[Any, Any]]:
    """The keys that differ between two `to_json` values: {dotted name: (old, new)}; "absent" where there is none.

    Names that begin with one of `ignore` are left out.
    """
    before, after = dict(_flatten(old)), dict(_flatten(new))
    names = [*after, *(name for name in before if name not in after)]
    pairs = {
        name: (before.get(name, "absent"), after.get(name, "absent")) for name in names if not name.startswith(ignore)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flatten(values: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in values:
        value = values[name]
        if isinstance(value, Mapping | ConfigDict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + str(name), value


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `to_json` by dotted name."""
    return dict(_flatten(values))


def binding(config: Config) -> dict[str, Any]:
    """The keys that may not change when a run is continued, by dotted name, as in `to_json`."""
    return {name: value for name, value in _flatten(to_json(config)) if not name.startswith(FREE_KEYS)}


def _build(schema: Any, checked: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {
        name: _build(hint, checked, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else checked[prefix + name]
        for name, hint in typing.get_type_hints(schema).items()
    }
    return schema(**arguments)


def _checked(key: Key, value: Any) -> Any:
    """The value in the key's type, when it has that type and is in range."""
    typed = _typed(key.type, value)
    if typed is None:
        raise ConfigError(f"{key.name} = {value!r} has the wrong type: give {type_words(key.type)}")
    if key.type is float and not math.isfinite(typed):
        raise ConfigError(f"{key.name} = {value!r} is not finite: give {key.setting.mend() or 'a finite number'}")
    if not key.setting.allows(typed):
        raise ConfigError(f"{key.name} = {value!r} is out of range: give {key.setting.mend()}")
    return typed


def _typed(kind: Any, value: Any) -> Any:
    """The value as `kind`, or None when it is something else. True is no integer, and 4.0 is none either."""
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple | list):
        return tuple(value) if all(type(item) is typing.get_args(kind)[0] for item in value) else None
    return value if type(value) is kind else None


def _check_combinations(config: Config) -> None:
    """Refuses what is in range key by key but cannot work together."""
    for check in COMBINATIONS:
        fault = check(config)
        if fault is not None:
            raise ConfigError(fault)
