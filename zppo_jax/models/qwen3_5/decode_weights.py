"""The decoding weights: made once from the parameters, layer by layer, in the layout that a step reads fastest.

Layers are sliced from their stacks (hoisted out of the loop: SkyRL#1363, 1.65x), kernels that read the same input are
joined, axes are in the order that is read fastest. One table lists the parameters of each weight; its logical axes and
its number of input axes follow from the modules' declarations of these parameters.

Shape suffixes: D model, F mlp, G key heads of a linear layer, X outputs of its input product for one, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5 import text
from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.parameters import Params, flatten
from zppo_jax.parallel import constrain_tree, in_use

Weights = dict[str, Any]
"""{"embed" [V, D], "head" [D, V] or [V, D] (`weights_first`), "norm", "layers": group by group and layer by layer}."""

FEW_ROWS = 8


def weights_first(num_rows: int) -> bool:
    """Whether products are kernel @ x^T, with kernels [outputs, inputs]. On a CPU this reads the weights twice as fast
    as x @ kernel if up to FEW_ROWS rows are decoded at once, and the head needs no transposed copy; with 16 rows it is
    slower."""
    return num_rows <= FEW_ROWS and jax.default_backend() == "cpu" and not in_use()


def prepare(params: Params, config: TextConfig, num_rows: int) -> Weights:
    """Makes the weights for decoding `num_rows` rows: copies, except those that are `uncopied`."""
    return join(params, config, num_rows) | uncopied(params, num_rows)


def uncopied(params: Params, num_rows: int) -> Weights:
    """The weights that decoding shares with the parameters, if both are on the same mesh."""
    shared = {"embed": params["embed"]}
    return shared | {"head": text.head(params)} if weights_first(num_rows) else shared


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def join(params: Params, config: TextConfig, num_rows: int, moves: bool = False) -> Weights:
    """Makes all other decoding weights: once here, not in every call of the decoding program.

    They are on the mesh in use. If the parameters are on another one, nothing can be shared, and with `moves` the
    embedding is copied too.
    """

    def linear(g: int, i: int) -> Params:
        return _layer_weights(jax.tree.map(lambda x: x[g, i], params["linear"]), _LINEAR)

    def full(g: int) -> Params:
        return _layer_weights(jax.tree.map(lambda x: x[g], params["full"]), _FULL)

    groups = [[*(linear(g, i) for i in range(config.num_linear)), full(g)] for g in range(config.num_groups)]
    joined = {"norm": params["norm"]["weight"], "layers": groups}
    if weights_first(num_rows):
        return joined | {"layers": jax.tree.map(_inputs_last, groups, _num_inputs(config))}
    joined["head"] = text.head(params).T
    if moves:
        joined["embed"] = params["embed"]
    axes = weight_axes(config)
    return constrain_tree(joined, {name: axes[name] for name in joined})


def _inputs_last(weight: jax.Array, num_inputs: int) -> jax.Array:
    """Moves the input axes of a kernel behind its outputs; other weights are unchanged."""
    return jnp.moveaxis(weight, range(num_inputs), range(-num_inputs, 0))


class _Source(NamedTuple):
    """The parameters of a layer that one decoding weight is made from: one unchanged, several stacked along a new axis,
    or (without that axis) the outputs of several concatenated for each head, which is their second axis."""

    paths: tuple[str, ...]
    new_axis: int | None = None

    def join(self, layer: dict[str, jax.Array]) -> jax.Array:
        parts = [layer[path] for path in self.paths]
        if len(parts) == 1:
            return parts[0]
        if self.new_axis is not None:
            return jnp.stack(parts, axis=self.new_axis)
        return jnp.concatenate([part.reshape(*parts[0].shape[:2], -1) for part in parts], axis=-1)

    def axes(self, declared: dict[str, tuple[str | None, ...]]) -> tuple[str | None, ...]:
        first, place = declared[self.paths[0]], self.new_axis
        return first if place is None else (*first[:place], None, *first[place:])


_SHELL = {
    "input_norm": _Source(("input_norm/weight",)),
    "post_norm": _Source(("post_norm/weight",)),
    "gate_up": _Source(("mlp/gate/kernel", "mlp/up/kernel"), new_axis=1),
    "down": _Source(("mlp/down/kernel",)),
}
"""The weights of every layer outside its mixer."""

_LINEAR = _SHELL | {
    "conv": _Source(("mixer/conv",)),
    "a_log": _Source(("mixer/a_log",)),
    "dt_bias": _Source(("mixer/dt_bias",)),
    "gated_norm": _Source(("mixer/norm/weight",)),
    # One product reads the input: for each key head q, k and v, then z, a and b of its value heads.
    "inputs": _Source(("mixer/qkv/kernel", "mixer/z/kernel", "mixer/a/kernel", "mixer/b/kernel")),
    "out": _Source(("mixer/out/kernel",)),
}
_FULL = _SHELL | {
    "q_norm": _Source(("mixer/q_norm/weight",)),
    "k_norm": _Source(("mixer/k_norm/weight",)),
    "q": _Source(("mixer/q/kernel",)),
    "kv": _Source(("mixer/k/kernel", "mixer/v/kernel"), new_axis=2),
    "o": _Source(("mixer/o/kernel",)),
}


def _layer_weights(block: Params, sources: dict[str, _Source]) -> Params:
    layer = flatten(block)
    return {name: source.join(layer) for name, source in sources.items()}


def weight_axes(config: TextConfig) -> dict[str, Any]:
    """The logical names of the axes of the decoding weights."""
    axes = text.logical_axes(config)
    outer = {"embed": axes["embed"], "head": text.head(axes)[::-1], "norm": axes["norm"]["weight"]}
    return outer | {"layers": _layer_by_layer(config, axes, _Source.axes)}


def _num_inputs(config: TextConfig) -> list[list[dict[str, int]]]:
    """The number of input axes of each weight of a layer; 0 if it is not a kernel."""
    return _layer_by_layer(config, text.num_inputs(config), lambda source, counts: counts[source.paths[0]])


def _layer_by_layer(
    config: TextConfig, declared: Params, derive: Callable[[_Source, dict[str, Any]], Any]
) -> list[list[dict[str, Any]]]:
    """Derives a property of each weight from the declarations of its parameters, group by group and layer by layer."""
    linear, full = (
        {name: derive(source, flatten(declared[kind])) for name, source in sources.items()}
        for kind, sources in (("linear", _LINEAR), ("full", _FULL))
    )
    return [[linear] * config.num_linear + [full] for _ in range(config.num_groups)]
