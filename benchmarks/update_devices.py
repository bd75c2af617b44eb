"""Our side on eight fake devices of one CPU, with parameters sharded over all of them as in a run."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import update_ours, worker
from benchmarks.update_cases import CASES, Case

DEVICES = 8


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Does the same as `update_ours.prepare`, on the configuration's mesh.

    The threads of eight devices share one heap, whose free blocks fit their requests only after some thirty updates:
    until then page faults take up to half of an update's seconds.
    """
    flag = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    import jax

    from zppo_jax import compilation, parallel, setup

    compilation.keep_memory()
    mesh = setup.make_mesh(update_ours.settings(case))
    with parallel.use(mesh):
        trainer = update_ours.Trainer(case, checkpoint, mesh)
        for _ in range(case.settling):
            trainer.update_recorded()

    def on_mesh(run: worker.Run) -> worker.Run:
        def running() -> Any:
            with parallel.use(mesh):
                return run()

        return running

    facts = {"versions": {"jax": jax.__version__}, "extra": {"devices": mesh.size}}
    return on_mesh(trainer.update_recorded), on_mesh(trainer.check), facts


if __name__ == "__main__":
    worker.serve(CASES, prepare)
