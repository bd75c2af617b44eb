"""The hosts of a run: what they exchange, and which devices each of them has.

A run over several hosts is one process on each, with the same program. Rollouts are local: a host decodes, scores and
reformulates its share of a step's questions on its own devices, with a copy of the parameters, without waiting for the
others. What all must know (rewards, which prompts exist, numbers of rows) is gathered, so that each host makes the same
decisions; the update runs on all devices at once.
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
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zppo_jax.errors import RunError
from zppo_jax.parallel import mesh as meshes
from zppo_jax.parallel import rules

T = TypeVar("T")


ROLL_CALL_SECONDS = 15.0


class HostError(RunError):
    """Another host failed, or did not join."""


def connect(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a run, before anything else uses jax. jax finds missing arguments by itself on TPU pods,
    under SLURM, in Kubernetes and under Open MPI.

    Raises HostError if the other processes are unknown, or if they do not join.
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
    """This process among those of the run; `timeout_seconds` is how long it waits for the others."""

    index: int = 0
    count: int = 1
    timeout_seconds: float = 1800.0
    _meetings: int = 0
    _waited: float = 0.0

    @classmethod
    def all(cls, timeout_seconds: float) -> Hosts:
        """The hosts that jax knows."""
        return cls(jax.process_index(), jax.process_count(), timeout_seconds)

    @property
    def leads(self) -> bool:
        """Whether this host writes the files that are written once."""
        return self.index == 0

    def share_of(self, values: Sequence[T]) -> Sequence[T]:
        """This host's share of values that all hosts have: every `count`-th."""
        return values[self.index :: self.count]

    def gather(self, value: Any, what: str) -> list[Any]:
        """Gathers the JSON values of all hosts, by host. Collective: all hosts call it in the same order.

        Raises HostError, which names the hosts that have not called it in time.
        """
        if self.count == 1:
            return [value]
        start = time.perf_counter()
        self._meet(what)
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes = _exchanged(np.asarray([len(content)], np.int32))
        room = max(256, 1 << int(sizes.max() - 1).bit_length())  # few sizes, hence few programs
        padded = np.zeros(room, np.uint8)
        padded[: len(content)] = content
        rows = _exchanged(padded)
        self._waited += time.perf_counter() - start
        return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes[:, 0].tolist(), strict=True)]

    def take_waited(self) -> float:
        """Returns the seconds that `gather` took since the last call, most of it waiting for the slowest host."""
        waited, self._waited = self._waited, 0.0
        return waited

    def gather_dealt(self, share: Sequence[Any], what: str) -> list[Any]:
        """Inverse of `share_of`: gathers all shares and restores the original order."""
        parts = self.gather(list(share), what)
        longest = max(map(len, parts))
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Waits at the end of the block until every host has finished it; raises HostError if another host failed."""
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
        """If the block fails because another host is gone, raises a HostError that names it."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            failure = self._wait(f"the roll call after meeting {self._meetings}", ROLL_CALL_SECONDS)
            if failure is None:  # all hosts are alive: another error
                raise
            raise HostError(
                f"{_missing(failure)} is gone, as host {self.index} found out when it worked with it: look why, then "
                f"run the same command on all hosts to continue ({' '.join(str(error).split())[:200]})"
            ) from error

    def _meet(self, what: str) -> None:
        """Waits for all hosts; a collective operation itself would wait for ever, or with gloo only half a minute."""
        self._meetings += 1
        failure = self._wait(f"{what}, meeting {self._meetings}", self.timeout_seconds)
        if failure is not None:
            raise HostError(
                f"{_missing(failure)} did not come to {what} within {self.timeout_seconds:g} s, or is gone; host "
                f"{self.index} waits no longer: look at what it does, then run the same command on all hosts to "
                f"continue ({failure[:300]})"
            )

    def _wait(self, key: str, seconds: float) -> str | None:
        """Waits until all hosts wait under this key; returns the reason if they do not in time."""
        if self.count == 1:
            return None
        import orbax.checkpoint.multihost  # takes a second, so only in runs over several hosts

        try:
            orbax.checkpoint.multihost.get_barrier_sync_fn()(key=key, timeout_ms=int(1000 * seconds))
        except Exception as error:  # the runtime has its own exceptions
            return " ".join(str(error).split())
        return None


def _exchanged(row: np.ndarray) -> np.ndarray:
    """The rows of all hosts, [hosts, ...]. Collective, over the first device of each host: on its last ones another
    thread may be working for the teacher, and programs that begin in different orders wait for each other for ever."""
    first = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.asarray([first[host] for host in sorted(first)]), ("hosts",))
    here = jax.device_put(row[None], first[jax.process_index()])
    shape = (mesh.size, *row.shape)
    rows = jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, P("hosts")), [here])
    with meshes.use(mesh):
        return np.asarray(_replicated(rows).addressable_data(0))


@functools.partial(jax.jit, out_shardings=P())
def _replicated(rows: jax.Array) -> jax.Array:
    return rows


def _missing(reason: str) -> str:
    """The hosts that did not come, as far as the runtime says."""
    named = re.search(r"timed out task names: ([\d, ]+)", reason)
    return f"host {named[1].strip()}" if named else "another host"


# ---------------------------------------------------------------- devices


def hosts_of(mesh: Mesh) -> list[int]:
    """The hosts that have devices of the mesh, ascending."""
    return sorted({device.process_index for device in mesh.devices.flat})


def host_mesh(mesh: Mesh, host: int) -> Mesh:
    """A mesh of one host's devices in `mesh`: fsdp takes what the tensor axis leaves. The mesh itself if no other host
    has any. Raises ValueError if the tensor axis spans hosts."""
    if hosts_of(mesh) == [host]:
        return mesh
    devices = [device for device in mesh.devices.flat if device.process_index == host]
    return meshes.make_mesh(1, -1, mesh.shape["tensor"], devices)


@dataclasses.dataclass
class HostCopy:
    """A copy of parameters sharded over `mesh`, resharded onto this host's devices, so that it samples without
    collectives across hosts; the parameters themselves if there is one host."""

    mesh: Mesh | None
    axes: Any
    _made: tuple[Any, Any] | None = None

    def get(self, params: Any) -> Any:
        """Returns the copy of these parameters; makes it if there is none. Collective: all hosts call it."""
        if self.mesh is None or len(hosts_of(self.mesh)) == 1:
            return params
        if self._made is None or self._made[0] is not params:
            self.release()
            self._made = params, self._copy(self.mesh, params)
        return self._made[1]

    def release(self) -> None:
        """Forgets the copy."""
        self._made = None

    def _copy(self, mesh: Mesh, params: Any) -> Any:
        """Copies to every host at once, on a mesh whose first axis are the hosts; then each takes its part."""
        parts = {host: host_mesh(mesh, host) for host in hosts_of(mesh)}
        everywhere = Mesh(np.stack([part.devices for part in parts.values()]), ("hosts", *meshes.AXES))
        copies = jax.device_put(params, rules.shardings(everywhere, params, self.axes))
        return jax.tree.map(functools.partial(_part_on, parts[jax.process_index()]), copies)


def _part_on(mesh: Mesh, leaf: jax.Array) -> jax.Array:
    assert isinstance(leaf.sharding, NamedSharding)
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, leaf.sharding.spec), shards)


def host_shards(mesh: Mesh) -> list[int]:
    """The parts of the axis `batch` that are on this host, ascending.

    Raises ValueError if hosts share a part: tensor neighbours must be on one host.
    """
    parts = mesh.devices.reshape(-1, mesh.shape["tensor"])
    hosts = [{device.process_index for device in part} for part in parts]
    if any(len(each) > 1 for each in hosts):
        raise ValueError("neighbours along the tensor axis lie on several hosts: lower mesh.tensor")
    return [place for place, each in enumerate(hosts) if each == {jax.process_index()}]


def from_hosts(mesh: Mesh, values: dict[str, np.ndarray], axes: dict[str, Any]) -> dict[str, jax.Array]:
    """Makes one array of all hosts' rows for each name; `values` are this host's rows, in the order of its parts."""

    def one(name: str, value: np.ndarray) -> jax.Array:
        names, shape = axes[name], list(value.shape)
        place = names.index("batch")
        shape[place] *= jax.process_count()
        sharding = NamedSharding(mesh, rules.partition_spec(names, tuple(shape), mesh))
        return jax.make_array_from_process_local_data(sharding, value, tuple(shape))

    return {name: one(name, value) for name, value in values.items()}
