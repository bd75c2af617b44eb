"""Text and images in, token ids, patches and positions out. NumPy, Pillow and tokenizers; no jax, no torch."""

from __future__ import annotations

from zppo_jax.processor.chat import default_chat_template
from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.images import load_image
from zppo_jax.processor.media import Clip, Picture
from zppo_jax.processor.positions import rope_index
from zppo_jax.processor.processor import Processor
from zppo_jax.processor.tokenizer import build_tokenizer
from zppo_jax.processor.video_files import load_video
from zppo_jax.processor.videos import Video, sample_indices

__all__ = [
    "Clip",
    "Picture",
    "Processor",
    "ProcessorConfig",
    "Video",
    "build_tokenizer",
    "default_chat_template",
    "load_image",
    "load_video",
    "rope_index",
    "sample_indices",
]
