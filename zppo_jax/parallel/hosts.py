"""The processes of a run: what they exchange, and which devices each of them has.

A run over several hosts is one program on each. Rollouts are a host's own: it decodes, scores and reformulates its
share of a step's questions on its own devices, with a copy of the parameters, and waits for nobody. What all must know
(rewards, which prompts exist, which numbers of rows) they gather, so that each takes the same decisions by itself; the
update runs on all devices at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from zppo_jax.errors import RunError
from zppo_jax.parallel import mesh as meshes
from zppo_jax.parallel import rules

T = TypeVar("T")


ROLL_CALL_SECONDS = 15.0


class HostError(RunError):
    """Another host failed, or did not come."""


def connect(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run, before anything else uses jax. What is not given jax finds out by itself on TPU
    pods, under SLURM, in Kubernetes and under Open MPI.

    Raises HostError when neither says who the others are, or when they do not come.
    """
    try:
        jax.distributed.initialize(coordinator or None, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise HostError(
            f"the processes of the run do not find each other ({reason}): start one on each host, and where jax does "
            "not know the cluster, give each --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error


@dataclasses.dataclass
class Hosts:
    """This process among the others; `timeout_seconds` is how long it waits for them."""

    index: int = 0
    count: int = 1
    timeout_seconds: float = 1800.0
    _meetings: int = 0
    _waited: float = 0.0

    @classmethod
    def all(cls, timeout_seconds: float) -> Hosts:
        """Those that jax knows."""
        return cls(jax.process_index(), jax.process_count(), timeout_seconds)

    @property
    def leads(self) -> bool:
        """Whether this host writes what is written once."""
        return self.index == 0

    def share_of(self, values: Sequence[T]) -> Sequence[T]:
        """This host's share of what all have: every `count`-th."""
        return values[self.index :: self.count]

    def gather(self, value: Any, what: str) -> list[Any]:
        """The JSON values of all hosts, by host. All call it in the same order.

        Raises HostError, which names those that have not come within the time.
        """
        if self.count == 1:
            return [value]
        start = time.perf_counter()
        self._meet(what)
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.int64(len(content)))
        room = max(256, 1 << int(sizes.max() - 1).bit_length())  # few sizes, hence few programs
        padded = np.zeros(room, np.uint8)
        padded[: len(content)] = content
        rows = multihost_utils.process_allgather(padded)
        self._waited += time.perf_counter() - start
        return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes.tolist(), strict=True)]

    def take_waited(self) -> float:
        """Seconds that `gather` took since this was last asked, most of them waiting for the slowest host."""
        waited, self._waited = self._waited, 0.0
        return waited

    def gather_dealt(self, own: Sequence[Any], what: str) -> list[Any]:
        """Inverse of `share_of`: gathers all shares and restores the original order."""
        parts = self.gather(list(own), what)
        longest = max(map(len, parts))
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """What every host must have done before any goes on; raises HostError where another one failed."""
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}: {' '.join(str(error).split())}", what)
            raise
        for host, failure in enumerate(self.gather("", what)):
            if failure:
                raise HostError(f"{what} failed on host {host}: {failure}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What fails meanwhile because another host is gone is a HostError that names it."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            failure = self._wait(f"the roll call after meeting {self._meetings}", ROLL_CALL_SECONDS)
            if failure is None:  # all are there: it is another fault
                raise
            raise HostError(
                f"{_missing(failure)} is gone, as host {self.index} found out when it worked with it: look why, then "
                f"run the same command on all hosts to continue ({' '.join(str(error).split())[:200]})"
            ) from error

    def _meet(self, what: str) -> None:
        """Waits for all; a collective operation by itself would wait for ever, and gloo's but half a minute."""
        self._meetings += 1
        failure = self._wait(f"{what}, meeting {self._meetings}", self.timeout_seconds)
        if failure is not None:
            raise HostError(
                f"{_missing(failure)} did not come to {what} within {self.timeout_seconds:g} s, or is gone; host "
                f"{self.index} waits no longer: look at what it does, then run the same command on all hosts to "
                f"continue ({failure[:300]})"
            )

    def _wait(self, key: str, seconds: float) -> str | None:
        """Until all hosts wait under this key; why they do not, where they do not in time."""
        if self.count == 1:
            return None
        import orbax.checkpoint.multihost  # a second, which only runs over several hosts should pay

        try:
            orbax.checkpoint.multihost.get_barrier_sync_fn()(key=key, timeout_ms=int(1000 * seconds))
        except Exception as error:  # the runtime's own kinds
            return " ".join(str(error).split())
        return None


def _missing(reason: str) -> str:
    """Who did not come, as far as the runtime says."""
    named = re.search(r"timed out task names: ([\d, ]+)", reason)
    return f"host {named[1].strip()}" if named else "another host"


# ---------------------------------------------------------------- devices


def hosts_of(mesh: Mesh) -> list[int]:
    """The hosts that have its devices, ascending."""
    return sorted({device.process_index for device in mesh.devices.flat})


def host_mesh(mesh: Mesh, host: int) -> Mesh:
    """The devices of a mesh that one host has, where fsdp takes what the tensor axis leaves; the mesh itself where no
    other host has any. Raises ValueError where the tensor axis reaches over hosts."""
    if hosts_of(mesh) == [host]:
        return mesh
    own = [device for device in mesh.devices.flat if device.process_index == host]
    return meshes.make_mesh(1, -1, mesh.shape["tensor"], own)


@dataclasses.dataclass
class HostCopy:
    """A copy of parameters sharded over `mesh`, resharded onto this host's devices, so that it samples without
    collectives across hosts; the parameters themselves where there is one host."""

    mesh: Mesh | None
    axes: Any
    _made: tuple[Any, Any] | None = None

    def get(self, params: Any) -> Any:
        """The copy of these very parameters, made where there is none. All hosts call it at the same time."""
        if self.mesh is None or len(hosts_of(self.mesh)) == 1:
            return params
        if self._made is None or self._made[0] is not params:
            self.release()
            self._made = params, self._copied(self.mesh, params)
        return self._made[1]

    def release(self) -> None:
        """Forgets the copy."""
        self._made = None

    def _copied(self, mesh: Mesh, params: Any) -> Any:
        """Copied to every host at once, on a mesh whose first axis are the hosts; then each takes what it has of it."""
        parts = {host: host_mesh(mesh, host) for host in hosts_of(mesh)}
        everywhere = Mesh(np.stack([part.devices for part in parts.values()]), ("hosts", *meshes.AXES))
        copies = jax.device_put(params, rules.shardings(everywhere, params, self.axes))
        return jax.tree.map(functools.partial(_own_part, parts[jax.process_index()]), copies)


def _own_part(mesh: Mesh, leaf: jax.Array) -> jax.Array:
    assert isinstance(leaf.sharding, NamedSharding)
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, leaf.sharding.spec), shards)


def host_shards(mesh: Mesh) -> list[int]:
    """Which of the parts of the axis `batch` lie on this host, ascending.

    Raises ValueError where a part is shared by hosts: tensor neighbours must be of one host.
    """
    parts = mesh.devices.reshape(-1, mesh.shape["tensor"])
    hosts = [{device.process_index for device in part} for part in parts]
    if any(len(each) > 1 for each in hosts):
        raise ValueError("neighbours along the tensor axis lie on several hosts: lower mesh.tensor")
    return [place for place, each in enumerate(hosts) if each == {jax.process_index()}]


def from_hosts(mesh: Mesh, values: dict[str, np.ndarray], axes: dict[str, Any]) -> dict[str, jax.Array]:
    """One array of all hosts' rows for each name, where `values` are this host's own, in the order of its parts."""

    def one(name: str, value: np.ndarray) -> jax.Array:
        names, shape = axes[name], list(value.shape)
        place = names.index("batch")
        shape[place] *= jax.process_count()
        sharding = NamedSharding(mesh, rules.partition_spec(names, tuple(shape), mesh))
        return jax.make_array_from_process_local_data(sharding, value, tuple(shape))

    return {name: one(name, value) for name, value in values.items()}
