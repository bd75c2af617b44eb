"""The tiny Qwen3.5-VL: the real architecture at a laptop's size, with its own tokenizer.

Every part of Qwen3.5 is there: gated DeltaNet and gated attention in the LLLF pattern, the vision tower with its 2x2
merger, interleaved M-RoPE, tied embeddings, the real special tokens and the real chat template.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from zppo_jax.data import digits
from zppo_jax.models.qwen3_5.config import Config, TextConfig, VisionConfig
from zppo_jax.processor import Processor, ProcessorConfig, build_tokenizer, default_chat_template
from zppo_jax.zppo.prompts import TEMPLATES

_COMPACT = TEMPLATES["compact"]
# Each of these is one token, so that the template's fixed words take little of a tiny model's context.
_WHOLE_WORDS = (
    "\n\n",
    "user\n",
    "assistant\n",
    " the digits.",
    _COMPACT.closer,
    _COMPACT.bcq_intro,
    _COMPACT.ncq_list_open,
    "\\boxed{",
    "}, ",
    "<candidate>\n",
    "\n</candidate>\n",
    *digits.TAUGHT,
    *digits.HIDDEN,
)
_GRID_TEXTS = tuple(digits.GRID_TEXTS.values())


def tokenizer() -> Tokenizer:
    """A byte-level BPE of 340 ids; the words of the `grid` questions are merges, those of the template whole words."""
    return build_tokenizer(_GRID_TEXTS * 4, 340, _WHOLE_WORDS)


def processor(enable_thinking: bool = True, min_pixels: int = 1024, max_pixels: int = 4 * 1024) -> Processor:
    """The processor, with pixel limits under which each 32 x 32 digit is one merged vision token."""
    config = ProcessorConfig(min_pixels=min_pixels, max_pixels=max_pixels, enable_thinking=enable_thinking)
    return Processor(tokenizer(), default_chat_template(), config)


def config(processor: Processor) -> Config:
    """The architecture of both student and teacher, so that they share every compiled program."""
    ids = processor.tokenizer.get_vocab()
    hidden = 64
    return Config(
        text=TextConfig(
            vocab_size=-(-processor.vocab_size // 16) * 16,
            hidden_size=hidden,
            intermediate_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            linear_num_key_heads=4,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_conv_kernel_dim=4,
            full_attention_interval=4,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            partial_rotary_factor=0.5,
            mrope_section=(3, 3, 2),
            tie_word_embeddings=True,
        ),
        vision=VisionConfig(
            depth=1,
            hidden_size=48,
            intermediate_size=96,
            num_heads=2,
            in_channels=3,
            patch_size=16,
            temporal_patch_size=2,
            spatial_merge_size=2,
            num_position_embeddings=64,
            out_hidden_size=hidden,
        ),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        stop_token_ids=processor.stop_ids,
        pad_token_id=processor.pad_id,
    )
