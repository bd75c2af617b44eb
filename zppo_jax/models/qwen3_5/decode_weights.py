"""The decoding weights: made once from the parameters, layer by layer, in the layout that a step reads fastest.

Layers are sliced from their stacks (hoisted out of the loop: SkyRL#1363, 1.65x), kernels that read the same input are
joined, axes are in the order that is read fastest. One table lists the parameters of each weight; its logical axes and
its number of input axes follow from the modules' declarations of these parameters.

Of a model whose kernels stay float8 (quantised.py), nothing is copied but its other parameters: a step reads float8
kernels from their stacks, and joins products instead of kernels.

Shape suffixes: D model, F mlp, G key heads of a linear layer, X outputs of its input product for one, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5 import quantised, text
from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.parameters import Params, flatten
from zppo_jax.parallel import constrain_tree, in_use

Weights = dict[str, Any]
"""{"embed" [V, D], "head" [D, V] or [V, D] (`weights_first`), "norm", "layers": group by group and layer by layer}, and
with float8 kernels {"stacks": {"linear", "full"}: the parameters of all products with such a kernel, by path}."""

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
    stacks = _stacks(params)
    shared = {"embed": params["embed"]} | ({"stacks": stacks} if any(stacks.values()) else {})
    return shared | {"head": text.head(params)} if weights_first(num_rows) else shared


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def join(params: Params, config: TextConfig, num_rows: int, moves: bool = False) -> Weights:
    """Makes all other decoding weights: once here, not in every call of the decoding program.

    They are on the mesh in use. If the parameters are on another one, nothing can be shared, and with `moves` the
    embedding and the stacks are copied too.
    """
    copied = _copied(params)

    def linear(g: int, i: int) -> Params:
        return _layer_weights(jax.tree.map(lambda x: x[g, i], params["linear"]), copied["linear"])

    def full(g: int) -> Params:
        return _layer_weights(jax.tree.map(lambda x: x[g], params["full"]), copied["full"])

    groups = [[*(linear(g, i) for i in range(config.num_linear)), full(g)] for g in range(config.num_groups)]
    joined = {"norm": params["norm"]["weight"], "layers": groups}
    if weights_first(num_rows):
        return joined | {"layers": jax.tree.map(_inputs_last, groups, _num_inputs(config, params))}
    joined["head"] = text.head(params).T
    if moves:
        joined |= uncopied(params, num_rows)
    axes = weight_axes(config, params)
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


_SOURCES = {"linear": _LINEAR, "full": _FULL}


def _layer_weights(block: Params, sources: dict[str, _Source]) -> Params:
    layer = flatten(block)
    return {name: source.join(layer) for name, source in sources.items()}


def weight_axes(config: TextConfig, params: Params | None = None) -> dict[str, Any]:
    """The logical names of the axes of the decoding weights; `params` may have float8 kernels."""
    axes = text.logical_axes(config)
    outer = {"embed": axes["embed"], "head": text.head(axes)[::-1], "norm": axes["norm"]["weight"]}
    outer |= {"layers": _layer_by_layer(config, axes, _Source.axes, params)}
    stacks = _stacks(params) if params else {}
    if not any(stacks.values()):
        return outer
    flat = {kind: flatten(quantised.with_scales(axes[kind], params[kind])) for kind in stacks} if params else {}
    return outer | {"stacks": {kind: {path: flat[kind][path] for path in stack} for kind, stack in stacks.items()}}


def _num_inputs(config: TextConfig, params: Params | None = None) -> list[list[dict[str, int]]]:
    """The number of input axes of each weight of a layer; 0 if it is not a kernel."""
    return _layer_by_layer(config, text.num_inputs(config), lambda source, counts: counts[source.paths[0]], params)


def _layer_by_layer(
    config: TextConfig, declared: Params, derive: Callable[[_Source, dict[str, Any]], Any], params: Params | None
) -> list[list[dict[str, Any]]]:
    """Derives a property of each weight from the declarations of its parameters, group by group and layer by layer."""
    linear, full = (
        {name: derive(source, flatten(declared[kind])) for name, source in sources.items()}
        for kind, sources in (_copied(params) if params else _SOURCES).items()
    )
    return [[linear] * config.num_linear + [full] for _ in range(config.num_groups)]


# ---------------------------------------------------------------- float8 kernels, read from their stacks


def _copied(params: Params) -> dict[str, dict[str, _Source]]:
    """The weights of a layer of each kind that are made from plain parameters."""

    def plain(kind: str) -> dict[str, _Source]:
        float8 = set(quantised.kernels(flatten(params[kind])))
        return {name: source for name, source in _SOURCES[kind].items() if not float8.intersection(source.paths)}

    return {kind: plain(kind) for kind in _SOURCES}


def _stacks(params: Params) -> dict[str, dict[str, jax.Array]]:
    """The parameters that the other weights are read from, scales included."""
    copied = _copied(params)

    def stack(kind: str) -> dict[str, jax.Array]:
        flat = flatten(params[kind])
        paths = [path for name, source in _SOURCES[kind].items() if name not in copied[kind] for path in source.paths]
        return {one: flat[one] for path in paths for one in (path, quantised.scale_of(path)) if one in flat}

    return {kind: stack(kind) for kind in _SOURCES}


class Stacked(NamedTuple):
    """One layer's weight that stays in the stacks: its source, the stacks of its kind, and the layer's index."""

    source: _Source
    stacks: dict[str, jax.Array]
    index: tuple[int, ...]

    def product(self, x: jax.Array) -> jax.Array:
        """The product of rows x [B, *inputs] with the weight: that with each parameter, joined."""
        return self.source.join({path: self._part(x, path) for path in self.source.paths})

    def _part(self, x: jax.Array, path: str) -> jax.Array:
        # Without the barrier XLA may do what does not depend on x before the loop over tokens: it would hold a slice or
        # a de-quantised copy of every kernel.
        scales = self.stacks.get(quantised.scale_of(path))
        x, kernels, scales = jax.lax.optimization_barrier((x, self.stacks[path], scales))
        kernel = kernels[self.index]
        kernel = kernel if scales is None else quantised.dequantise(kernel, scales[self.index], x.dtype)
        return jnp.tensordot(x, kernel, x.ndim - 1)


def stacked(weights: Weights, kind: str, index: tuple[int, ...]) -> dict[str, Stacked]:
    """The weights of a layer ("linear" or "full") that stay in the stacks, by name."""
    stacks = weights.get("stacks", {}).get(kind, {})
    return {name: Stacked(one, stacks, index) for name, one in _SOURCES[kind].items() if one.paths[0] in stacks}
