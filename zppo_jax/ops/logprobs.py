"""Log-probabilities of given tokens from hidden states, with a gradient of their own.

Shape suffixes: X positions (any leading axes), D model, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

NEGATIVE = float("-inf")


def scaled_logits(logits_XV: jax.Array, temperature: jax.Array | float, banned_V: ArrayLike) -> jax.Array:
    """Logits in float32 at a temperature (0 counts as 1), banned ids at minus infinity.

    The sampler and the trainer both start from this, so that their distributions are the same function of the logits.
    """
    scale = jnp.where(jnp.asarray(temperature) == 0.0, 1.0, temperature)
    return jnp.where(banned_V, NEGATIVE, logits_XV.astype(jnp.float32) / scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def target_logprobs(
    hidden_XD: jax.Array, head_VD: jax.Array, target_X: jax.Array, temperature: float, banned_V: jax.Array
) -> jax.Array:
    """log softmax(hidden @ head^T / temperature)[target] over the ids that are not banned, float32 [X].

    The logits are the only array of size X x V that is kept, in the model's dtype: neither the softmax nor a gradient
    of the gather (which would be scattered into zeros) is ever written down. A banned target has minus infinity, and
    its position no gradient.
    """
    return _forward(hidden_XD, head_VD, target_X, temperature, banned_V)[0]


def _forward(hidden_XD, head_VD, target_X, temperature: float, banned_V):
    logits_XV = hidden_XD @ head_VD.T
    scaled_XV = scaled_logits(logits_XV, temperature, banned_V)
    norm_X = jax.nn.logsumexp(scaled_XV, axis=-1)
    chosen_X = jnp.take_along_axis(logits_XV, target_X[..., None], axis=-1)[..., 0]
    chosen_X = scaled_logits(chosen_X, temperature, jnp.take(jnp.asarray(banned_V), target_X))
    return chosen_X - norm_X, (hidden_XD, head_VD, target_X, banned_V, logits_XV, norm_X)


def _backward(temperature: float, kept, cotangent_X):
    hidden_XD, head_VD, target_X, banned_V, logits_XV, norm_X = kept
    scale = 1.0 if temperature == 0.0 else temperature
    cotangent_X = jnp.where(jnp.take(jnp.asarray(banned_V), target_X), 0.0, cotangent_X) / scale
    probability_XV = jnp.exp(scaled_logits(logits_XV, temperature, banned_V) - norm_X[..., None])
    is_target_XV = jnp.arange(logits_XV.shape[-1]) == target_X[..., None]
    slope_XV = ((is_target_XV - probability_XV) * cotangent_X[..., None]).astype(logits_XV.dtype)
    head_gradient_VD = slope_XV.reshape(-1, slope_XV.shape[-1]).T @ hidden_XD.reshape(-1, hidden_XD.shape[-1])
    return slope_XV @ head_VD, head_gradient_VD.astype(head_VD.dtype), None, None


target_logprobs.defvjp(_forward, _backward)
