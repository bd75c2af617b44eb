"""Common parts of the GPU scripts: an option to run without a GPU, and the line that they print without one."""

from __future__ import annotations

import argparse
import json
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser with the script's docstring, unchanged, as help."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--any-device", action="store_true", help="measure without a GPU too")
    return made


def facts(case: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """The facts about the run in every line; without a GPU, prints a line about that and returns None."""
    import jax

    device = jax.local_devices()[0]
    found = {"case": case, "device": device.device_kind, "jax": jax.__version__, **vars(options)}
    if device.platform == "gpu" or options.any_device:
        return found
    print(json.dumps(found | {"measured": False, "why": "there is no GPU here"}))
    return None
