"""The type that a config file returns: a ConfigDict in which every section is an attribute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict


class ConfigTree(ConfigDict):
    """A ConfigDict whose section `update` is an attribute like any other: `config.update.num_minibatches = 2`.

    ConfigDict has a method of that name, which would hide the section from attribute access, and so from
    config_flags (`--config.update.num_minibatches=2`). The method is not available here.
    """

    if TYPE_CHECKING:  # sections and values are attributes, which no type checker can follow
        update: Any

        def __getattr__(self, attribute: str) -> Any: ...

    else:

        @property
        def update(self) -> Any:
            return self["update"]
