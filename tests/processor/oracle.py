"""transformers' own Qwen3VLProcessor, run whole from images, videos and text to the model's inputs.

torchvision, which it requires, is not installed. So its check of the classes is skipped, and three functions of its
torchvision backend are replaced: resizing by torch's `interpolate` on uint8, which torchvision calls; rescaling and
normalising by their formula; and the conversion to RGB, since frames are already RGB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from zppo_jax.processor import Processor, ProcessorConfig, Video


class _TorchBackend(TorchvisionBackend):
    def resize(self, image, size, **_):
        flat = image.flatten(0, 1)
        resized = torch.nn.functional.interpolate(
            flat, size=(size.height, size.width), mode="bicubic", align_corners=False, antialias=True
        )
        return resized.unflatten(0, image.shape[:2])

    def rescale_and_normalize(self, images, do_rescale, rescale_factor, do_normalize, image_mean, image_std):
        assert do_rescale and do_normalize
        return (images.float() * rescale_factor - float(np.mean(image_mean))) / float(np.mean(image_std))


class VideoProcessor(Qwen3VLVideoProcessor, _TorchBackend):
    def convert_to_rgb(self, video):
        return video


class _Processor(Qwen3VLProcessor):
    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def image_processor(config: ProcessorConfig) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def video_processor(config: ProcessorConfig) -> VideoProcessor:
    return VideoProcessor(
        size={"shortest_edge": config.video_min_pixels, "longest_edge": config.video_max_pixels},
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        fps=config.video_fps,
        min_frames=config.video_min_frames,
        max_frames=config.video_max_frames,
        cap_pixels_per_frame=config.video_frame_tokens is not None,
        max_video_tokens=config.video_frame_tokens or 768,
    )


class Oracle:
    """Makes the same inputs as a `Processor` with the files in `directory`."""

    def __init__(self, processor: Processor, directory):
        self._config = processor.config
        tokenizer = AutoTokenizer.from_pretrained(directory)
        parts = (image_processor(processor.config), tokenizer, video_processor(processor.config))
        self.transformers = _Processor(*parts, chat_template=processor.chat_template)

    def __call__(self, samples, padding_side: str = "left") -> dict[str, np.ndarray]:
        images = [image for sample in samples for image in sample[1]]
        videos = [video for sample in samples for video in (sample[2] if len(sample) == 3 else ())]
        arguments: dict[str, Any] = {"padding": True, "padding_side": padding_side, "return_tensors": "np"}
        if images:
            arguments["images"] = images
        if videos:
            arguments |= {
                "videos": [np.stack(video.frames) for video in videos],
                "video_metadata": [_metadata(video) for video in videos],
                "do_sample_frames": False,
            }
        texts = [self._render(*sample) for sample in samples]
        return dict(self.transformers(text=texts, **arguments))

    def _render(self, text: str, images, videos=()) -> str:
        kinds = ["image"] * len(images) + ["video"] * len(videos)
        content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": text}]
        return self.transformers.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._config.enable_thinking,
        )


def _metadata(video: Video) -> dict[str, Any]:
    indices = video.frame_indices()
    return {"total_num_frames": int(indices[-1]) + 1, "fps": video.fps, "frames_indices": indices}
