"""The two speeds that the other figures are compared with: a copy of memory, and bfloat16 products of square matrices.

    python -m benchmarks.on_gpu.peaks [--small]

`stated_tflops` is the maker's number for dense bfloat16 products.
"""

from __future__ import annotations

from benchmarks.on_gpu import measuring

STATED_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""TFLOP/s of dense bfloat16 products, from the makers' data sheets (the SXM boards)."""


def main(arguments: list[str] | None = None) -> None:
    small = measuring.parser(__doc__).parse_args(arguments).small
    if not measuring.has_device(small):
        return
    import jax

    name = jax.local_devices()[0].device_kind
    stated = next((value for kind, value in STATED_TFLOPS.items() if kind in name), None)
    for num_bytes in (2**20,) if small else (2**28, 2**32):
        speed = measuring.copy_bandwidth(num_bytes) / 1e9
        measuring.emit("copy", small, size=f"{num_bytes / 2**20:g} MiB", gb_per_second=speed)
    for size in (64,) if small else (4096, 8192):
        speed = measuring.product_tflops(size)
        measuring.emit("product", small, size=f"{size} x {size}", tflops=speed, stated_tflops=stated)


if __name__ == "__main__":
    main()
