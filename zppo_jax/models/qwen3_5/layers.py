"""Building blocks shared by the language model and the vision tower: weights, norms, MLPs, rotary tables.

A weight is declared once, with its shape, logical axes and initialiser; shapes, shardings and random initialisation
derive from that. Networks are Flax NNX modules; functions pass their pure nested dict of arrays (`abstract`, `init`,
`bind`), stacked along leading layer axes so that one compiled body is scanned.

Shape suffixes: B rows, T tokens, D model, F mlp, N heads, H head dim, R half the rotary dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zppo_jax.models.qwen3_5.parameters import Params

Remat = Literal["none", "block", "group"]
"""What the backward pass recomputes instead of keeping: nothing, each layer (its input is kept), or each group of
layers (only the group's input is kept, and inside it each layer is recomputed once more)."""


def weight(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: str = "normal",
    num_inputs: int = 0,
) -> nnx.Param:
    """Declare one parameter: `axes` are logical names (parallel/rules.py), `init` is normal (1/sqrt(fan_in)),
    embedding, zeros or ones. The fan-in of a kernel is its `num_inputs` leading axes, of any other parameter its first
    axis."""
    key = rngs.params()
    if init == "zeros":
        value = jnp.zeros(shape, jnp.float32)
    elif init == "ones":
        value = jnp.ones(shape, jnp.float32)
    elif init == "embedding":
        value = 0.02 * jax.random.normal(key, shape, jnp.float32)
    else:
        value = jax.random.normal(key, shape, jnp.float32) / math.sqrt(math.prod(shape[: num_inputs or 1]))
    return nnx.Param(value, logical_axes=axes, num_inputs=num_inputs)


class Linear(nnx.Module):
    """x @ kernel (+ bias); the kernel is stored [*inputs, *outputs], with a separate axis for heads."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        axes: tuple[str | None, ...],
        bias: bool = False,
    ):
        inputs, outputs = (size if isinstance(size, tuple) else (size,) for size in (inputs, outputs))
        self.num_inputs = len(inputs)
        self.kernel = weight(rngs, (*inputs, *outputs), axes, num_inputs=self.num_inputs)
        if bias:
            self.bias = weight(rngs, outputs, axes[len(inputs) :], "zeros")

    def __call__(self, x: jax.Array) -> jax.Array:
        # As a product of two matrices: with more axes, the kernel's gradient would contract over rows and tokens at
        # once; XLA would transpose the activations first, and run at half the speed on a CPU.
        kernel = self.kernel[...]
        rows, outputs = x.shape[: x.ndim - self.num_inputs], kernel.shape[self.num_inputs :]
        y = x.reshape(math.prod(rows), -1) @ kernel.reshape(-1, math.prod(outputs))
        y = y.reshape(*rows, *outputs)
        return y + self.bias[...] if hasattr(self, "bias") else y


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm in float32 with a zero-centred weight: x / rms(x) * (1 + w)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with its weight."""

    def __init__(self, rngs: nnx.Rngs, size: int, eps: float):
        self.weight = weight(rngs, (size,), (None,), "zeros")
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.weight[...], self.eps)


class LayerNorm(nnx.Module):
    """Layer norm with bias, statistics in float32 (the vision tower's norm)."""

    def __init__(self, rngs: nnx.Rngs, size: int, eps: float = 1e-6):
        self.weight = weight(rngs, (size,), (None,), "ones")
        self.bias = weight(rngs, (size,), (None,), "zeros")
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.weight[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, rngs: nnx.Rngs, size: int, inner: int):
        self.gate = Linear(rngs, size, inner, ("embed", "mlp"))
        self.up = Linear(rngs, size, inner, ("embed", "mlp"))
        self.down = Linear(rngs, inner, size, ("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def rotate(x_BTNH: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """Split-half rotary embedding of the first 2R dims of each head; the rest passes through. T may be left out."""
    half = cos_BTR.shape[-1]
    first, second, rest = jnp.split(x_BTNH, [half, 2 * half], axis=-1)
    cos, sin = cos_BTR[..., None, :].astype(x_BTNH.dtype), sin_BTR[..., None, :].astype(x_BTNH.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def rotary_frequencies(dim: int, theta: float) -> np.ndarray:
    """theta^(-2j / dim) for j < dim / 2, computed on the host and rounded as in the reference.

    At position 100,000 one unit in the last place of a frequency is a hundredth of a radian, and XLA's `pow` is off by
    several.
    """
    return (1.0 / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)


def mrope_tables(
    positions_3BT: jax.Array, rotary_dim: int, theta: float, section: tuple[int, int, int]
) -> tuple[jax.Array, jax.Array]:
    """Interleaved M-RoPE: cosines and sines [B, T, R] in float32.

    Frequency j uses the height row if j % 3 == 1 and j < 3 * section[1], the width row if j % 3 == 2 and
    j < 3 * section[2], else the time row. Text has three equal rows, which makes it plain rotary embedding.
    """
    index = jnp.arange(rotary_dim // 2)
    frequency_R = rotary_frequencies(rotary_dim, theta)
    axis_R = jnp.where((index % 3 == 1) & (index < 3 * section[1]), 1, 0)
    axis_R = jnp.where((index % 3 == 2) & (index < 3 * section[2]), 2, axis_R)
    angle_3BTR = positions_3BT.astype(jnp.float32)[..., None] * frequency_R
    angle_BTR = jnp.where(axis_R == 1, angle_3BTR[1], jnp.where(axis_R == 2, angle_3BTR[2], angle_3BTR[0]))
    return jnp.cos(angle_BTR), jnp.sin(angle_BTR)


# ---------------------------------------------------------------- modules <-> pure dicts


@functools.lru_cache(maxsize=64)
def _structure(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any) -> tuple[Any, Any]:
    """The module's graph, and its parameters as shapes with the declarations of `weight`."""
    return nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))))


def _declared(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any, name: str) -> Params:
    """One declared property of each parameter."""
    state = _structure(build, config)[1]
    return nnx.to_pure_dict(
        jax.tree.map(lambda leaf: leaf.get_metadata(name), state, is_leaf=lambda x: isinstance(x, nnx.Param))
    )


def abstract(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any, stack: tuple[int, ...] = ()) -> Params:
    """The shapes of a module's parameters, with leading layer axes `stack`."""
    shapes = nnx.to_pure_dict(_structure(build, config)[1])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*stack, *x.shape), x.dtype), shapes)


def logical_axes(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any) -> Params:
    """The logical names of the axes of a module's parameters, without the leading layer axes."""
    return _declared(build, config, "logical_axes")


def num_inputs(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any) -> Params:
    """The number of input axes of each kernel, without the leading layer axes; 0 for all other parameters."""
    return _declared(build, config, "num_inputs")


def init(
    build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any, key: jax.Array, stack: tuple[int, ...] = ()
) -> Params:
    """Initialise a module's parameters at random, one draw per entry of the leading layer axes `stack`."""

    def one(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(build(config, nnx.Rngs(params=key)))[1])

    for _ in stack:
        one = jax.vmap(one)
    return one(jax.random.split(key, stack) if stack else key)


def bind(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any, params: Params) -> Any:
    """Make the module with the given arrays; this costs nothing inside a traced function."""
    return nnx.merge(_structure(build, config)[0], params)
