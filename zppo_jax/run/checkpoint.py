"""One checkpoint holds the whole state of a run: parameters, optimiser, step, data position, replay buffer.

It needs no random keys: every draw comes from (seed, step, purpose). Arrays are Orbax arrays, the rest JSON; nothing is
pickled. A checkpoint that was cut short is never used, because Orbax renames it into place when it is complete, with a
digest of every file (saved.py); files that the disk has changed since are refused.
Checkpoints are written in the background while training goes on; a failure is reported at the next `check` or `save`.
Hosts write one checkpoint together: if one of them cannot write its part, the checkpoint fails on all.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from zppo_jax.errors import WorkdirError
from zppo_jax.files import probe
from zppo_jax.parallel import Hosts
from zppo_jax.run import digests, saved
from zppo_jax.run.quiet import first_line, quiet
from zppo_jax.run.saved import continues, saved_steps
from zppo_jax.update.programs import State

BARRIER_SECONDS = 300
"""How long a host that has written waits for the others; at most `watchdog.host_seconds`."""


class _Signed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint that, once all files are written, is read back and gets its digests, and then its name."""

    async def finalize(self) -> None:
        """Keeps Orbax's temporary name until the digests are written."""
        suffix, final = ocp.path.atomicity.TMP_DIR_SUFFIX, self._final_path
        if suffix in final.parent.name:  # a part of a checkpoint
            return await super().finalize()
        self._final_path = final.with_name(f"{final.name}.complete{suffix}")
        await super().finalize()
        await asyncio.to_thread(_read_back, Path(self._final_path))
        await asyncio.to_thread(digests.write, Path(self._final_path))
        await asyncio.to_thread(self._final_path.rename, final)
        self._final_path = final


def _read_back(path: Path) -> None:
    """Reads the checkpoint back, so that a save which could not be restored fails now and not after the run."""
    try:
        _stored_tree(path)
    except Exception as error:  # as in `restore`
        raise WorkdirError(
            f"the checkpoint {path.name.partition('.')[0]} cannot be read back from {path.parent} "
            f"({first_line(error)}): continue in another --workdir"
        ) from error


class Checkpoints:
    """The checkpoints of a run, by step. A state is copied off the device at once and written in the background.

    Args:
      directory: the directory of the checkpoints; created on the first save.
      keep: how many of the newest are kept.
      keep_best: how many more are kept, those of the best held-out accuracy.
      hosts: this host among those that save; all call the same methods in the same order.
    """

    def __init__(self, directory: Path, keep: int, keep_best: int = 0, hosts: Hosts | None = None) -> None:
        self._directory, self._hosts = directory.absolute(), hosts or Hosts()
        self._policies = [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["accuracy"], n=keep_best, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = self._opened()
        self._saving: int | None = None
        self._saved = self.latest_step  # cached: hosts that look at different moments would not agree

    def _opened(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(self._policies),
            best_fn=lambda metrics: metrics["accuracy"],
            cleanup_tmp_directories=True,
            temporary_path_class=_Signed,
            async_options=ocp.AsyncOptions(timeout_secs=int(min(BARRIER_SECONDS, self._hosts.timeout_seconds))),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
        unread = [step for step, accuracy in saved.accuracies(self._directory).items() if accuracy is None]
        if unread:  # the constructor reads the metrics of all checkpoints
            reason = f"{saved.METRICS_FILE}: its content is not what was saved"
            raise WorkdirError(saved.damaged(self._directory, unread[-1], reason))
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return max(saved_steps(self._directory), default=None)

    def save(self, step: int, state: State, host: dict[str, Any], accuracy: float | None = None) -> None:
        """Begins to write both parts under one step; `host` is JSON, `accuracy` the held-out accuracy if it was
        measured at this step. A step that is already saved is left unchanged.

        Raises WorkdirError if this checkpoint, or the previous one that was still being written, cannot be written
        (disk full, quota, file-size limit) on some host; the earlier ones are intact, and a later save may succeed.
        """
        self.finish()
        if step == self._saved:
            return
        parts = ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host | saved.SIGNED))
        with self._agreed(step):  # orbax's hosts wait for one another, so none may begin a save that fails on another
            self._require_space(step, state)
            probe(self._directory)  # orbax's threads would wait long for a directory that cannot be made
        with self._agreed(step):
            self._manager.save(step, args=parts, metrics=None if accuracy is None else {"accuracy": accuracy})
        self._saving = step

    def finish(self) -> None:
        """Waits until everything is written; raises WorkdirError if that fails."""
        step, self._saving = self._saving, None
        if step is not None:
            with self._agreed(step):
                self._manager.wait_until_finished()
            self._saved = step

    def check(self) -> None:
        """Raises WorkdirError if the checkpoint that is being written has failed; does not wait. With several hosts
        only the collective `finish` reports this."""
        if self._saving is not None and self._hosts.count == 1:
            with self._agreed(self._saving):
                self._manager.check_for_errors()

    @contextlib.contextmanager
    def _agreed(self, step: int) -> Iterator[None]:
        """If the block fails on any host, raises the same one-line WorkdirError on all, and reopens the manager so that
        it forgets the failed save."""
        failure, cause = "", None
        try:
            with quiet():
                yield
        except Exception as error:  # tensorstore and orbax have their own exceptions for a full disk
            failure, cause = self._described(step, error), error
        failures = self._hosts.gather(failure, f"the checkpoint of step {step}")
        if not any(failures):
            return
        self._saving = None
        self.close()
        with contextlib.suppress(Exception), quiet():  # the directory may be gone
            self._manager = self._opened()
        host = next(host for host, reason in enumerate(failures) if reason)
        raise WorkdirError(failure or f"host {host}: {failures[host]}") from cause

    def _described(self, step: int, error: Exception) -> str:
        if isinstance(error, WorkdirError):
            return str(error)
        fix = "free some space" if self._directory.is_dir() else "the directory is gone; put it back"
        return (
            f"the checkpoint of step {step} cannot be written to {self._directory} ({first_line(error)}): "
            f"{fix}, then the same command {continues(self.latest_step)}"
        )

    def reached_preemption(self, step: int) -> bool:
        """Whether a machine is about to be preempted; all hosts agree on it at the end of a step."""
        return self._manager.reached_preemption(step)

    def restore(
        self, state: State, report: Callable[[str], None] = lambda line: None
    ) -> tuple[int, State, dict[str, Any]]:
        """Restores the newest checkpoint, whatever mesh and number of processes saved it: (step, state in the shapes
        and shardings of `state`, which holds arrays or shapes, host values). `report` is called if it has no digests.
        Raises WorkdirError if it is damaged: an older one is never taken silently, because the user must decide that.
        """
        self.finish()
        step, target = saved_steps(self._directory)[-1], placed_shapes(state)
        path, share = self._directory / str(step), (self._hosts.index, self._hosts.count)
        with self._hosts.together(f"checking the checkpoint of step {step}"):  # Orbax's hosts wait for each other
            saved.require_sound(self._directory, step, share=share, report=report)
        parts = ocp.args.Composite(state=ocp.args.StandardRestore(target), host=ocp.args.JsonRestore())
        try:
            with quiet():
                _require_same(path, _stored_tree(path)["params"], state["params"])  # or it would be called damaged
                restored = self._manager.restore(step, args=parts)
        except WorkdirError:
            raise
        except Exception as error:  # every layer below has its own exceptions for a damaged file
            raise WorkdirError(saved.damaged(self._directory, step, first_line(error))) from error
        host = {name: value for name, value in restored["host"].items() if name not in saved.SIGNED}
        return step, restored["state"], host

    def _require_space(self, step: int, state: State) -> None:
        """Raises WorkdirError before anything is written: on a full disk tensorstore's threads print many lines."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self._directory).free
        if free < needed:
            raise WorkdirError(
                f"the checkpoint of step {step} needs {needed / 1e6:.1f} MB, {self._directory} has {free / 1e6:.1f} MB "
                f"left: free some space, then the same command {continues(self.latest_step)}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        """Closes the manager, except on a host that fails among several: it would wait for the others."""
        if error is None or self._hosts.count == 1:
            self.close()

    def close(self) -> None:
        """Waits for the checkpoint that is being written; only `finish` and `check` report failures."""
        with contextlib.suppress(Exception), quiet():
            self._manager.close()


def placed_shapes(state: State) -> State:
    """Shapes, dtypes and shardings of a state, which is all that restoring needs."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, state)


def restore_params(
    directory: Path, step: int, abstract: dict[str, Any], report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Restores only the parameters of a checkpoint, as arrays on this machine's first CPU, whatever mesh saved them.

    `abstract` is the tree of their shapes; the dtypes are those of the checkpoint. `report` is called if it has no
    digests. Raises WorkdirError if it is damaged or holds another model.
    """
    path = directory.absolute() / str(step)
    saved.require_sound(directory, step, saved.exporting, report=report)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    try:
        with quiet():
            params = _stored_tree(path)["params"]
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), params)
            _require_same(path, shapes, abstract)
            item = {"params": shapes}
            restore_args = ocp.checkpoint_utils.construct_restore_args(item)
            parts = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
            return ocp.PyTreeCheckpointer().restore(path / "state", args=parts)["params"]
    except WorkdirError:
        raise
    except Exception as error:  # as in `Checkpoints.restore`
        raise WorkdirError(saved.damaged(directory, step, first_line(error), saved.exporting)) from error


def _stored_tree(path: Path) -> dict[str, Any]:
    """Shapes and dtypes of the arrays of a checkpoint; raises an error if Orbax finds none."""
    found: Any = ocp.PyTreeCheckpointer().metadata(path / "state")
    return found.item_metadata.tree


def _require_same(path: Path, stored: dict[str, Any], abstract: dict[str, Any]) -> None:
    found, expected = (
        {
            jax.tree_util.keystr(key, simple=True, separator="/"): leaf.shape
            for key, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (stored, abstract)
    )
    wrong = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if wrong:
        raise WorkdirError(
            f"the checkpoint {path} is of another model: {len(wrong)} parameters differ, first {wrong[0]} of shape "
            f"{found.get(wrong[0])}, expected {expected.get(wrong[0])}"
        )


def equal(first: State, second: State) -> bool:
    """Whether two states are bit-identical; unlike ==, a NaN equals itself and -0.0 differs from 0.0."""
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(map(np.asarray, jax.tree.leaves(first)), map(np.asarray, jax.tree.leaves(second)), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
