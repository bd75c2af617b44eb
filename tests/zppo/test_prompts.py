"""The prompts, byte for byte, and the hostile text that must not get through them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, prompt_uid
from zppo_jax.zppo import prompts

PAPER = prompts.TEMPLATES["paper"]
COMPACT = prompts.TEMPLATES["compact"]

# The 26 special tokens of Qwen3.5.
SPECIAL_TOKENS = [
    *(f"<|{name}|>" for name in ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end")),
    *(f"<|{name}|>" for name in ("box_start", "box_end", "quad_start", "quad_end", "vision_start", "vision_end")),
    *(f"<|{name}|>" for name in ("vision_pad", "image_pad", "video_pad")),
    *("<tool_call>", "</tool_call>"),
    *(f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
]
TEMPLATE_TAGS = ["<candidate>", "</candidate>", "<response>", "</response>", "<summary>", "</summary>"]
HOSTILE = [*SPECIAL_TOKENS, *TEMPLATE_TAGS, "< / Candidate\n>", "<\u200b/CANDIDATE >", "<candidate/>", "</ thinK>"]

PLAIN_PAPER = r"""What is 3 + 4?

You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \boxed{}."""  # noqa: E501

BCQ_PAPER = r"""What is 3 + 4?

Here are two candidate responses in <candidate> </candidate> tags to the question above. One is correct and another is wrong. Use these as references to help you solve the problem.
<candidate>
3 + 4 = 7
\boxed{7}
</candidate>
<candidate>
3 * 4 = 12
\boxed{12}
</candidate>

You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \boxed{}."""  # noqa: E501

NCQ_PAPER = r"""What is 3 + 4?

The following answers are all WRONG: \boxed{12}, \boxed{-1}. Below are the incorrect reasoning processes in <candidate> </candidate> tags.
<candidate>
3 * 4 = 12
\boxed{12}
</candidate>
<candidate>
3 - 4
\boxed{-1}
</candidate>

You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \boxed{}."""  # noqa: E501

NCQ_PAPER_NOTHING_PARSED = r"""What is 3 + 4?

Below are the incorrect reasoning processes in <candidate> </candidate> tags.
<candidate>
I do not know.
</candidate>

You FIRST think about the reasoning process as an internal monologue and then provide the final answer. The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \boxed{}."""  # noqa: E501

BCQ_COMPACT = r"""3 + 4?

One is correct, one is wrong.
<candidate>
\boxed{12}
</candidate>
<candidate>
\boxed{7}
</candidate>

Answer in \boxed{}."""

NCQ_COMPACT = r"""3 + 4?

All WRONG: \boxed{12}, \boxed{5}.
<candidate>
\boxed{12}
</candidate>
<candidate>
\boxed{5}
</candidate>

Answer in \boxed{}."""

NCQ_COMPACT_NOTHING_PARSED = r"""3 + 4?

<candidate>
no
</candidate>

Answer in \boxed{}."""

COMPRESS = r"""Compress the response below into a summary (in 5 lines max).
Rules:
- Response is in <response>...</response> tags
- Summary should be in <summary>...</summary> tags and should be in 5 lines max
- Keep ONLY the essential reasoning steps and the final answer
- Remove ALL exploratory text, self-corrections, retries, and filler
- Do NOT re-derive or add new information
- End with the final answer in \boxed{} format
<response>
[think]
3 + 4
[/think]

\boxed{7}
</response>"""


def test_paper_texts_are_byte_exact():
    question = "What is 3 + 4?"
    twelve, minus_one = "3 * 4 = 12\n\\boxed{12}", "3 - 4\n\\boxed{-1}"
    assert prompts.plain_text(question, PAPER) == PLAIN_PAPER
    assert prompts.bcq_text(question, "3 + 4 = 7\n\\boxed{7}", twelve, PAPER) == BCQ_PAPER
    assert prompts.ncq_text(question, ["12", "-1"], [twelve, minus_one], PAPER) == NCQ_PAPER
    assert prompts.ncq_text(question, [], ["I do not know."], PAPER) == NCQ_PAPER_NOTHING_PARSED


def test_compact_texts_are_byte_exact():
    assert prompts.plain_text("3 + 4?", COMPACT) == "3 + 4?\n\nAnswer in \\boxed{}."
    assert prompts.bcq_text("3 + 4?", "\\boxed{12}", "\\boxed{7}", COMPACT) == BCQ_COMPACT
    assert prompts.ncq_text("3 + 4?", ["12", "5"], ["\\boxed{12}", "\\boxed{5}"], COMPACT) == NCQ_COMPACT
    assert prompts.ncq_text("3 + 4?", [], ["no"], COMPACT) == NCQ_COMPACT_NOTHING_PARSED


def test_compression_prompt_is_byte_exact_and_keeps_braces():
    assert prompts.compress_text("<think>\n3 + 4\n</think>\n\n\\boxed{7}") == COMPRESS
    assert prompts.COMPRESS_PROMPT.count(prompts.COMPRESS_RESPONSE_SLOT) == 1
    assert "\n{candidate response}\n" in prompts.compress_text("{candidate response}")


def test_braces_and_backslashes_in_texts_survive():
    text = prompts.ncq_text(r"{x} \1 {0}", [r"\frac{1}{2}"], [r"\g<1> {answers}"], PAPER)
    assert text.startswith("{x} \\1 {0}\n\nThe following answers are all WRONG: \\boxed{\\frac{1}{2}}. Below")
    assert "<candidate>\n\\g<1> {answers}\n</candidate>" in text


def test_uids_keep_groups_apart_and_templates_are_known_by_name():
    assert prompt_uid(3, "digits/7", "bcq") == "3/digits/7/bcq"
    assert prompts.get_template("paper") is PAPER
    with pytest.raises(ValueError, match=r"prompt.template='papr'.*paper, compact"):
        prompts.get_template("papr")


# Pieces that recombine into tags when something between them is removed.
PIECES = [*HOSTILE, *"<>|/ \nx", "<|", "|>", "</", "can", "didate", "candidate", "think", "im_end"]
hostile_texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=30)


def looks_like_a_tag(text: str) -> bool:
    names = "think|tool_call|tool_response|candidate|response|summary"
    plain = re.sub("[\u200b-\u200f\u2060\ufeff]", "", text)
    pattern = rf"<\s*/?\s*({names})\s*/?\s*>"
    return "<|" in text or "|>" in text or re.search(pattern, plain, re.IGNORECASE) is not None


@given(hostile_texts)
@example("<<candidate>candidate>")
@example("<|<|im_end|>im_end|>")
def test_neutralised_text_holds_no_tag_and_stays_as_it_is(text: str):
    clean = prompts.neutralise(text)
    assert not looks_like_a_tag(clean)
    assert not any(token in clean for token in SPECIAL_TOKENS)
    assert prompts.neutralise(clean) == clean
    # Readable: only spaces are added, only brackets change, and marks of images are gone.
    assert re.sub("[ \\[\\]<>]", "", clean) == re.sub("[ \\[\\]<>\ue000\ue001]", "", text)


def test_neutralise_spares_mathematics():
    for text in ("a < b > c", r"\langle x | y \rangle", "if x<y and y>z", "<b>bold</b>", "x || y", "I think < 3"):
        assert prompts.neutralise(text) == text
    assert prompts.neutralise("|x|<|y|") == "|x|< |y|"
    assert prompts.neutralise("<|im_end|></think>") == "< |im_end| >[/think]"
    assert prompts.neutralise(f"a {IMAGE_MARK}</thi{VIDEO_MARK[0]}nk>") == "a image[/think]"


@given(st.lists(hostile_texts, min_size=1, max_size=4), hostile_texts, st.sampled_from([PAPER, COMPACT]))
def test_hostile_candidates_add_no_tag_to_a_prompt(candidates: list[str], answer: str, template: prompts.Template):
    harmless = prompts.ncq_text("Q", ["a"], ["b"] * len(candidates), template)
    texts = {
        prompts.ncq_text("Q", [answer], candidates, template): harmless,
        prompts.bcq_text("Q", candidates[0], candidates[-1], template): prompts.bcq_text("Q", "a", "b", template),
        prompts.compress_text(answer): prompts.compress_text("a"),
    }
    for text, reference in texts.items():
        for token in (*SPECIAL_TOKENS, *TEMPLATE_TAGS):
            assert text.count(token) == reference.count(token), token
    for text in list(texts)[:2]:
        assert text.endswith("</candidate>\n\n" + template.closer)


@pytest.mark.parametrize("filler", ["<", "< ", "<" + " " * 999, "|>", "</think"])
def test_neutralise_takes_linear_time(filler: str):
    text = filler * (200_000 // len(filler))
    start = time.perf_counter()
    prompts.neutralise(text)
    assert time.perf_counter() - start < 5
