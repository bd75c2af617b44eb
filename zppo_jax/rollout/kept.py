"""The caches that a sampler keeps from one call to the next: decoding weights, image features, counters.

Shape suffixes: P prompts, I rows of patches, M merged slots, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zppo_jax.compilation import Program
from zppo_jax.models.qwen3_5.decode_weights import Weights
from zppo_jax.rollout.counters import Counters

NO_IMAGE = ""
"""The key of a prompt without images, which may get any features."""


@dataclasses.dataclass
class DecodingWeights:
    """Caches the decoding weights of the parameters that were sampled from last: a copy as large as the language model.
    Call `release()` before that memory is needed for something else."""

    _made: tuple[Program, dict[str, Any], Weights] | None = None

    def get(self, join: Program, params: dict[str, Any], make: Callable[[], Weights]) -> Weights:
        """Returns the cached weights if this program made them from these parameters, else makes them with `make`. Two
        sets never exist at the same time."""
        if self._made is None or self._made[0] is not join or self._made[1] is not params:
            self.release()
            self._made = join, params, make()
        return self._made[2]

    def release(self) -> None:
        """Forgets the weights."""
        self._made = None


@jax.jit
def _stack(rows: tuple[jax.Array, ...], index_P: jax.Array) -> jax.Array:
    return jnp.stack([rows_IMD[index_P[place]] for place, rows_IMD in enumerate(rows)])


@dataclasses.dataclass
class VisionFeatures:
    """Caches the features of images between prompts that show the same ones: a question, its BCQ and its NCQ prompt.

    All are from one state of the vision tower, and take at most `budget` bytes on the device (further ones are not
    kept). `encoded` counts calls of the tower, `reused` those that were saved.
    """

    budget: int = 2**30
    encoded: int = 0
    reused: int = 0
    _tower: Any = None
    _held: dict[str, tuple[jax.Array, int]] = dataclasses.field(default_factory=dict)
    _bytes: int = 0
    _blank: jax.Array | None = None

    def get(self, keys: Sequence[str | None], tower: Any, encode: Callable[[], jax.Array]) -> jax.Array:
        """Returns features [P, M, D] of the prompts' images: the cached ones if all are cached, else those of `encode`.

        `keys` name the images of each prompt; None means that they will not be needed again. `tower` are the parameters
        of the vision tower; if they have changed, the cache is emptied.
        """
        if all(key == NO_IMAGE for key in keys):
            return self._for_texts(encode)
        if tower is not self._tower:
            self.release()
            self._tower = tower
        if self._held and all(key is not None and (key == NO_IMAGE or key in self._held) for key in keys):
            self.reused += 1
            some = next(iter(self._held.values()))
            rows = [self._held.get(key or NO_IMAGE, some) for key in keys]
            return _stack(tuple(rows_IMD for rows_IMD, _ in rows), np.asarray([row for _, row in rows], np.int32))
        self.encoded += 1
        features_IMD = encode()
        named = {key: (features_IMD, row) for row, key in enumerate(keys) if key}
        if named and self._bytes + features_IMD.nbytes <= self.budget:
            self._held |= named
            self._bytes += features_IMD.nbytes
        return features_IMD

    def release(self) -> None:
        """Forgets the features of images."""
        self._tower, self._held, self._bytes = None, {}, 0

    def _for_texts(self, encode: Callable[[], jax.Array]) -> jax.Array:
        """The features of the first call, whatever they are, so that prompts without images skip the tower."""
        if self._blank is None:
            self.encoded += 1
            self._blank = encode()
        return self._blank


@dataclasses.dataclass
class Kept:
    """All caches that one sampler keeps between calls. An engine for other parameters needs another one."""

    weights: DecodingWeights = dataclasses.field(default_factory=DecodingWeights)
    features: VisionFeatures = dataclasses.field(default_factory=VisionFeatures)
    counters: Counters = dataclasses.field(default_factory=Counters)

    def release(self) -> None:
        """Frees the memory of weights and features; the counters stay."""
        self.weights.release()
        self.features.release()
