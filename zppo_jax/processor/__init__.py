"""Text and images in, token ids, patches and positions out. NumPy, Pillow and tokenizers; no jax, no torch."""

from __future__ import annotations

from zppo_jax.processor.chat import default_chat_template
from zppo_jax.processor.images import ProcessorConfig, load_image
from zppo_jax.processor.positions import rope_index
from zppo_jax.processor.processor import Processor
from zppo_jax.processor.tokenizer import build_tokenizer

__all__ = ["Processor", "ProcessorConfig", "build_tokenizer", "default_chat_template", "load_image", "rope_index"]
