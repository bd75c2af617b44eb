"""A run on disk, on screen and in time: its directory, checkpoints, records, console, and what watches over it."""
