"""Rows as arrays on the update's mesh: each host makes its part of a micro-batch, all parts form one array.

Shape suffixes: B rows, T slots of a row, P groups, G rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.compilation import shapes_of
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.parallel import Hosts
from zppo_jax.update import rows
from zppo_jax.update.rows import RowShapes


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """Makes micro-batches for `mesh`, in which every host has equally many rows."""

    config: Config
    mesh: Mesh | None
    hosts: Hosts

    def part(
        self, groups: rows.Groups, weights_PG: np.ndarray, placed: Sequence[rows.Row], shapes: RowShapes
    ) -> dict[str, Any]:
        """Makes this host's rows of a micro-batch."""
        local = dataclasses.replace(shapes, num_rows=shapes.num_rows // self.hosts.count)
        return rows.microbatch(self.config, groups, weights_PG, placed, local)

    def joined(self, part: dict[str, Any]) -> dict[str, Any]:
        """Makes the micro-batch of all hosts' rows; this host's are `part`."""
        if self.mesh is None or self.hosts.count == 1:
            return part
        num_features = part["grid_IS5"][..., 0].size // self.config.vision.spatial_merge_size**2
        feature_BT = rows.joined_features(part["feature_BT"], parallel.host_shards(self.mesh), num_features)
        return parallel.from_hosts(self.mesh, part | {"feature_BT": feature_BT}, rows.AXES)

    def places(self, shapes: RowShapes) -> np.ndarray:
        """The indices of this host's rows among those of all hosts."""
        numbers = np.arange(shapes.num_rows)
        if self.mesh is None or self.hosts.count == 1:
            return numbers
        parts = parallel.host_shards(self.mesh)
        return numbers.reshape(len(parts) * self.hosts.count, -1)[parts].reshape(-1)

    def abstract(self, shapes: RowShapes) -> dict[str, Any]:
        """The shapes of a joined micro-batch, placed on the mesh in use."""
        micro = shapes_of(rows.microbatch(self.config, [], np.zeros((0, 0), np.float32), [], shapes))
        if self.hosts.count == 1:
            return micro
        return parallel.placed_shapes(micro, {name: rows.AXES[name] for name in micro})
