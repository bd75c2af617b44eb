"""Parameters as a nested dict of arrays (or shapes), and as a flat one by path."""

from __future__ import annotations

import math
from typing import Any

import jax
from flax import traverse_util

Params = dict[str, Any]


def flatten(tree: Params) -> dict[str, Any]:
    """Flatten {"a": {"b": x}} to {"a/b": x}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def count(params: Params | Any) -> int:
    """The number of parameters of a tree (arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
