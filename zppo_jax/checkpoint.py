"""One checkpoint holds everything a run is: parameters, optimiser, step, data position, replay buffer.

Random keys need no place in it: every draw comes from (seed, step, purpose). Arrays are Orbax arrays, the rest JSON;
nothing is pickled. A checkpoint that was cut short is never chosen, because Orbax renames it into place when complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zppo_jax.update.step import State


class Checkpoints:
    """The checkpoints of a run, by step.

    Args:
      directory: where they lie; created on the first save.
      keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: State, host: dict[str, Any]) -> None:
        """Write both parts under one step; `host` is JSON. A step that is saved already is left alone."""
        if step == self.latest_step:
            return
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
        )

    def restore(self, state: State) -> tuple[int, State, dict[str, Any]]:
        """The newest checkpoint: (step, state in the shapes and shardings of `state`, host values)."""
        step = self.latest_step
        assert step is not None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        )
        return step, restored["state"], restored["host"]

    def close(self) -> None:
        self._manager.close()


def equal(first: State, second: State) -> bool:
    """Whether two states are the same to the bit."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
