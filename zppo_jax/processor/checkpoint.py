"""The files of a checkpoint that is named: a directory, or OWNER/NAME on the Hugging Face Hub; and its processor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zppo_jax.processor.processor import Processor

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES, _NOT_THESE = ("*.json", "*.jinja", "merges.txt"), ("*/*",)


def resolve(name: str | Path, files: Sequence[str], others: Sequence[str]) -> Path:
    """Returns the directory `name`, or the local snapshot of the Hub's repository OWNER/NAME, downloaded if necessary:
    its `files` without `others`, as patterns.

    Raises FileNotFoundError in one line if neither exists.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not _ID.fullmatch(str(name)):
        raise FileNotFoundError(f"there is no directory {str(name)!r}: give a Hugging Face directory, or OWNER/NAME")
    import huggingface_hub  # takes half a second, and most checkpoints are local

    try:
        return Path(
            huggingface_hub.snapshot_download(str(name), allow_patterns=list(files), ignore_patterns=list(others))
        )
    except Exception as error:  # the hub, its cache and its HTTP client have their own exceptions
        reason = " ".join(str(error).split())[:150]
        raise FileNotFoundError(
            f"there is no directory {str(name)!r}, and the Hugging Face Hub has none ({type(error).__name__}: "
            f"{reason}): on a machine with a network run `hf download {name} --local-dir DIR`, then give DIR"
        ) from error


def load_processor(name: str | Path, **overrides: Any) -> tuple[Processor, str]:
    """The processor (see `Processor.from_directory`) and the directory of its files; of a repository only those files
    are downloaded. Raises FileNotFoundError or ValueError in one line."""
    folder = resolve(name, _FILES, _NOT_THESE)
    return Processor.from_directory(folder, **overrides), str(folder)
