"""Stopping is safe: however a run ends, the same command continues as if it had never ended."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import signal
from pathlib import Path

import jax
import pytest

from tests import runs
from zppo_jax import train
from zppo_jax.errors import ConfigError, RunError, WorkdirError
from zppo_jax.models import qwen3_5
from zppo_jax.run import checkpoint
from zppo_jax.run.checkpoint import Checkpoints
from zppo_jax.run.console import RunConsole
from zppo_jax.run.directory import RunDirectory
from zppo_jax.update.programs import State

NUM_STEPS = runs.SETTINGS["num_steps"]


def saved_state(workdir: Path, like: State) -> State:
    """Parameters and optimiser of the newest checkpoint."""
    with Checkpoints(workdir / "checkpoints", 2) as checkpoints:
        return checkpoints.restore(like)[1]


def test_a_killed_run_continues_to_the_same_bits(straight, start, tmp_path):
    """kill -9 after the row of step 4: step 4 is lost, its lines are removed, and it is made again."""
    script = runs.SIGNALLED.format(signal="SIGKILL", step=4, awaited=str(tmp_path / "checkpoints" / "3"))
    killed = runs.command(runs.arguments(start, tmp_path), script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert runs.saved_steps(tmp_path) == [3] and runs.metrics(tmp_path)[-1]["step"] == 4
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_sigterm_saves_exits_0_and_continues_to_the_same_bits(straight, start, tmp_path):
    script = runs.SIGNALLED.format(signal="SIGTERM", step=2, awaited=str(tmp_path))
    stopped = runs.command(runs.arguments(start, tmp_path), script)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopping and saving" in stopped.stderr and "Traceback" not in stopped.stderr
    assert runs.saved_steps(tmp_path) == [2] and runs.metrics(tmp_path)[-1]["step"] == 2
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_ctrl_c_saves_and_continues_to_the_same_bits(straight, start, tmp_path, capsys):
    with runs.after_row(lambda step: os.kill(os.getpid(), signal.SIGINT) if step in (1, 5) else None):
        for last in (1, 5):
            runs.run(start, tmp_path)
            assert runs.metrics(tmp_path)[-1]["step"] == last == runs.saved_steps(tmp_path)[-1]
            assert f"after {last} steps" in capsys.readouterr().out
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_ctrl_c_twice_stops_at_once_and_a_run_without_checkpoint_starts_anew(straight, start, tmp_path):
    def press_twice(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with runs.after_row(press_twice), pytest.raises(KeyboardInterrupt):
        runs.run(start, tmp_path)
    assert runs.saved_steps(tmp_path) == [] and runs.metrics(tmp_path)[-1]["step"] == 2
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_the_number_of_steps_may_grow(straight, start, tmp_path):
    """With a constant learning rate, three steps and three more are six."""
    runs.run(start, tmp_path, num_steps=3)
    with runs.undrawn():
        state = train.run(runs.config(start), tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)
    assert checkpoint.equal(state, saved_state(tmp_path, state)), "what is returned is what was saved"


def test_a_finished_run_is_left_as_it_is(straight, start, tmp_path, capsys):
    workdir = shutil.copytree(straight, tmp_path / "run")
    with runs.undrawn():
        state = train.run(runs.config(start), workdir)
    assert checkpoint.equal(state, saved_state(workdir, state))
    assert f"continuing after step {NUM_STEPS}" in capsys.readouterr().out
    runs.assert_same_end(workdir, straight, NUM_STEPS)
    assert runs.metrics(workdir) == runs.metrics(straight)


def test_a_loop_that_is_left_early_saves_and_continues_to_the_same_bits(straight, start, tmp_path, capsys):
    """At the end of the block, as after Ctrl-C; the run that continues is stepped by hand."""
    with runs.undrawn(), train.Run.open(runs.config(start), tmp_path) as run:
        for step in run:
            if step.number == 2:
                break
        assert (run.step, run.done, runs.saved_steps(tmp_path)) == (2, False, [])
    assert runs.saved_steps(tmp_path) == [2] and runs.metrics(tmp_path)[-1]["step"] == 2
    assert "stopped after 2 steps" in capsys.readouterr().out
    with runs.undrawn(), train.Run.open(runs.config(start), tmp_path) as run:
        assert (run.step, run.done) == (2, False)
        assert [step.number for step in run] == [3, 4, 5, 6] and run.done
    assert f"after {NUM_STEPS} steps" in capsys.readouterr().out
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_a_resumed_run_holds_one_student(straight, start, tmp_path, monkeypatch):
    """The initial state is freed before the saved one is restored: the devices could not hold both."""
    workdir = shutil.copytree(straight, tmp_path / "run")

    def embeddings(shape: tuple[int, ...]) -> int:
        gc.collect()
        return sum(one.shape == shape for one in jax.live_arrays())

    table = qwen3_5.load(start).params["text"]["embed"].shape
    before, restore, restoring = embeddings(table), Checkpoints.restore, []

    def restore_and_count(*args):
        restoring.append(embeddings(table) - before)
        return restore(*args)

    monkeypatch.setattr(Checkpoints, "restore", restore_and_count)
    with runs.undrawn(), train.Run.open(runs.config(start, num_steps=NUM_STEPS + 1), workdir):
        assert restoring == [1], "the teacher's"
        assert embeddings(table) - before == 4, "the student's with two moments, and the teacher's"


def test_an_error_between_two_steps_saves_nothing(straight, start, tmp_path):
    """The error may have damaged the state: the run continues from the last checkpoint, here from the start."""
    with pytest.raises(ZeroDivisionError), train.Run.open(runs.config(start), tmp_path) as run:
        assert run.advance() is not None
        raise ZeroDivisionError
    assert runs.saved_steps(tmp_path) == [] and runs.metrics(tmp_path)[-1]["step"] == 1
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_a_step_that_failed_breaks_the_run_though_the_error_is_caught(straight, start, tmp_path, monkeypatch, capsys):
    """Its questions are drawn: to go on, or to save, would leave the step out in silence."""
    with train.Run.open(runs.config(start), tmp_path) as run:
        assert run.advance() is not None
        with monkeypatch.context() as patch:
            patch.setattr(train.select, "hard", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.advance()
        for _ in range(2):
            with pytest.raises(RunError, match="an earlier step failed: open the run again"):
                run.advance()
    assert runs.saved_steps(tmp_path) == [] and "a step failed: " in capsys.readouterr().out
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_a_run_that_is_done_or_closed_makes_no_step(start, tmp_path):
    """The configuration and the directory may be as a notebook has them."""
    with runs.undrawn(), train.Run.open(runs.tree(start, num_steps=1), str(tmp_path)) as run:
        assert [step.number for step in run] == [1] and run.advance() is None
        kept = run.parts.student.actor.engine.kept
        assert kept.weights._made is None and not kept.features._held, "freed after the last evaluation"
    assert run.advance() is None and list(run) == [] and runs.saved_steps(tmp_path) == [1]
    assert runs.metrics(tmp_path)[-1]["eval/accuracy"] is not None, "the last step is evaluated, whatever eval.every is"
    with train.Run.open(runs.config(start), tmp_path) as run:
        assert not run.done
    assert run.done and run.advance() is None


def one_line(result) -> str:
    """The command's standard error, which must be one line."""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_changed_key_is_refused_by_name(straight, start, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "run")
    result = runs.command(runs.arguments(start, workdir, seed=1, rollout__group_size=2))
    assert result.returncode == 2
    assert "seed (was 0, now 1)" in one_line(result) and "rollout.group_size (was 4, now 2)" in one_line(result)
    runs.assert_same_end(workdir, straight, NUM_STEPS)


def test_fewer_steps_than_made_are_refused(straight, start, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"num_steps = 5 is less than the 6 steps"):
        runs.run(start, workdir, num_steps=5)


def test_a_second_process_on_the_directory_is_refused(start, tmp_path):
    with RunDirectory(tmp_path):
        result = runs.command(runs.arguments(start, tmp_path))
    assert result.returncode == 1
    assert "is in use by process" in one_line(result) and str(os.getpid()) in one_line(result)


def test_a_start_that_fails_is_one_line_and_binds_nobody(start, tmp_path):
    with pytest.raises(ConfigError, match=r"model.path = '.*nowhere' does not load") as caught:
        runs.run(start, tmp_path, model__path=str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    runs.run(start, tmp_path, num_steps=1)
    assert runs.saved_steps(tmp_path) == [1]


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_serves(straight, start, tmp_path):
    workdir = shutil.copytree(straight, tmp_path / "run")
    (workdir / "checkpoints" / "6" / "host" / "metadata").unlink()
    with pytest.raises(WorkdirError, match=r"checkpoints/6 is damaged .* continues after step 3") as caught:
        runs.run(start, workdir)
    assert "\n" not in str(caught.value)
    shutil.rmtree(workdir / "checkpoints" / "6")  # as the message says
    runs.run(start, workdir)
    runs.assert_same_end(workdir, straight, NUM_STEPS)


def test_a_checkpoint_that_was_cut_short_is_never_chosen(straight, start, tmp_path):
    """Orbax, killed while it writes, leaves a directory under a temporary name."""
    workdir = shutil.copytree(straight, tmp_path / "run")
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / "6.orbax-checkpoint-tmp")
    runs.run(start, workdir)
    assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["3", "6"]
    runs.assert_same_end(workdir, straight, NUM_STEPS)


KILLED_WHILE_SAVING = """
import os, signal
from zppo_jax import main
from zppo_jax.run.checkpoint import Checkpoints

save = Checkpoints.save

def save_and_die(self, step, *rest):
    save(self, step, *rest)
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
main.main()
"""
"""The process is killed while its threads are writing the last checkpoint."""


def test_a_run_killed_while_it_saves_continues_to_the_same_bits(straight, start, tmp_path):
    killed = runs.command(runs.arguments(start, tmp_path), KILLED_WHILE_SAVING)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert runs.saved_steps(tmp_path) == [3] and runs.metrics(tmp_path)[-1]["step"] == 6
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(straight, start, tmp_path):
    """The kernel lets no file grow beyond 100 kB from step 4 on, so that the checkpoint of step 6 cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with (
            runs.after_row(fill),
            pytest.raises(WorkdirError, match=r"step 6 cannot be written .* continues after step 3") as caught,
        ):
            runs.run(start, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    with RunDirectory(tmp_path) as directory:
        assert Checkpoints(directory.checkpoints, 2).latest_step == 3
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


@contextlib.contextmanager
def between_chunks(action):
    """Calls `action()` whenever the sampler has reported its progress."""
    status = RunConsole.status

    def status_and_act(self, line):
        status(self, line)
        action() if line.startswith("rollouts") else None

    RunConsole.status = status_and_act
    try:
        yield
    finally:
        RunConsole.status = status


def test_ctrl_c_between_chunks_gives_the_step_up_and_continues_to_the_same_bits(straight, start, tmp_path, capsys):
    """In the rollouts of step 3, then before the first step of all."""
    reached: list[int] = []

    def press() -> None:
        if reached[-1:] == [2]:
            reached.append(-1)
            os.kill(os.getpid(), signal.SIGINT)

    with runs.after_row(reached.append), between_chunks(press):
        runs.run(start, tmp_path)
    assert runs.saved_steps(tmp_path) == [2] and runs.metrics(tmp_path)[-1]["step"] == 2
    assert "after 2 steps" in capsys.readouterr().out
    runs.run(start, tmp_path)
    runs.assert_same_end(tmp_path, straight, NUM_STEPS)


def test_ctrl_c_in_the_first_evaluation_ends_at_once(start, tmp_path, capsys):
    with between_chunks(lambda: os.kill(os.getpid(), signal.SIGINT)), contextlib.suppress(KeyboardInterrupt):
        runs.run(start, tmp_path)
    assert "stopped before the first step: there was nothing to save" in capsys.readouterr().out
    assert runs.saved_steps(tmp_path) == [] and not runs.metrics(tmp_path)
