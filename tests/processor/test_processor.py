from __future__ import annotations

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from zppo_jax.processor import Processor, Video
from zppo_jax.processor.tokenizer import CONTROL_TOKENS

GREY = np.full((64, 96, 3), 128, np.uint8)
FRAGMENTS = (
    *(
        "the sum",
        " of",
        " digits",
        "ß",
        "é",
        "é",
        "\u0301",
        "नमस्ते",
        "日本",
        "🙂",
        "don't",
        "I'LL",
        "3",
        "42",
        "½",
        " ",
        "   ",
    ),
    *(
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        " \n ",
        "\u00a0",
        "\u2028",
        "\x1c",
        ".",
        "...",
        "!?",
        "}\n",
        "\\boxed{",
        "<candidate>\n",
        "<",
        "|",
    ),
    *("</candidate>", "user\n", "{{", "$x^2$"),
)


def _random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(FRAGMENTS, k=rng.randint(0, 14))) for _ in range(count)]


@pytest.fixture(scope="module")
def oracle(saved_directory):
    return AutoTokenizer.from_pretrained(saved_directory)


def _oracle_ids(oracle, text: str, num_images: int, thinking: bool, pads: int) -> list[int]:
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    rendered = oracle.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return oracle(rendered.replace("<|image_pad|>", "<|image_pad|>" * pads))["input_ids"]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("num_images", [0, 2])
def test_ordinary_text_is_tokenised_as_by_transformers(saved_directory, oracle, num_images, thinking):
    processor = Processor.from_directory(saved_directory, enable_thinking=thinking)
    for text in _random_texts(300):
        features = processor.features(text, [GREY] * num_images)
        assert features.token_ids_T.tolist() == _oracle_ids(oracle, text, num_images, thinking, 6), repr(text)


def test_transformers_reads_the_end_and_the_padding(oracle, processor):
    assert oracle.eos_token_id == processor.stop_ids[0] and oracle.pad_token_id == processor.pad_id
    assert oracle.decode(oracle.encode("<think>a<|im_end|>"), skip_special_tokens=True) == "<think>a"


def test_features_of_two_images(processor):
    features = processor.features("Add them.", [GREY, GREY[:, :64]])
    assert features.token_ids_T.dtype == features.token_types_T.dtype == features.positions_3T.dtype == np.int32
    assert features.grid_thw_N3.tolist() == [[1, 4, 6], [1, 4, 4]]
    assert features.patches_IC.shape == (24 + 16, 1536) and features.patches_IC.dtype == np.uint8
    assert features.token_types_T.sum() == 6 + 4 == (features.token_ids_T == processor.image_token_id).sum()
    assert features.positions_3T.shape == (3, features.num_tokens)
    assert features.rope_delta == (3 - 6) + (2 - 4)
    assert processor.render("Add them.", 2).startswith(
        "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "Add them.<|im_end|>\n"
    )


def test_features_of_text_alone(processor):
    features = processor.features("Add.", [])
    assert features.patches_IC.shape == (0, 1536) and features.grid_thw_N3.shape == (0, 3)
    assert features.rope_delta == 0
    np.testing.assert_array_equal(features.positions_3T, np.tile(np.arange(features.num_tokens), (3, 1)))


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_text_adds_no_control_ids(processor, token):
    control_ids = [processor.tokenizer.token_to_id(name) for name in CONTROL_TOKENS]
    for text in (token, f"a {token}b", f"\n{token}\n{token}"):
        features = processor.features(text, [GREY])
        plain = processor.features("a", [GREY])
        assert np.isin(features.token_ids_T, control_ids).sum() == np.isin(plain.token_ids_T, control_ids).sum()
        assert token in processor.tokenizer.decode(features.token_ids_T.tolist(), skip_special_tokens=False)


def test_an_unfit_image_is_refused(processor):
    with pytest.raises(ValueError, match="image 1: expected uint8"):
        processor.features("a", [GREY, GREY / 255])


def test_decode_keeps_thinking_and_drops_the_end(processor):
    ids = processor.tokenizer.encode("<think>\nhm é\n</think>\n\n\\boxed{3}<|box_end|><|im_end|><|endoftext|>").ids
    assert processor.decode(np.asarray(ids)) == "<think>\nhm é\n</think>\n\n\\boxed{3}"
    assert processor.decode(processor.tokenizer.encode("é").ids[:1]) == "\ufffd"
    assert processor.decode([processor.vocab_size + 5]) == "" == processor.decode([])


def test_special_ids(processor):
    names = [processor.tokenizer.id_to_token(token) for token in processor.stop_ids]
    assert names == ["<|im_end|>", "<|endoftext|>"]
    banned = {processor.tokenizer.id_to_token(token) for token in processor.banned_ids}
    assert banned == {
        "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"
    }  # fmt: skip
    assert processor.vocab_size == processor.tokenizer.get_vocab_size()


@pytest.mark.parametrize("side", ["left", "right"])
def test_hf_inputs_is_a_padded_batch(processor, side):
    samples = [("Add.", [GREY]), ("What is the sum of the digits?", [])]
    batch = processor.hf_inputs(samples, side)
    rows = [processor.features(*sample) for sample in samples]
    for index, row in enumerate(rows):
        valid = batch["attention_mask"][index] == 1
        np.testing.assert_array_equal(batch["input_ids"][index][valid], row.token_ids_T)
        np.testing.assert_array_equal(batch["mm_token_type_ids"][index][valid], row.token_types_T)
        assert (batch["input_ids"][index][~valid] == processor.pad_id).all()
    shorter = int(rows[0].num_tokens > rows[1].num_tokens)
    assert batch["attention_mask"][shorter][0 if side == "left" else -1] == 0
    assert {name: value.dtype for name, value in batch.items()} == {
        **dict.fromkeys(("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw"), np.dtype(np.int64)),
        "pixel_values": np.dtype(np.float32),
    }
    assert set(processor.hf_inputs(samples[1:], side)) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    with pytest.raises(ValueError, match="padding_side='top'"):
        processor.hf_inputs(samples, "top")


def test_a_directory_and_a_worker_get_the_same_processor(processor, saved_directory):
    text = "The <think> \\boxed{4} <candidate>\n</candidate>"
    expected = processor.features(text, [GREY])
    for other in (Processor.from_directory(saved_directory), pickle.loads(pickle.dumps(processor))):
        assert other.config == processor.config and other.stop_ids == processor.stop_ids
        np.testing.assert_array_equal(other.features(text, [GREY]).token_ids_T, expected.token_ids_T)


def test_num_tokens_needs_no_pixels(processor):
    for text, sizes in [("Add.", []), ("What is the sum?", [(64, 96), (500, 30)]), (" \n", [(1, 1)])]:
        images = [np.zeros((*size, 3), np.uint8) for size in sizes]
        assert processor.num_tokens(text, sizes) == processor.features(text, images).num_tokens
        film = Video([np.zeros((70, 40, 3), np.uint8)] * 5, 2.0)
        assert processor.num_tokens(text, sizes, [film]) == processor.features(text, images, [film]).num_tokens
    with pytest.raises(ValueError, match="image 1: aspect ratio 1000"):
        processor.num_tokens("a", [(5, 5), (10, 10_000)])


def test_neither_jax_nor_torch_is_imported(saved_directory):
    code = """
import sys, numpy as np
from zppo_jax.processor import Processor
assert "transformers" not in sys.modules
Processor.from_directory(sys.argv[1]).features("a", [np.zeros((32, 32, 3), np.uint8)])
assert not {"jax", "torch", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(saved_directory)], check=True, timeout=60)
