"""A run on disk, on screen and in time: its directory, checkpoints, records, console, timers and watchdogs."""
