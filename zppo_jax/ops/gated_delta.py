"""The gated delta rule of Gated DeltaNet (arXiv:2412.06464): reference, chunked and single-step forms.

    S <- exp(g_t) S;   d_t = beta_t (v_t - S^T k_t);   S <- S + k_t d_t^T;   o_t = S^T q_t

Everything runs in float32 (the dtype rule of Qwen3.5). Padding is neutral when g = 0 and beta = 0 there.

Shape suffixes: B rows, T tokens, N heads, K key dim, V value dim, C chunks, L chunk length (M for its second axis).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST
SMALL_BLOCK = 16


def gated_delta_step(q_BNK, k_BNK, v_BNV, g_BN, beta_BN, state_BNKV):
    """Processes one token. Returns (o_BNV, state_BNKV); all float32.

    The state is read once, before it changes: one product applies it to k and q, and the output follows from
    o = exp(g) S^T q + (q . k) d. Then it is updated in one pass, in place if the caller donates it.
    """
    kq_BN2K = jnp.stack([k_BNK, q_BNK], axis=-2)
    read_BN2V = jnp.matmul(kq_BN2K, state_BNKV, precision=HIGHEST) * jnp.exp(g_BN)[..., None, None]
    delta_BNV = (v_BNV - read_BN2V[..., 0, :]) * beta_BN[..., None]
    overlap_BN1 = jnp.sum(q_BNK * k_BNK, axis=-1, keepdims=True)
    state_BNKV = state_BNKV * jnp.exp(g_BN)[..., None, None] + k_BNK[..., None] * delta_BNV[..., None, :]
    return read_BN2V[..., 1, :] + overlap_BN1 * delta_BNV, state_BNKV


def gated_delta_recurrent(q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN, state_BNKV):
    """Applies the equations token by token: the slow, obvious form that the other two are tested against."""

    def step(state_BNKV, token):
        q, k, v, g, beta = token
        state_BNKV = state_BNKV * jnp.exp(g)[..., None, None]
        delta_BNV = (v - jnp.einsum("bnkv,bnk->bnv", state_BNKV, k, precision=HIGHEST)) * beta[..., None]
        state_BNKV = state_BNKV + jnp.einsum("bnk,bnv->bnkv", k, delta_BNV, precision=HIGHEST)
        return state_BNKV, jnp.einsum("bnkv,bnk->bnv", state_BNKV, q, precision=HIGHEST)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN))
    state_BNKV, out_TBNV = jax.lax.scan(step, state_BNKV, tokens)
    return jnp.moveaxis(out_TBNV, 0, 1), state_BNKV


@jax.custom_vjp
def inverse_unit_lower(strict_LM: jax.Array) -> jax.Array:
    """(I + S)^-1 for strictly lower triangular S of shape [..., L, L], L a power of two, by block doubling.

    The inverses X and Y of two neighbouring diagonal blocks of size b give the inverse of the block of size 2b: its
    lower left corner is -Y (S's corner) X. These are matrix products only, and every intermediate is an exact inverse
    of a principal block, so near-parallel keys are harmless; power-series (Neumann, Newton-Schulz) forms overflow
    there. The gradient is that of an inverse, dS = -X^T dX X^T: two products instead of backpropagation through every
    level.
    """
    length = strict_LM.shape[-1]
    size = min(length, SMALL_BLOCK)
    inverse = _small_inverse(_diagonal_blocks(strict_LM, size, 0))
    while size < length:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = _diagonal_blocks(strict_LM, size, 1)[..., 0::2, :, :]
        corner = -jnp.matmul(jnp.matmul(second, corner, precision=HIGHEST), first, precision=HIGHEST)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([upper, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        size *= 2
    return inverse[..., 0, :, :]


def _diagonal_blocks(x_LM: jax.Array, size: int, below: int) -> jax.Array:
    """The blocks [..., L / size - below, size, size] of the diagonal, or of the diagonal `below` it."""
    count = x_LM.shape[-1] // size
    blocks = x_LM.reshape(*x_LM.shape[:-2], count, size, count, size)
    chosen = [blocks[..., index + below, :, index, :] for index in range(count - below)]
    return jnp.stack(chosen, axis=-3)


def _small_inverse(strict_LM: jax.Array) -> jax.Array:
    """Inverts small blocks, by products of whole blocks with a mask: at this size cheaper than slicing."""
    length = strict_LM.shape[-1]
    inverse = jnp.eye(length, dtype=strict_LM.dtype) - _corners(strict_LM, 1)  # blocks of size 1 are their own inverses
    block = 2
    while block < length:
        product = jnp.matmul(inverse, _corners(strict_LM, block), precision=HIGHEST)
        inverse = inverse - jnp.matmul(product, inverse, precision=HIGHEST)
        block *= 2
    return inverse


def _corners(strict_LM: jax.Array, block: int) -> jax.Array:
    """Keeps the lower left corner of every two neighbouring blocks on the diagonal; zero elsewhere."""
    index = jnp.arange(strict_LM.shape[-1])
    pair, second = index // (2 * block), (index // block) % 2 == 1
    return jnp.where((pair[:, None] == pair) & second[:, None] & ~second, strict_LM, 0.0)


def _inverse_forward(strict_LM: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = inverse_unit_lower(strict_LM)
    return inverse, inverse


def _inverse_backward(inverse: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    product = jnp.matmul(jnp.matmul(transposed, cotangent, precision=HIGHEST), transposed, precision=HIGHEST)
    return (-jnp.tril(product, -1),)


inverse_unit_lower.defvjp(_inverse_forward, _inverse_backward)


def chunk_length(num_tokens: int, limit: int = 64) -> int:
    """The smallest power of two that holds the sequence, at most `limit`, so that short rows need no padding."""
    length = 1
    while length < min(num_tokens, limit):
        length *= 2
    return length


def longest_chunk(key_dim: int) -> int:
    """The longest chunk in rows of trees, for heads of that size: the work inside a chunk grows with its length, the
    work on the state with the head; and a prompt that is shorter than a chunk is padded to one."""
    return min(max(key_dim // 2, 32), 64)


def gated_delta_chunked(q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN, state_BNKV, *, limit: int = 64):
    """Computes the delta rule in chunks of matrix products (WY form). Same values as `gated_delta_recurrent`.

    Arguments are float32: q already scaled by 1/sqrt(K), q and k already normalised. Returns (o [B, T, N, V], the state
    after the last token).
    """
    num_tokens = q_BTNK.shape[1]
    length = chunk_length(num_tokens, limit)
    padding = -num_tokens % length

    def chunks(x):
        return _chunks(jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2)), length)

    def cross(state_BNKV, part):
        after_BNKV, new = _advance(state_BNKV, part)
        return after_BNKV, _read(state_BNKV, new, part)

    parts = _local(*(chunks(x) for x in (q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN)))
    state_BNKV, out = jax.lax.scan(cross, state_BNKV, parts)
    return _rows(out)[:, :num_tokens], state_BNKV


CONTINUES, BRANCHES, BEGINS = 0, 1, 2
"""The source of a chunk's state: the chunk before it, the end of the trunk before it, or none (zeros)."""


def gated_delta_tree(q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN, source_BC, is_trunk_BC):
    """Computes the delta rule for rows of trees: a trunk (a prompt), its branches (responses), perhaps another trunk.

    Each trunk and each branch fills whole chunks, with neutral pads at its end. `source_BC` is the source of each
    chunk's state, `is_trunk_BC` whether the chunk belongs to a trunk. T is a multiple of C. Returns o [B, T, N, V].
    """
    length = q_BTNK.shape[1] // source_BC.shape[1]
    parts = _local(*(_chunks(x, length) for x in (q_BTNK, k_BTNK, v_BTNV, g_BTN, beta_BTN)))

    states_CBNKV, new = _states(parts, source_BC.T, is_trunk_BC.T)
    return _rows(_read(states_CBNKV, new, parts))


def _chunks(x_BT: jax.Array, length: int) -> jax.Array:
    """Reshapes [B, T, N, ...] to [C, B, N, L, ...]."""
    return jnp.moveaxis(x_BT.reshape(x_BT.shape[0], -1, length, *x_BT.shape[2:]), (1, 3), (0, 2))


def _rows(x_CBNLV: jax.Array) -> jax.Array:
    """Reshapes [C, B, N, L, V] to [B, T, N, V]."""
    x = jnp.moveaxis(x_CBNLV, (0, 2), (1, 3))
    return x.reshape(x.shape[0], -1, *x.shape[3:])


@jax.checkpoint
def _local(q, k, v, g, beta):
    """The part that needs no state, for all chunks at once; recomputed in the backward pass, because it is ten times as
    large as its arguments."""
    length = q.shape[-2]
    lower = jnp.tril(jnp.ones((length, length), bool))
    decay = jnp.cumsum(g, axis=-1)
    # The exponent is masked before exp: above the diagonal it is positive and would overflow into inf * 0.
    ratio = jnp.exp(jnp.where(lower, decay[..., :, None] - decay[..., None, :], 0.0)) * lower
    since_start = jnp.exp(decay)[..., None]
    keys = k * beta[..., None]
    overlap = jnp.einsum("cbnik,cbnjk->cbnij", keys, k, precision=HIGHEST) * ratio
    inverse = inverse_unit_lower(jnp.where(jnp.tril(lower, -1), overlap, 0.0))
    u = jnp.matmul(inverse, v * beta[..., None], precision=HIGHEST)
    w = jnp.matmul(inverse, keys * since_start, precision=HIGHEST)
    attention = jnp.einsum("cbnik,cbnjk->cbnij", q, k, precision=HIGHEST) * ratio
    carried = k * jnp.exp(decay[..., -1:] - decay)[..., None]
    total = jnp.exp(decay[..., -1])[..., None, None]
    return u, w, attention, q * since_start, carried, total


def _advance(state, part):
    """Advances the state over one chunk; returns the state after it, and the chunk's writes (d of all its tokens)."""
    u, w, _, _, carried, total = part
    new = u - jnp.matmul(w, state, precision=HIGHEST)
    return total * state + jnp.einsum("bnlk,bnlv->bnkv", carried, new, precision=HIGHEST), new


def _read(state, new, part):
    """The outputs of a chunk, or of all at once, from the state before it and what it writes."""
    _, _, attention, query, _, _ = part
    return jnp.matmul(query, state, precision=HIGHEST) + jnp.matmul(attention, new, precision=HIGHEST)


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


# ---------------------------------------------------------------- states of trees


@jax.custom_vjp
def _states(parts, source_CB, is_trunk_CB):
    """The states [C, B, N, K, V] before the chunks of rows of trees, and what each chunk writes, [C, B, N, L, V].

    Only the state passed from chunk to chunk is sequential, in the gradient as well: two products per chunk, where
    differentiating the scan would make eight. The rest are products over all chunks at once.
    """

    def step(carry, chunk):
        state, trunk = carry
        part, source, is_trunk = chunk
        state = jnp.where(source == BRANCHES, trunk, state)
        state = jnp.where(source == BEGINS, 0.0, state)
        after, new = _advance(state, part)
        return (after, jnp.where(is_trunk, after, trunk)), (state, new)

    u, _, _, query, _, _ = parts
    nothing = jnp.zeros((*u.shape[1:3], query.shape[-1], u.shape[-1]), u.dtype)
    return jax.lax.scan(step, (nothing, nothing), (parts, _per_head(source_CB), _per_head(is_trunk_CB)))[1]


def _states_forward(parts, source_CB, is_trunk_CB):
    states, new = _states(parts, source_CB, is_trunk_CB)
    _, w, _, _, carried, total = parts
    return (states, new), (w, carried, total, source_CB, is_trunk_CB, states, new)


def _states_backward(residuals, slopes):
    w, carried, total, source_CB, is_trunk_CB, states, new = residuals

    def step(carry, chunk):
        after, trunk = carry  # gradients of the state after this chunk, and of the trunk's for later branches
        w, carried, total, source, is_trunk, of_state, of_new = chunk
        after = after + jnp.where(is_trunk, trunk, 0.0)
        of_new = of_new + jnp.matmul(carried, after, precision=HIGHEST)
        of_state = of_state + total * after - jnp.matmul(_transposed(w), of_new, precision=HIGHEST)
        trunk = jnp.where(is_trunk, 0.0, trunk) + jnp.where(source == BRANCHES, of_state, 0.0)
        return (jnp.where(source == CONTINUES, of_state, 0.0), trunk), (after, of_new)

    nothing = jnp.zeros_like(states[0])
    chunks = (w, carried, total, _per_head(source_CB), _per_head(is_trunk_CB), *slopes)
    after, of_new = jax.lax.scan(step, (nothing, nothing), chunks, reverse=True)[1]
    of_w = -jnp.matmul(of_new, _transposed(states), precision=HIGHEST)
    of_carried = jnp.matmul(new, _transposed(after), precision=HIGHEST)
    of_total = jnp.sum(states * after, axis=(-1, -2), keepdims=True)
    return (of_new, of_w, None, None, of_carried, of_total), None, None


_states.defvjp(_states_forward, _states_backward)


def _per_head(x_CB: jax.Array) -> jax.Array:
    return x_CB[:, :, None, None, None]
