"""Finds a checkpoint: in a local directory, or in the local cache of the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
"""Files that are downloaded: weights, configurations, tokenizer and chat template; no pickle and no code."""

NOT_THE_MODEL = ("*/*", "consolidated*", "adapter_model*")
"""Files that are excluded from these: folders, and weights other than the model's, which `reader` would not read."""

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve(name: str | Path) -> Path:
    """Returns the directory `name`, or the local snapshot of the Hub's repository OWNER/NAME, downloaded if necessary.

    Raises FileNotFoundError in one line if neither exists.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if not _ID.fullmatch(str(name)):
        raise FileNotFoundError(f"there is no directory {str(name)!r}: give a Hugging Face directory, or OWNER/NAME")
    import huggingface_hub  # takes half a second, and most checkpoints are local

    try:
        folder = huggingface_hub.snapshot_download(
            str(name), allow_patterns=list(FILES), ignore_patterns=list(NOT_THE_MODEL)
        )
    except Exception as error:  # the hub, its cache and its HTTP client have their own exceptions
        reason = " ".join(str(error).split())[:150]
        raise FileNotFoundError(
            f"there is no directory {str(name)!r}, and the Hugging Face Hub has none ({type(error).__name__}: "
            f"{reason}): on a machine with a network run `hf download {name} --local-dir DIR`, then give DIR"
        ) from error
    return Path(folder)
