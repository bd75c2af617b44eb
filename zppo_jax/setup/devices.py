"""The devices of a configuration: the mesh of the update, the mesh that each host samples on, and the teacher's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import zppo_jax
from zppo_jax import parallel
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config, changed_keys, to_json
from zppo_jax.config.schema_models import DecodingMeshConfig
from zppo_jax.config.teacher import teacher_place
from zppo_jax.data.pipeline import require_equal_shards
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.parallel import Hosts
from zppo_jax.zppo import get_method


def divide(config: Config, devices: Sequence[Any] | None = None) -> tuple[list[Any], list[Any]]:
    """All devices (or those given) in two parts: the run's, and those of the teacher alone, which are the last
    `teacher.devices` of each host. Raises ConfigError if a host has no others."""
    hosts: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        hosts.setdefault(device.process_index, []).append(device)
    count, least = num_teacher_devices(config), min(map(len, hosts.values()))
    if count >= least:
        ways = f"lower it to {least - 1} or less" if least > 1 else "set 0, and the teacher samples on the same device"
        raise ConfigError(f"teacher.devices = {count} leaves nothing for the run where a host has {least}: {ways}")
    parts = [(local[: len(local) - count], local[len(local) - count :]) for local in hosts.values()]
    return [one for run, _ in parts for one in run], [one for _, teacher in parts for one in teacher]


def num_teacher_devices(config: Config) -> int:
    """The devices of each host that only answer for the teacher; 0 if no model in this process does."""
    samples = get_method(config.method).needs_teacher(config) and teacher_place(config) == "local"
    return config.teacher.devices if samples else 0


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh `config.mesh` of all devices (or those given) that are not the teacher's; raises ConfigError if it
    does not use them all."""
    left, taken = divide(config, devices)
    try:
        return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, left)
    except ValueError as error:
        note = f" (teacher.devices = {config.teacher.devices} of each host are not the run's)" if taken else ""
        raise ConfigError(f"mesh: {error}{note}") from error


def teacher_devices(config: Config) -> list[Any]:
    """This host's devices that are the teacher's alone."""
    return [one for one in divide(config)[1] if one.process_index == jax.process_index()]


def teacher_mesh(config: Config, model: qwen3_5.Config, devices: Sequence[Any]) -> Mesh:
    """The mesh `config.teacher.mesh` of the teacher's own devices; raises ConfigError if it does not use them all."""
    try:
        return parallel.make_mesh(*_sizes(config.teacher.mesh, len(devices), model), devices)
    except ValueError as error:
        raise ConfigError(f"teacher.mesh: {error}") from error


def _sizes(chosen: DecodingMeshConfig, num_devices: int, model: qwen3_5.Config) -> tuple[int, int, int]:
    heads = model.text.num_key_value_heads
    return parallel.decoding_shape(num_devices, heads, chosen.data, chosen.fsdp, chosen.tensor)


def find_hosts(config: Config) -> Hosts:
    """This process and the others; raises ConfigError if they have not been joined."""
    hosts = Hosts.all(config.watchdog.host_seconds)
    if hosts.count > 1 and not jax.distributed.is_initialized():
        raise ConfigError(f"this is one of {hosts.count} processes: add --distributed to the command on every host")
    if hosts.count > 1:
        _require_same_run(hosts.gather({"config": to_json(config)} | _program(), "the start"))
    return hosts


def _require_same_run(found: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError if a host has another configuration or program than the first: each would train its part of
    the parameters in a different way, without an error."""
    for host, settings in enumerate(found):
        for name, (first, other) in changed_keys(found[0], settings, ignore=()).items():
            key = name.removeprefix("config.")
            raise ConfigError(
                f"{key} = {first!r} on host 0 and {other!r} on host {host}: start the same program with the same "
                "configuration on every host"
            )


def _program() -> dict[str, str]:
    """The versions of the software on this host, to compare with the other hosts'."""
    folder = Path(zppo_jax.__file__).parent
    sources = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        sources.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return {"jax": jax.__version__, "sources of zppo_jax": sources.hexdigest()[:12]}


def check_hosts(config: Config, mesh: Mesh | None, hosts: Hosts) -> None:
    """Checks what a configuration must satisfy for several hosts; raises ConfigError in one line."""
    if hosts.count == 1 or mesh is None:
        return
    if config.warmstart.rebuild:
        raise ConfigError("warmstart.rebuild = True is for one process: build it once, then name model.path")
    try:
        require_equal_shards(config.rollout.questions_per_step, hosts.count)
        parallel.host_shards(mesh)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def sampling_mesh(config: Config, mesh: Mesh) -> Mesh:
    """The mesh of this host's devices, on which it samples."""
    try:
        return parallel.host_mesh(mesh, jax.process_index())
    except ValueError as error:
        raise ConfigError(f"mesh.tensor = {config.mesh.tensor}: {error}") from error


def decoding_mesh(compiler: Compiler, chosen: DecodingMeshConfig, where: str, model: qwen3_5.Config) -> Mesh | None:
    """The compiler's devices in the mesh shape `chosen`, section `where` of the config; None without a mesh."""
    if compiler.mesh is None:
        return None
    try:
        return parallel.reshaped(compiler.mesh, *_sizes(chosen, compiler.mesh.size, model))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def num_rows(config: Config, mesh: Mesh | None, hosts: Hosts) -> int:
    """Rows of a micro-batch: as many as configured; with several hosts rounded up so that all devices have equally many
    (the added rows may stay empty)."""
    with parallel.use(mesh):
        shares = parallel.num_shards("batch") if hosts.count > 1 else 1
    return -(-config.update.rows_per_microbatch // shares) * shares


def describe_mesh(
    config: Config, mesh: Mesh, params: dict[str, Any], model: qwen3_5.Config, hosts: Hosts
) -> Iterator[str]:
    """Yields lines for the user about a run on several devices."""
    yield from parallel.describe(mesh, params, vlm.logical_axes(model))
    asked, given = config.update.rows_per_microbatch, num_rows(config, mesh, hosts)
    if given != asked:
        yield f"update.rows_per_microbatch={asked} is {given} here: each of {mesh.size} devices has its own rows"
    with parallel.use(mesh):
        shares = parallel.num_shards("batch")
    if given % shares:
        yield f"update.rows_per_microbatch={given} is not divided by {shares}: devices compute the same rows"


def describe_teacher_mesh(mesh: Mesh) -> str:
    """A line for the user about devices that are the teacher's alone."""
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return f"the teacher works while the student samples, on separate devices: mesh {sizes}"
