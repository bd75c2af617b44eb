"""Names of TPU slices as Google sells them, and what libtpu calls them."""

from __future__ import annotations

import dataclasses
import math
import re

from zppo_jax.errors import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of TPU: memory, FLOP/s and bandwidth of a device (a chip), and the units in a name per chip.

    `hbm_gib` is the memory that programs may use: 15.75 of 16 for v5e, as the compiler says; the others are nominal.
    """

    hbm_gib: float
    tflops: float
    gigabytes_per_second: float
    units_per_chip: int
    grids: dict[int, str]

    @property
    def is_flat(self) -> bool:
        """Whether grids have two dimensions: then only those sold exist, while cubes come in many shapes."""
        return all(grid.count("x") == 1 for grid in self.grids.values())

    def has(self, grid: str) -> bool:
        """Whether a slice may have that shape; for cubes the compiler decides."""
        return grid in self.grids.values() or (not self.is_flat and grid.count("x") == 2)


_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
}  # fmt: skip

# One chip of v5p is not sold as a slice; it is there to compare with a GPU of 80 GB.
GENERATIONS = {
    "v5e": Generation(15.75, 197.0, 819.0, 1, _FLAT),
    "v5p": Generation(95.0, 459.0, 2765.0, 2, _CUBES),  # the number in the name counts TensorCores
    "v6e": Generation(31.25, 918.0, 1640.0, 1, _FLAT),
}
"""The bfloat16 TFLOP/s and the memory bandwidth of a chip are from Google's documentation."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `name` as given, `libtpu` the name in libtpu, `num_devices` chips."""

    name: str
    libtpu: str
    num_devices: int
    generation: Generation

    @property
    def chips_per_host(self) -> tuple[int, int, int] | None:
        """Chips per host, if libtpu must be given them: the slice or host differs from the size that it assumes."""
        return {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}.get(self.libtpu.partition(":")[2])

    def part(self, chips: int) -> Topology:
        """A slice of the same kind with `chips` chips."""
        name = f"{self.libtpu.partition(':')[0]}:{self.generation.grids[chips]}"
        return Topology(name, name, chips, self.generation)


def parse(name: str) -> Topology:
    """Parses v5e-16, v5p-128, v6e-64, or libtpu's form v5p:4x4x4. Raises ConfigError for any other name."""
    grid_form = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", name)
    sold = re.fullmatch(r"(v\w+)-(\d+)", name)
    kind = GENERATIONS.get(str((grid_form or sold or [None, ""])[1]))
    if kind and grid_form and kind.has(grid_form[2]):
        return Topology(name, name, math.prod(map(int, grid_form[2].split("x"))), kind)
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
