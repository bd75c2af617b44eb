"""Reading `config.json`: published files are read, unsupported values are refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.models.tiny import config_dict
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import config_keys, hf, sizes
from zppo_jax.models.qwen3_5.config import UnsupportedConfigError
from zppo_jax.models.qwen3_5.parameters import count, flatten
from zppo_jax.processor import ProcessorConfig

SMALLEST = configs.to_dict(sizes.get("0.8B"), "bfloat16")


def test_untying_the_head_adds_one_more_table():
    tied, untied = (configs.from_dict(SMALLEST | {"tie_word_embeddings": value}) for value in (True, False))
    extra = count(qwen3_5.abstract_params(untied)) - count(qwen3_5.abstract_params(tied))
    assert extra == 248320 * 1024


def test_every_parameter_has_one_place_in_the_checkpoint():
    """Each leaf is filled completely and once by the table's entries."""
    config = configs.from_dict(config_dict(text__num_hidden_layers=8))
    seen: dict[str, list[tuple[int, ...]]] = {}
    for entry in hf.table(config):
        seen.setdefault(entry.path, []).append(entry.index)
    leaves = flatten(qwen3_5.abstract_params(config))
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


# Other keys of the published files than the sizes, and those that transformers adds when it writes one.
PUBLISHED = {
    "text_config": {
        "attn_output_gate": True,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "max_position_embeddings": 262144,
        "use_cache": True,
        "dtype": "bfloat16",
        "bos_token_id": None,
    },
    "vision_config": {"initializer_range": 0.02, "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}},
    "": {"architectures": ["Qwen3_5ForConditionalGeneration"], "transformers_version": "5.0", "torch_dtype": "x"},
}


@pytest.fixture
def warnings(monkeypatch):
    """The warnings, as if there had been none before."""
    config_keys.report.cache_clear()
    messages: list[str] = []
    monkeypatch.setattr(config_keys.logging, "warning", lambda text, *rest: messages.append(text % rest))
    return messages


def test_published_keys_without_meaning_here_are_passed_over(warnings):
    raw = config_dict() | PUBLISHED[""]
    for section in ("text_config", "vision_config"):
        raw[section] |= PUBLISHED[section]
    assert configs.from_dict(raw) == configs.from_dict(config_dict())
    assert warnings == []


def test_unknown_keys_are_named_in_one_warning(warnings):
    raw = config_dict(text__sliding_window=7, vision__window_size=8, num_experts=9)
    assert [configs.from_dict(raw) for _ in range(2)] == [configs.from_dict(config_dict())] * 2
    assert len(warnings) == 1
    assert warnings[0].endswith("not follow: num_experts, text_config.sliding_window, vision_config.window_size")


def test_every_ignored_key_has_a_reason():
    assert all(len(reason) > 10 for reason in config_keys.IGNORED.values())


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
        ({"text__num_hidden_layers": None}, "num_hidden_layers"),
        ({"text__layer_types": "full_attention"}, "layer_types"),
        ({"text__full_attention_interval": "4"}, "full_attention_interval='4'"),
        ({"text__hidden_size": "64"}, "hidden_size='64'"),
        ({"text__head_dim": -64}, "head_dim=-64"),
        ({"text__vocab_size": True}, "vocab_size=True"),
        ({"text__num_hidden_layers": 4 * 10**9}, "num_hidden_layers=4000000000 is not between 1 and 1024"),
        ({"vision__depth": 10**9}, "depth=1000000000 is not between 1 and 1024"),
        ({"text__hidden_size": 10**18}, "hidden_size=1000000000000000000 is not between"),
        ({"text__head_dim": 64.0}, "head_dim=64.0"),
        ({"text__rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"text__rms_norm_eps": 1e30}, "rms_norm_eps=1e+30 is not between"),
        ({"text__linear_conv_kernel_dim": 10**6}, "linear_conv_kernel_dim=1000000"),
        ({"vision__patch_size": 0}, "vision_config.patch_size=0"),
        ({"vision__out_hidden_size": 32}, "out_hidden_size=32 is not text_config.hidden_size=64"),
        ({"vision__num_position_embeddings": 63}, "num_position_embeddings=63"),
        ({"vision__num_heads": 16}, "heads of 2"),
        ({"vision__rope_parameters": [1]}, "vision_config.rope_parameters=[1] is not an object"),
        ({"text__rope_parameters": [1]}, "text_config.rope_parameters=[1] is not an object"),
        ({"text__rope_parameters": rope(rope_theta=float("inf"))}, "rope_theta=inf is not between"),
        ({"text__rope_parameters": rope(rope_theta=10**400)}, "is not between 1 and 1e+12"),
        ({"text__rope_parameters": rope(rope_theta=1e-300)}, "rope_theta=1e-300 is not between"),
        ({"text__rope_parameters": rope(mrope_section=[-1, 6, 3])}, "mrope_section=[-1, 6, 3]"),
        ({"text__rope_parameters": rope(partial_rotary_factor=2.0)}, "partial_rotary_factor=2.0"),
        ({"image_token_id": -1}, "image_token_id=-1 is not one of the 512 tokens"),
        ({"image_token_id": 512}, "image_token_id=512 is not one of the 512 tokens"),
        ({"text__eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"text__eos_token_id": [5, -1]}, "eos_token_id is [5, -1]"),
        ({"text__pad_token_id": [1]}, "pad_token_id is [[1]]"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'"),
        ({"vision__num_heads": 3}, "num_heads=3"),
        ({"vision__rope_parameters": {"rope_theta": 1e6}}, "vision_config.rope_parameters"),
        ({"text__rope_parameters": rope(rope_theta=float("nan"))}, "rope_theta=nan"),
        ({"text__rope_parameters": rope(rope_theta="1e7")}, "rope_theta='1e7'"),
        ({"text__rope_parameters": rope(mrope_section=16)}, "mrope_section=16"),
        ({"text__rope_parameters": rope(mrope_interleaved=False)}, "mrope_interleaved=False"),
        ({"text__rope_parameters": {"rope_type": "default"}}, "lacks rope_parameters.rope_theta"),
        ({"image_token_id": None}, "image_token_id"),
        ({"video_token_id": "x"}, "video_token_id"),
        ({"text_config": None}, "no text_config"),
        ({"vision_config": [1]}, "vision_config"),
        ({"model_type": "qwen3_vl"}, "model_type='qwen3_vl' is not a dense Qwen3.5"),
        ({"model_type": "qwen3_5_moe"}, "model_type='qwen3_5_moe'"),
        ({"model_type": "qwen3_5_text"}, "this is the language model alone"),
        ({"text__model_type": "qwen3_5_moe_text"}, "text_config.model_type='qwen3_5_moe_text'"),
        ({"vision__model_type": "qwen3_vl"}, "vision_config.model_type='qwen3_vl'"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(changes, named):
    with pytest.raises(UnsupportedConfigError) as error:
        configs.from_dict(config_dict(**changes))
    assert named in str(error.value)


def test_a_text_only_config_is_refused():
    with pytest.raises(UnsupportedConfigError, match="vision"):
        configs.from_dict(config_dict()["text_config"])


def test_a_preprocessor_of_another_checkpoint_is_refused():
    vision = configs.from_dict(config_dict()).vision
    config_keys.check_processor(vision, ProcessorConfig())
    with pytest.raises(UnsupportedConfigError, match=r"patch_size=16 in config\.json, but patch_size=14 in prepro"):
        config_keys.check_processor(vision, ProcessorConfig(patch_size=14))


def test_stop_ids_come_from_the_generation_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_dict()))
    assert configs.from_directory(tmp_path).stop_token_ids == (5,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 5]}))
    assert configs.from_directory(tmp_path).stop_token_ids == (6, 5)


def test_without_a_generation_config_stop_ids_are_what_config_json_says(tmp_path):
    """The small releases: 248044 alone, with which a response runs past its turn; see `Config`."""
    raw = json.loads(json.dumps(SMALLEST))
    raw["text_config"]["eos_token_id"] = 248044
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert configs.from_directory(tmp_path).stop_token_ids == (248044,)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", "[" * 100_000])
def test_a_damaged_json_file_is_named(name, content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_dict()))
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UnsupportedConfigError, match=rf"/{name} (is not JSON|must hold)"):
        configs.from_directory(tmp_path)


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        configs.from_directory(tmp_path)


def test_what_is_written_is_read_back():
    config = configs.from_dict(config_dict(text__num_hidden_layers=8), stop_token_ids=(6, 5), pad_token_id=3)
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config, "float32")))) == config


def test_transformers_reads_the_same_model_from_what_is_written(warnings):
    pytest.importorskip("torch")  # without it transformers may refuse to import its models
    import transformers

    theirs: Any = transformers.Qwen3_5Config(**json.loads(json.dumps(SMALLEST)))
    assert theirs.tie_word_embeddings is True
    assert theirs.text_config.layer_types[:4] == ["linear_attention"] * 3 + ["full_attention"]
    assert theirs.text_config.rope_parameters["rope_theta"] == 1e7
    assert theirs.text_config.max_position_embeddings == 262144
    assert theirs.text_config.eos_token_id == [248046, 248044]
    assert configs.from_dict(theirs.to_dict()) == configs.from_dict(SMALLEST)
    assert warnings == []
