"""What the scripts for a GPU have in common: an option to run without one, and what they say where there is none."""

from __future__ import annotations

import argparse
import json
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the script's docstring as help, as it is."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--any-device", action="store_true", help="measure without a GPU too")
    return made


def facts(case: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """What every line says of its run; None, and a line that says so, where nothing is to be measured."""
    import jax

    device = jax.local_devices()[0]
    found = {"case": case, "device": device.device_kind, "jax": jax.__version__, **vars(options)}
    if device.platform == "gpu" or options.any_device:
        return found
    print(json.dumps(found | {"measured": False, "why": "there is no GPU here"}))
    return None
