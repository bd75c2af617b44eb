"""The shared parts of the command lines: flags, configuration files and their overrides, exit statuses. No jax."""

from __future__ import annotations

from zppo_jax.command.config_file import importable, load_config
from zppo_jax.command.config_values import read_config
from zppo_jax.command.exits import disk_fault, exit_with
from zppo_jax.command.flags import Devices, asks_for_help, device_flags, device_help, last_value, read, run

__all__ = [
    "Devices",
    "asks_for_help",
    "device_flags",
    "device_help",
    "disk_fault",
    "exit_with",
    "importable",
    "last_value",
    "load_config",
    "read",
    "read_config",
    "run",
]
