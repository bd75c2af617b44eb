"""Names of TPU slices as Google sells them, and what libtpu calls them."""

from __future__ import annotations

import dataclasses
import math
import re

from zppo_jax.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of TPU: what a device (a chip) holds, does and reads, and how many of the units in a name make a chip.

    `hbm_gib` is what programs may use: 15.75 of 16 is what the compiler says of v5e, the others are nominal.
    """

    hbm_gib: float
    tflops: float
    gigabytes_per_second: float
    units_per_chip: int
    grids: dict[int, str]

    @property
    def is_flat(self) -> bool:
        """Whether grids have two dimensions: others than those sold there are none, cubes come in many."""
        return all(grid.count("x") == 1 for grid in self.grids.values())

    def has(self, grid: str) -> bool:
        """Whether a slice may have that shape; of cubes the compiler has the last word."""
        return grid in self.grids.values() or (not self.is_flat and grid.count("x") == 2)


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip

GENERATIONS = {
    "v5e": Generation(15.75, 197.0, 819.0, 1, _FLAT),
    "v5p": Generation(95.0, 459.0, 2765.0, 2, _CUBES),  # the number in a name counts TensorCores
    "v6e": Generation(31.25, 918.0, 1640.0, 1, _FLAT),
}
"""bfloat16 TFLOP/s and bandwidth of the memory of a chip by Google's documentation."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `name` as asked for, `libtpu` as libtpu has it, `num_devices` chips."""

    name: str
    libtpu: str
    num_devices: int
    generation: Generation

    @property
    def chips_per_host(self) -> tuple[int, int, int] | None:
        """Where a slice is smaller than a host of its kind, or a host is larger than libtpu takes by itself."""
        return {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}.get(self.libtpu.partition(":")[2])

    def part(self, chips: int) -> Topology:
        """A slice of the same kind with so many chips."""
        name = f"{self.libtpu.partition(':')[0]}:{self.generation.grids[chips]}"
        return Topology(name, name, chips, self.generation)


def parse(name: str) -> Topology:
    """v5e-16, v5p-128, v6e-64, or libtpu's own v5p:4x4x4. Raises ConfigError for any other."""
    own = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", name)
    sold = re.fullmatch(r"(v\w+)-(\d+)", name)
    kind = GENERATIONS.get(str((own or sold or [None, ""])[1]))
    if kind and own and kind.has(own[2]):
        return Topology(name, name, math.prod(map(int, own[2].split("x"))), kind)
    if kind and sold:
        chips, rest = divmod(int(sold[2]), kind.units_per_chip)
        grid = None if rest else kind.grids.get(chips)
        if grid:
            return Topology(name, f"{sold[1]}:{grid}", chips, kind)
    raise ConfigError(f"--topology={name} is not a slice: {', '.join(_names())}, or a grid such as v5p:4x4x4")


def _names() -> list[str]:
    return [
        f"{kind}-{'|'.join(str(chips * generation.units_per_chip) for chips in generation.grids)}"
        for kind, generation in GENERATIONS.items()
    ]
