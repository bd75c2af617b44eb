"""The static sizes that the compiled programs of a run share."""

from __future__ import annotations

import bisect
import dataclasses

from zppo_jax.errors import ConfigError
from zppo_jax.types import Features


class PromptTooLongError(ConfigError):
    """A prompt is longer than every bucket; the message names it, its size and the key to raise."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The static sizes. `buckets`: prompt lengths in tokens, ascending; `patch_slots`: patches of all images of a
    prompt together; `max_new_tokens`: of a response; `one_ring`: whether all prompts are decoded together, so that none
    waits until prompts of another length have ended."""

    buckets: tuple[int, ...]
    patch_slots: int
    max_new_tokens: int
    one_ring: bool = False

    @property
    def num_keys(self) -> int:
        """The key slots of a rollout: the longest prompt and the longest response."""
        return self.buckets[-1] + self.max_new_tokens

    def ring_of(self, bucket: int) -> int:
        """The number of key slots with which prompts of a bucket are decoded.

        Every step reads all key slots, so short prompts are decoded in a smaller ring if that is worth a separate
        program: buckets whose rings differ by less than half share the larger one.
        """
        if self.one_ring:
            return self.num_keys
        rings = [length + self.max_new_tokens for length in self.buckets]
        for index in range(len(rings) - 2, -1, -1):
            if 1.5 * rings[index] > rings[index + 1]:
                rings[index] = rings[index + 1]
        return rings[bucket]

    def holds(self, features: Features) -> bool:
        """Whether some bucket is long enough, and the prompt's row of patches holds its images."""
        return self.holds_tokens(features.num_tokens) and features.num_patches <= self.patch_slots

    def holds_tokens(self, num_tokens: int) -> bool:
        """Whether some bucket holds a prompt of `num_tokens` tokens, of which the last is not prefilled."""
        return num_tokens - 1 <= self.buckets[-1]

    def bucket_of(self, features: Features, name: str = "") -> int:
        """The index of the smallest bucket that holds the prompt without its last token."""
        if features.num_patches > self.patch_slots:
            raise PromptTooLongError(
                f"prompt {name} shows {len(features.grid_thw_N3)} images of together {features.num_patches} "
                f"patches, and has room for {self.patch_slots}: raise prompt.max_images"
            )
        index = bisect.bisect_left(self.buckets, features.num_tokens - 1)
        if index == len(self.buckets):
            raise PromptTooLongError(
                f"prompt {name} has {features.num_tokens} tokens, more than the largest of "
                f"prompt.buckets={self.buckets}: add a larger bucket"
            )
        return index
