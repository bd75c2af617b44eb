"""Configurations. A file is a result: its docstring holds the command, the hardware, the time and what to expect."""
