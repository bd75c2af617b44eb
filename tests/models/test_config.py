"""Reading `config.json`: what is published is read, what cannot be represented is refused by name."""

from __future__ import annotations

import json
from typing import Any

import jax
import pytest

from tests.models.tiny import config_dict
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.models.qwen3_5.config import UnsupportedConfigError

# The shape of the published 0.8B model.
SMALLEST = config_dict(
    image_token_id=248056,
    video_token_id=248057,
    vision_start_token_id=248053,
    vision_end_token_id=248054,
    text__vocab_size=248320,
    text__hidden_size=1024,
    text__intermediate_size=3584,
    text__num_hidden_layers=24,
    text__num_attention_heads=8,
    text__num_key_value_heads=2,
    text__head_dim=256,
    text__linear_num_key_heads=16,
    text__linear_num_value_heads=16,
    text__linear_key_head_dim=128,
    text__linear_value_head_dim=128,
    text__eos_token_id=248044,
    text__rope_parameters={
        "rope_type": "default",
        "rope_theta": 10000000,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
        "mrope_interleaved": True,
    },
    vision__depth=12,
    vision__hidden_size=768,
    vision__intermediate_size=3072,
    vision__num_heads=12,
    vision__num_position_embeddings=2304,
    vision__out_hidden_size=1024,
)


def test_the_smallest_published_model_has_its_number_of_parameters():
    config = configs.from_dict(SMALLEST)
    shapes = qwen3_5.abstract_params(config)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert hf.count(shapes) == 852_985_920
    assert hf.count(shapes["text"]["embed"]) == 248320 * 1024


def test_untying_the_head_adds_one_more_table():
    tied, untied = (configs.from_dict(SMALLEST | {"tie_word_embeddings": value}) for value in (True, False))
    extra = hf.count(qwen3_5.abstract_params(untied)) - hf.count(qwen3_5.abstract_params(tied))
    assert extra == 248320 * 1024


def test_every_parameter_has_one_place_in_the_checkpoint():
    """Each leaf is filled completely and once by the table's entries."""
    config = configs.from_dict(config_dict(text__num_hidden_layers=8))
    seen: dict[str, list[tuple[int, ...]]] = {}
    for _, path, index, _ in hf.table(config):
        seen.setdefault(path, []).append(index)
    leaves = hf.flatten(qwen3_5.abstract_params(config))
    assert set(seen) == set(leaves)
    for path, indices in seen.items():
        assert len(set(indices)) == len(indices), path
        depth = len(indices[0])
        places = 1
        for size in leaves[path].shape[:depth]:
            places *= size
        assert len(indices) == places, path


def test_layer_types_and_the_interval_say_the_same():
    types = (["linear_attention"] * 3 + ["full_attention"]) * 2
    by_interval = configs.from_dict(config_dict(text__num_hidden_layers=8))
    by_types = config_dict(text__num_hidden_layers=8, text__full_attention_interval=None, text__layer_types=types)
    assert configs.from_dict(by_types) == by_interval
    both = config_dict(text__num_hidden_layers=8, text__layer_types=types)
    assert configs.from_dict(both) == by_interval
    pairs = config_dict(
        text__full_attention_interval=None, text__layer_types=["linear_attention", "full_attention"] * 2
    )
    assert configs.from_dict(pairs).text.full_attention_interval == 2


@pytest.mark.parametrize("spelling", ["qwen3_5", "qwen3_5_vision", None])
def test_both_spellings_of_the_vision_type_are_read(spelling):
    assert configs.from_dict(config_dict(vision__model_type=spelling)) == configs.from_dict(config_dict())


@pytest.mark.parametrize(
    "change", [{"attn_output_gate": True}, {"mtp_num_hidden_layers": 1}, {"mamba_ssm_dtype": "float32"}]
)
def test_published_keys_without_meaning_here_are_passed_over(change):
    changes = {f"text__{name}": value for name, value in change.items()}
    assert configs.from_dict(config_dict(**changes)) == configs.from_dict(config_dict())


def rope(**changes):
    return config_dict()["text_config"]["rope_parameters"] | changes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text__hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"text__attention_bias": True}, "attention_bias=True"),
        ({"text__attn_output_gate": False}, "attn_output_gate=False"),
        ({"text__rope_parameters": rope(rope_type="yarn")}, "rope_type='yarn'"),
        ({"text__rope_parameters": rope(mrope_section=[4, 3, 2])}, "mrope_section"),
        ({"text__num_hidden_layers": 6}, "num_hidden_layers=6"),
        ({"text__layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"text__num_attention_heads": 3}, "3 heads"),
        ({"text__linear_num_value_heads": 3}, "3 heads"),
        ({"vision__deepstack_visual_indexes": [1]}, "deepstack_visual_indexes"),
        ({"vision__hidden_act": "gelu"}, "vision_config.hidden_act"),
        ({"text__vocab_size": None}, "vocab_size"),
        ({"vision__depth": None}, "depth"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfigError) as error:
        configs.from_dict(config_dict(**changes))
    assert named in str(error.value)


def test_a_text_only_config_is_refused():
    with pytest.raises(UnsupportedConfigError, match="vision"):
        configs.from_dict(config_dict()["text_config"])


def test_stop_ids_come_from_the_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_dict()))
    assert configs.from_directory(tmp_path).stop_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 5]}))
    assert configs.from_directory(tmp_path).stop_token_ids == (6, 5)


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        configs.from_directory(tmp_path)


def test_what_is_written_is_read_back():
    config = configs.from_dict(config_dict(text__num_hidden_layers=8), stop_token_ids=(6, 5))
    written = json.loads(json.dumps(configs.to_dict(config, "float32")))
    assert configs.from_dict(written, stop_token_ids=(6, 5)) == config


def test_transformers_reads_the_same_model_from_what_is_written():
    pytest.importorskip("torch")  # without it transformers may refuse to import its models
    import transformers

    written = configs.to_dict(configs.from_dict(SMALLEST), "bfloat16")
    theirs: Any = transformers.Qwen3_5Config(**json.loads(json.dumps(written)))
    assert theirs.tie_word_embeddings is True
    assert theirs.text_config.layer_types[:4] == ["linear_attention"] * 3 + ["full_attention"]
    assert theirs.text_config.rope_parameters["rope_theta"] == 1e7
    assert configs.from_dict(theirs.to_dict()) == configs.from_dict(SMALLEST)
