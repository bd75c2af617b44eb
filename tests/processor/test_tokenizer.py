from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from zppo_jax.processor.tokenizer import CONTROL_TOKENS, PRE_TOKENIZER, PromptEncoder, build_tokenizer, control_ids

HOSTILE = st.lists(
    st.one_of(st.sampled_from([*CONTROL_TOKENS, "\\boxed{", "<", "|>", "\n", " "]), st.text(max_size=5)), max_size=12
).map("".join)


def test_the_pre_tokenizer_is_that_of_transformers():
    from transformers.models.qwen3_5 import tokenization_qwen3_5

    assert PRE_TOKENIZER == tokenization_qwen3_5.PRETOKENIZE_REGEX


def test_ids_are_bytes_and_merges_then_whole_words_then_control_tokens(tokenizer):
    size = tokenizer.get_vocab_size()
    assert size <= 360
    order = [tokenizer.id_to_token(i) for i in range(size)]
    assert len(set(order[:256])) == 256 and all(len(token) == 1 for token in order[:256])
    assert order[-31:] == ["\\boxed{", "<candidate>\n", "</candidate>", "user\n", "assistant\n", *CONTROL_TOKENS]


def test_training_is_deterministic(tokenizer):
    from tests.processor.conftest import CORPUS, WHOLE_WORDS

    assert build_tokenizer(list(CORPUS * 3), 360, WHOLE_WORDS).to_str() == tokenizer.to_str()


def test_control_tokens_are_one_id_in_template_text(tokenizer):
    for token in CONTROL_TOKENS:
        assert tokenizer.encode(token).ids == [tokenizer.token_to_id(token)]


def test_the_special_flags_are_those_of_qwen(tokenizer):
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    assert "<|im_end|>" in special and "<|image_pad|>" in special and len(special) == 14
    assert not special & {"<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "\\boxed{"}


def test_whole_words_are_one_token_inside_other_text(tokenizer):
    encoder = PromptEncoder(tokenizer)
    ids = encoder.encode_text("x\\boxed{4}<candidate>\ny")
    assert tokenizer.token_to_id("\\boxed{") in ids and tokenizer.token_to_id("<candidate>\n") in ids
    assert tokenizer.decode(ids) == "x\\boxed{4}<candidate>\ny"


def test_digits_are_single():
    tokenizer = build_tokenizer(["2024 2024 2024 1234567890"] * 20, 400)
    assert len(tokenizer.encode("2024").ids) == 4


@given(text=HOSTILE)
def test_text_never_yields_a_control_id(tokenizer, text):
    encoder = PromptEncoder(tokenizer)
    assert not set(encoder.encode_text(text)) & set(encoder.control_ids.values())


@given(text=HOSTILE)
def test_text_survives_encoding(tokenizer, text):
    import unicodedata

    encoder = PromptEncoder(tokenizer)
    assert tokenizer.decode(encoder.encode_text(text)) == unicodedata.normalize("NFC", text)


def test_ids_stay_when_control_tokens_stand_before_other_added_tokens():
    tokenizer = build_tokenizer(["a b c"], 400)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.add_special_tokens(["<|audio|>"])
    encoder = PromptEncoder(tokenizer)
    assert encoder.encode_text("<extra>") == [tokenizer.token_to_id("<extra>")]
    assert tokenizer.token_to_id("<|audio|>") not in encoder.encode_text("<|audio|>")
    assert encoder.encode("<|audio|>") == [tokenizer.token_to_id("<|audio|>")]


def test_a_missing_control_token_is_named():
    content = json.loads(build_tokenizer(["a"], 400).to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</think>"]
    with pytest.raises(ValueError, match="lacks </think>"):
        control_ids(Tokenizer.from_str(json.dumps(content)))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["é!"], "ASCII"), ([""], "empty"), (["ab", "ab"], "twice"), (["a<think>"], "control"), (["a"], "one character")],
)
def test_unfit_whole_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(["abc"], 400, words)


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 283"):
        build_tokenizer(["abc"], 282, ["ab"])


def test_of_two_control_tokens_the_longer_one_is_found():
    tokenizer = build_tokenizer(["abc"], 400)
    tokenizer.add_special_tokens(["<think>!"])
    assert PromptEncoder(tokenizer).encode("a<think>!b<think>c") == tokenizer.encode("a<think>!b<think>c").ids


def test_no_merge_is_spent_on_whole_words():
    tokens = build_tokenizer(["boxed up", "boxed up"], 400, ["boxed up"]).get_vocab(with_added_tokens=False)
    assert len(tokens) == 256


def test_a_control_token_that_eats_spaces_is_refused():
    tokenizer = build_tokenizer(["abc"], 400)
    tokenizer.add_special_tokens([AddedToken("<|wide|>", lstrip=True)])
    with pytest.raises(ValueError, match=r"'<\|wide\|>' has lstrip"):
        PromptEncoder(tokenizer)


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogate"):
        PromptEncoder(tokenizer).encode_text("a\ud800")
