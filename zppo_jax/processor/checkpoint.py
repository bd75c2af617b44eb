"""The processor of a checkpoint that is named: a directory, or OWNER/NAME on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zppo_jax.processor.processor import Processor


def load_processor(name: str | os.PathLike[str], **overrides: Any) -> tuple[Processor, str]:
    """The processor (see `Processor.from_directory`) and the directory of its files; of a repository only those files
    are downloaded. Raises ValueError in one line."""
    folder = os.fspath(name) if Path(name).is_dir() else _from_hub(os.fspath(name))
    return Processor.from_directory(folder, **overrides), folder


def _from_hub(name: str) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.jinja"], ignore_patterns=["*/*"])
    except Exception as error:  # the hub, its cache and its HTTP client have their own exceptions
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"there is no directory {name!r}, and the Hugging Face Hub has none ({type(error).__name__}: {reason}): "
            f"on a machine with a network run `hf download {name} --local-dir DIR`, then give DIR"
        ) from error
