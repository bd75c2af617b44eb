"""Configurations. A file documents a result: its docstring has command, hardware, time and expected numbers."""
