"""Turns a ConfigDict into a checked `Config`: names, types, ranges, combinations."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from zppo_jax.config.combinations import COMBINATIONS
from zppo_jax.config.names import Key, flat, keys, type_words, unknown_key
from zppo_jax.config.schema import Config
from zppo_jax.errors import ConfigError


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> Config:
    """Turns a ConfigDict (or nested dict) into a checked `Config`; raises `ConfigError` on the first fault."""
    given, known = flat(values), {key.name: key for key in keys()}
    for name, value in given.items():
        if name not in known:
            raise unknown_key(name, value)
    missing = [name for name in known if name not in given]
    if missing:
        raise ConfigError(f"{missing[0]} is missing: configs/paper.py holds every key; start from its get_config()")
    config = _build(Config, {name: _check(key, given[name]) for name, key in known.items()})
    _check_combinations(config)
    return config


def _build(schema: Any, checked: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {
        name: _build(hint, checked, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else checked[prefix + name]
        for name, hint in typing.get_type_hints(schema).items()
    }
    return schema(**arguments)


def _check(key: Key, value: Any) -> Any:
    """The value in the key's type; raises `ConfigError` if it has another type or is out of range."""
    typed = _typed(key.type, value)
    if typed is None:
        raise ConfigError(f"{key.name} = {value!r} has the wrong type: give {type_words(key.type)}")
    if key.type is float and not math.isfinite(typed):
        raise ConfigError(f"{key.name} = {value!r} is not finite: give {key.setting.rule() or 'a finite number'}")
    if not key.setting.allows(typed):
        raise ConfigError(f"{key.name} = {value!r} is out of range: give {key.setting.rule()}")
    return typed


def _typed(kind: Any, value: Any) -> Any:
    """The value as `kind`; None if it has another type. Neither True nor 4.0 is an integer."""
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple | list):
        return tuple(value) if all(type(item) is typing.get_args(kind)[0] for item in value) else None
    return value if type(value) is kind else None


def _check_combinations(config: Config) -> None:
    """Raises ConfigError for values that are each in range but cannot work together."""
    for check in COMBINATIONS:
        fault = check(config)
        if fault is not None:
            raise ConfigError(fault)
