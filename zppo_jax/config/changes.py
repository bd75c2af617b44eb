"""Configurations as JSON, the differences between two, and the keys that may change when a run is continued."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from zppo_jax.config.names import flat, keys
from zppo_jax.config.schema import Config


def to_json(config: Config) -> dict[str, Any]:
    """Converts the configuration to nested dicts and lists, as in `config.json`."""
    return json.loads(json.dumps(dataclasses.asdict(config), allow_nan=False))


def _free_keys() -> tuple[str, ...]:
    known = list(keys())
    sections = dict.fromkeys(key.name.rpartition(".")[0] for key in known)
    whole = tuple(
        f"{section}."
        for section in filter(None, sections)
        if all(key.setting.may_change for key in known if key.name.startswith(f"{section}."))
    )
    single = (key.name for key in known if key.setting.may_change and not key.name.startswith(whole))
    return *whole, *single


FREE_KEYS = _free_keys()
"""Prefixes of the names of keys that are declared with `may_change`. A section in which every key may change is one
prefix, so that a key of another version in it may change too."""


def changed_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: tuple[str, ...] = FREE_KEYS
) -> dict[str, tuple[Any, Any]]:
    """The keys that differ between two `to_json` values: {dotted name: (old, new)}; "absent" if one has no such key.

    Names that begin with one of `ignore` are left out.
    """
    before, after = flat(old), flat(new)
    names = [*after, *(name for name in before if name not in after)]
    pairs = {
        name: (before.get(name, "absent"), after.get(name, "absent")) for name in names if not name.startswith(ignore)
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def binding(config: Config) -> dict[str, Any]:
    """The keys that may not change when a run is continued, by dotted name, with their values as in `to_json`."""
    return {name: value for name, value in flat(to_json(config)).items() if not name.startswith(FREE_KEYS)}
