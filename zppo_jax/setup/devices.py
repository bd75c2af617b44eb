"""The devices of a configuration: the mesh of the update, and the mesh that each host samples on."""

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
from zppo_jax.config.schema import MeshConfig
from zppo_jax.data.pipeline import require_equal_shards
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.parallel import Hosts


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes the mesh `config.mesh` of all devices (or those given); raises ConfigError if it does not use them all."""
    try:
        return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    except ValueError as error:
        raise ConfigError(f"mesh: {error}") from error


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


def decoding_mesh(compiler: Compiler, chosen: MeshConfig, where: str) -> Mesh | None:
    """The run's devices in the mesh shape `chosen`, section `where` of the config; None without a mesh."""
    if compiler.mesh is None:
        return None
    try:
        return parallel.reshaped(compiler.mesh, chosen.data, chosen.fsdp, chosen.tensor)
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
