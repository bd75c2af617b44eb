"""Settings that all tests share; they must stand before the first import of jax, transformers or matplotlib."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the oracles compare on the CPU; set it to test another platform
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The same examples in every run: a failure here is a failure everywhere. A slow machine is no fault.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")
