"""The arrays of decoding: the slots, the rows that begin in them, the tokens of a chunk.

A rollout ends for one of four reasons. The device checks the first two; for the others the host names the slot in
`end_B` of the next chunk:

- a stop id was sampled: `Chunk.stopped_B`, finish reason "stop";
- it has `limit_B` tokens: finish reason "length";
- its text holds a stop string (session.py looks after every chunk): "stop", cut at that token;
- its request was cancelled: "abort".

Within a chunk decoding stops early when no row is live, or after `num_steps`, which the host lowers when no row has
more tokens left. On a mesh only the host decides: the other test would be a collective in every step.

Shape suffixes: P prompts, B rows (slots), S key slots, K tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import decode, text
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import filters

Array = jax.Array | np.ndarray
"""NumPy arrays on the host, JAX arrays in a program."""


def _of(kind: str, meaning: str, *axes: str | None) -> dict[str, Any]:
    """The metadata of a field: its dtype and shape, its meaning, the logical names of its axes."""
    return {"kind": kind, "meaning": meaning, "axes": axes}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """One rollout for each of B rows; all rows share the ring's cursor (slots.py explains why that is enough).

    Each field is declared with dtype and shape, meaning and logical axes; `axes` derives from that.
    """

    token_B: jax.Array = field(metadata=_of("int32 [B]", "next input: the last token, at first the prompt's", "batch"))
    position_B: jax.Array = field(metadata=_of("int32 [B]", "rope position of the next input", "batch"))
    count_B: jax.Array = field(metadata=_of("int32 [B]", "tokens sampled so far", "batch"))
    limit_B: jax.Array = field(metadata=_of("int32 [B]", "most tokens to sample", "batch"))
    live_B: jax.Array = field(metadata=_of("bool [B]", "the row samples: it has a rollout that has not ended", "batch"))
    key_B2: jax.Array = field(metadata=_of("uint32 [B, 2]", "the rollout's random key, as numbers", "batch", None))
    sampling: dict[str, jax.Array] = field(metadata=_of("{name: [B]}", "filters.settings of each row", "batch"))
    mask_BS: jax.Array = field(metadata=_of("bool [B, S]", "which keys of the ring are the row's", "batch", None))
    cursor: jax.Array = field(metadata=_of("int32 []", "key slot of the ring at which all rows write next"))
    states: decode.States = field(metadata=_of("decode.States", "each layer's states; their axes: decode.state_axes"))
    seen_BV: jax.Array | None = field(
        default=None, metadata=_of("bool [B, V]", "tokens of prompt and response; None: no penalties", "batch", None)
    )
    said_BV: jax.Array | None = field(
        default=None, metadata=_of("bool [B, V]", "tokens of the response; None: no penalties", "batch", None)
    )

    def axes(self, config: Config) -> Slots:
        """The same tree with the logical names of the axes in place of arrays."""
        named: dict[str, Any] = {
            one.name: jax.tree.map(lambda _, axes=one.metadata["axes"]: axes, getattr(self, one.name))
            for one in dataclasses.fields(self)
        }
        named["states"] = decode.state_axes(config.text)
        return Slots(**named)

    def constrained(self, config: Config) -> Slots:
        """Constrains the slots to the shardings of the rules on the mesh in use."""
        return parallel.constrain_tree(self, self.axes(config))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewRows:
    """Rows that begin: row b continues prompt `prompt_B[b]` of a prefilled batch. -1 leaves the row unchanged; its
    other values are then ignored. As in Slots: `limit_B`, `key_B2`, `sampling`."""

    prompt_B: Array
    token_B: Array
    """The prompt's last token, which is not prefilled."""
    position_B: Array
    """The rope position of that token."""
    limit_B: Array
    key_B2: Array
    sampling: Mapping[str, Array]
    seen_PV: Array | None = None
    """The tokens of each prompt, bool [P, V], if slots penalise."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """The result of one call of `decode`, for every row; whole on every device, because every process reads it.

    A row's new tokens are at the left of `tokens_BK`, followed by zeros; their number is the increase of `count_B`.
    """

    num_steps: jax.Array
    """The number of steps that were run, int32 []."""
    tokens_BK: jax.Array
    logprobs_BK: jax.Array
    """Log-probabilities of the untruncated distribution at the sampling temperature, float32."""
    kept_logprobs_BK: jax.Array
    """Log-probabilities of the distribution drawn from (penalised, truncated); 0 if greedy."""
    count_B: jax.Array
    """The tokens of the row so far, this chunk included."""
    live_B: jax.Array
    stopped_B: jax.Array
    """Whether the row ended in this chunk at a stop id."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def empty(config: Config, num_rows: int, num_keys: int, dtypes: tuple[str, str], penalises: bool = False) -> Slots:
    """Makes empty slots. `dtypes`: of keys, values and convolution contexts; of the recurrent states."""
    cache = text.empty_cache(config.text, num_rows, num_keys, jnp.dtype(dtypes[0]))
    cache["recurrent"] = cache["recurrent"].astype(dtypes[1])
    zeros: dict[str, Any] = {
        name: jnp.zeros(num_rows, jnp.int32) for name in ("token_B", "position_B", "count_B", "limit_B")
    }
    if penalises:
        zeros |= {name: jnp.zeros((num_rows, config.text.vocab_size), bool) for name in ("seen_BV", "said_BV")}
    slots = Slots(
        **zeros,
        live_B=jnp.zeros(num_rows, bool),
        key_B2=jax.random.key_data(jax.random.split(jax.random.key(0), num_rows)),
        sampling=jax.tree.map(jnp.asarray, filters.settings([filters.Sampling()] * num_rows)),
        mask_BS=cache["mask"],
        cursor=jnp.int32(0),
        states=decode.unstack_cache(cache, config.text),
    )
    return slots.constrained(config)
