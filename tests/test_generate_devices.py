"""The placement of a model by `generate` and `serve`: the mesh that they choose, and slots by the devices' memory."""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import pytest

from tests import runs
from zppo_jax.command import Devices
from zppo_jax.compilation import Compiler
from zppo_jax.errors import ConfigError
from zppo_jax.generate import devices, model
from zppo_jax.models.qwen3_5 import sizes
from zppo_jax.parallel import abstract_mesh
from zppo_jax.parallel.mesh import mesh_shape
from zppo_jax.rollout import memory
from zppo_jax.rollout.shapes import Shapes

STUDENT = runs.ROOT / "zppo_jax" / "assets" / "tiny" / "student"
SHAPES = Shapes(buckets=(64,), patch_slots=16, max_new_tokens=16)


@pytest.fixture
def on(monkeypatch):
    """Sets the number of devices."""

    def there(num_devices: int) -> None:
        monkeypatch.setattr(jax, "device_count", lambda: num_devices)
        chosen = lambda *sizes: abstract_mesh(*mesh_shape(num_devices, *sizes))  # noqa: E731
        monkeypatch.setattr(devices.parallel, "make_mesh", chosen)

    return there


def mesh_of(size: str, **asked: int) -> tuple[int, ...] | None:
    mesh = devices.make_mesh(Devices(**asked), sizes.get(size))
    return mesh and tuple(mesh.shape.values())


@pytest.mark.parametrize(
    ("num_devices", "size", "expected"),
    [
        *((1, "27B", None), (2, "0.8B", (1, 1, 2)), (3, "0.8B", (3, 1, 1)), (6, "0.8B", (3, 1, 2))),
        *((8, "0.8B", (4, 1, 2)), (8, "27B", (2, 1, 4)), (4, "27B", (1, 1, 4))),
    ],
)
def test_all_devices_are_used_and_heads_divided_as_far_as_caches_are(on, num_devices, size, expected):
    on(num_devices)
    assert mesh_of(size) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"tensor": 8}, (1, 1, 8)),
        ({"data": 8}, (8, 1, 1)),
        ({"data": 2}, (2, 1, 4)),
        ({"data": 1, "fsdp": -1}, (1, 4, 2)),
        ({"fsdp": 2}, (2, 2, 2)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
    ],
)
def test_flags_decide_about_the_mesh(on, asked, expected):
    on(8)
    assert mesh_of("0.8B", **asked) == expected


@pytest.mark.parametrize("asked", [{"tensor": 3}, {"data": 0}, {"data": 16}, {"fsdp": -1}, {"data": 2, "tensor": 2}])
def test_a_mesh_that_does_not_use_all_devices_is_refused(on, asked):
    on(8)
    with pytest.raises(ConfigError, match=r"^--mesh_data, --mesh_fsdp, --mesh_tensor: mesh "):
        mesh_of("0.8B", **asked)


@pytest.fixture(scope="module")
def loaded() -> model.Loaded:
    return model.load(str(STUDENT))


def slots_bytes(loaded: model.Loaded, num_slots: int, penalises: bool = False) -> int:
    return memory.device_bytes(loaded.config, num_slots, SHAPES.num_keys, ("float32", "float32"), penalises)


def engine(loaded: model.Loaded, num_slots: int, penalises: bool = False) -> tuple[int, list[str]]:
    """The slots of an engine, and its messages; nothing is compiled."""
    lines: list[str] = []
    made = loaded.make_engine(SHAPES, num_slots, 1, cast(Compiler, None), penalises, lines.append)
    return made.num_slots, lines


def with_gigabytes(loaded: model.Loaded, gigabytes: float) -> model.Loaded:
    changed = Devices(cache_gigabytes=gigabytes)
    return model.Loaded(loaded.config, loaded.params, loaded.processor, changed, loaded.mesh)


def test_a_cpu_has_as_many_slots_as_are_asked_for(loaded):
    assert loaded.mesh is None and list(loaded.describe()) == []
    assert engine(loaded, 1000) == (1000, [])


def test_as_many_slots_as_the_flag_gives_room_and_a_line_about_it(loaded):
    five = with_gigabytes(loaded, slots_bytes(loaded, 5) / 1e9)
    assert engine(five, 5) == (5, [])
    number, [line] = engine(five, 6)
    assert number == 5 and line.startswith("5 slots instead of 6: no more fit in 0.000")
    assert engine(five, 5, penalises=True)[0] == 4
    with pytest.raises(ConfigError, match=r"^--cache_gigabytes = 1e-09: .*: raise it to 0\.\d+ .*--max_new_tokens"):
        engine(with_gigabytes(loaded, 1e-9), 1)


def test_as_many_slots_as_the_devices_have_room(loaded, monkeypatch):
    def free(num_bytes: float) -> None:
        there: Any = memory._weight_bytes(loaded.config, loaded.params, 6) + num_bytes / (1 - memory.MARGIN)
        monkeypatch.setattr(memory, "_free_bytes", lambda device: math.ceil(there))

    free(slots_bytes(loaded, 5))
    number, [line] = engine(loaded, 6)
    assert number == 5 and line.startswith("5 slots instead of 6")
    free(-1e9)
    with pytest.raises(ConfigError, match=r"^-1 GB of each device are free for caches: .*: lower --max_new_tokens or"):
        engine(loaded, 6)
