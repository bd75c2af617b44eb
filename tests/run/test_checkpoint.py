"""Checkpoints: a saved state is restored bit by bit, a damaged one is refused in one line."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from zppo_jax.errors import WorkdirError
from zppo_jax.run.checkpoint import Checkpoints, equal
from zppo_jax.run.saved import best_step, saved_steps

HOST = {"stream": {"step": 3, "new": {"position": 12}, "replay": None}, "first": {"all": [0.1, 0.30000000000000004]}}


def make_state(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"a": jax.random.normal(keys[0], (5, 3)), "b": {"c": jax.random.normal(keys[1], (7,), jnp.bfloat16)}}
    # Values that == confuses.
    params["odd"] = jnp.asarray([np.nan, -0.0, np.inf, np.nextafter(1, 2)], jnp.float32)
    return {"params": params, "optimizer": optax.adamw(1e-3).init(params)}


@pytest.fixture
def folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 6):
        checkpoints.save(step, make_state(step), HOST | {"step": step})
    checkpoints.close()
    return tmp_path


def test_a_state_comes_back_to_the_bit(folder):
    step, state, host = Checkpoints(folder, 2).restore(make_state())
    assert step == 6 and equal(state, make_state(6)) and not equal(state, make_state(3))
    assert host == HOST | {"step": 6}
    assert jax.tree.structure(state) == jax.tree.structure(make_state())


def test_equal_means_to_the_bit():
    one, other = {"x": jnp.asarray([0.0])}, {"x": jnp.asarray([-0.0])}
    assert equal(one, one) and not equal(one, other)
    assert equal({"x": jnp.asarray([np.nan])}, {"x": jnp.asarray([np.nan])})
    assert not equal(one, {"x": jnp.asarray([0])}) and not equal(one, {"y": jnp.asarray([0.0])})
    assert not equal(one, {"x": jnp.asarray([[0.0]])})


def test_the_newest_stay(folder):
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(9, make_state(9), HOST)
    checkpoints.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9"] and checkpoints.latest_step == 9


def test_a_step_is_saved_once(folder, monkeypatch):
    """So a saved step needs no more space, neither after a restart nor in the run that saved it."""
    checkpoints = Checkpoints(folder, 2)
    checkpoints.save(9, make_state(9), HOST)
    checkpoints.finish()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    checkpoints.save(9, make_state(0), HOST)
    Checkpoints(folder, 2).save(9, make_state(0), HOST)
    assert equal(checkpoints.restore(make_state())[1], make_state(9))


def test_nothing_saved_is_no_step(tmp_path):
    assert Checkpoints(tmp_path / "new", 2).latest_step is None


def damages(folder):
    """Every file that a checkpoint needs, by the kind of damage."""
    parameters = next(path for path in (folder / "6" / "state" / "d").iterdir())
    yield from ((path, "gone") for path in (folder / "6" / "host" / "metadata", parameters))
    yield from ((path, "cut") for path in (folder / "6" / "host" / "metadata", folder / "6" / "state" / "_METADATA"))
    yield folder / "6" / "state", "gone"


@pytest.mark.parametrize("number", range(5))
def test_a_damaged_checkpoint_is_refused_in_one_line(folder, number):
    path, harm = list(damages(folder))[number]
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:10])
    else:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    checkpoints = Checkpoints(folder, 2)
    with pytest.raises(WorkdirError, match=r"/6 is damaged .*: delete it, .* continues after step 3") as caught:
        checkpoints.restore(make_state())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_without_an_older_one_the_command_starts_anew(folder):
    shutil.rmtree(folder / "3")
    (folder / "6" / "host" / "metadata").unlink()
    with pytest.raises(WorkdirError, match="starts from the beginning"):
        Checkpoints(folder, 2).restore(make_state())


def test_a_write_that_did_not_end_is_never_chosen_and_swept_away(folder):
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(folder, 2)
    assert checkpoints.latest_step == 3
    checkpoints.save(6, make_state(1), HOST)
    checkpoints.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]
    assert equal(checkpoints.restore(make_state())[1], make_state(1))


def test_a_place_that_cannot_be_written_is_one_line(folder):
    checkpoints = Checkpoints(folder, 2)
    shutil.rmtree(folder)
    folder.write_text("a file where the checkpoints were")
    with pytest.raises(
        WorkdirError, match=r"step 9 cannot be written to .* the directory is gone; put it back, then"
    ) as caught:
        checkpoints.save(9, make_state(), HOST)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_found_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    checkpoints = Checkpoints(folder, 2)
    with pytest.raises(WorkdirError, match=r"step 9 needs .* left: free .* continues after step 6") as caught:
        checkpoints.save(9, make_state(), HOST)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]


def test_the_best_stays_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step, accuracy in ((1, 0.2), (2, 0.9), (3, None), (4, 0.5), (5, None), (6, 0.3)):
        checkpoints.save(step, make_state(step), HOST, accuracy)
    checkpoints.finish()
    assert saved_steps(tmp_path) == [2, 5, 6] and best_step(tmp_path) == 2 and checkpoints.latest_step == 6
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=2, keep_best=1)  # as a run that was continued
    again.save(7, make_state(7), HOST, 0.95)
    again.finish()
    assert saved_steps(tmp_path) == [6, 7] and best_step(tmp_path) == 7


def test_without_an_evaluation_there_is_no_best(folder):
    assert best_step(folder) is None and best_step(folder / "nowhere") is None


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    """The next update reuses the buffers that are still being written."""
    double = jax.jit(lambda state: jax.tree.map(lambda x: x * 2, state), donate_argnums=0)
    checkpoints, state = Checkpoints(tmp_path, keep=3), {"x": jnp.arange(3_000_000.0)}
    for step in (1, 2, 3):
        checkpoints.save(step, state, HOST)
        state = double(state)
    checkpoints.finish()
    for step in (1, 2, 3):
        saved = ocp.StandardCheckpointer().restore(tmp_path / str(step) / "state")
        np.testing.assert_array_equal(saved["x"], np.arange(3_000_000.0, dtype=np.float32) * 2 ** (step - 1))


def test_a_sound_checkpoint_of_another_model_is_not_called_damaged(folder):
    state = make_state()
    state["params"]["a"] = jnp.zeros((5, 4))
    with pytest.raises(WorkdirError, match=r"6 is of another model: 1 parameters differ, first a of shape \(5, 3\)"):
        Checkpoints(folder, 2).restore(state)
    assert saved_steps(folder) == [3, 6]


def test_damaged_metrics_of_any_checkpoint_are_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step in (3, 6):
        checkpoints.save(step, make_state(step), HOST, accuracy=0.5)
    checkpoints.close()
    (tmp_path / "3" / "metrics" / "metrics").write_text("")
    with pytest.raises(WorkdirError, match=r"/3 is damaged \(metrics/metrics: .* after step 6") as caught:
        Checkpoints(tmp_path, keep=2)
    assert "\n" not in str(caught.value)
