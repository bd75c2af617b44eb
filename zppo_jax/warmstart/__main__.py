"""python -m zppo_jax.warmstart: train the tiny student and teacher again (about 25 minutes on two CPU cores)."""

from __future__ import annotations

import argparse
from pathlib import Path

from zppo_jax import compilation
from zppo_jax.warmstart.build import SHIPPED, build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zppo_jax.warmstart", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=SHIPPED, help="where to write student/ and teacher/ (default: the package itself)"
    )
    arguments = parser.parse_args()
    compilation.use_cache()
    compilation.keep_memory()
    build(arguments.out)


if __name__ == "__main__":
    main()
