"""The configuration of a run: frozen dataclasses, complete and checked.

A config file (configs/tiny.py) returns an `ml_collections.ConfigDict`, which the command line overrides. The rest of
the package does not read that: it reads the `Config` that `from_config_dict` makes from it, whose fields are complete
(there are no defaults in the code), typed and in range. A configuration that cannot work is refused before anything is
compiled, in one line that names the key, the value and the fix.

A key is declared once, in schema.py: its meaning, which `--help` prints, its range, and whether it may change when a
run is continued.
"""

from __future__ import annotations

from zppo_jax.config.changes import binding, changed_keys, to_json
from zppo_jax.config.names import Key, closest_key, flat, keys, type_words, unknown_key
from zppo_jax.config.parsing import from_config_dict
from zppo_jax.config.schema import Config
from zppo_jax.config.tree import ConfigTree

__all__ = [
    "Config",
    "ConfigTree",
    "Key",
    "binding",
    "changed_keys",
    "closest_key",
    "flat",
    "from_config_dict",
    "keys",
    "to_json",
    "type_words",
    "unknown_key",
]
