from __future__ import annotations

import pytest

from zppo_jax.processor.chat import default_chat_template, render, render_user_turn
from zppo_jax.processor.templates import ChatTemplateError
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK

TEMPLATE = default_chat_template()
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SLOT = "\ue000text 0\ue001"
QUERY = {"role": "user", "content": " Why? \n"}


@pytest.mark.parametrize(("thinking", "end"), [(True, "<think>\n"), (False, "<think>\n\n</think>\n\n")])
def test_generation_prompt(thinking, end):
    rendered = render(TEMPLATE, [QUERY], enable_thinking=thinking)
    assert rendered == f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{end}"


def test_system_message_and_parts():
    parts = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": " a"}, {"type": "text", "text": "b "}]
    messages = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": parts}]
    video = IMAGE.replace("image", "video")
    assert render(TEMPLATE, messages, enable_thinking=True, add_generation_prompt=False) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{IMAGE}{video} ab<|im_end|>\n"
    )


def test_reasoning_stays_only_after_the_last_question():
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    before = render(TEMPLATE, [QUERY, answer, QUERY], enable_thinking=True, add_generation_prompt=False)
    assert "hm" not in before and "<|im_start|>assistant\nYes.<|im_end|>\n" in before
    after = render(TEMPLATE, [QUERY, answer], enable_thinking=True, add_generation_prompt=False)
    assert after.endswith("<|im_start|>assistant\n<think>\nhm\n</think>\n\nYes.<|im_end|>\n")


def test_reasoning_as_a_field_or_absent():
    given = {"role": "assistant", "content": "Yes.", "reasoning_content": " hm "}
    assert "<think>\nhm\n</think>\n\nYes." in render(TEMPLATE, [QUERY, given], enable_thinking=True)
    absent = {"role": "assistant", "content": "Yes."}
    assert "<think>\n\n</think>\n\nYes." in render(TEMPLATE, [QUERY, absent], enable_thinking=True)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [QUERY, {"role": "system", "content": "a"}],
        [QUERY, {"role": "tool", "content": "a"}],
        [{"role": "system", "content": [{"type": "image"}]}, QUERY],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [{"role": "user", "content": 3}],
    ],
)
def test_unfit_messages_are_refused(messages):
    with pytest.raises(ChatTemplateError, match=r"the chat template refuses the messages: ."):
        render(TEMPLATE, messages, enable_thinking=True)


@pytest.mark.parametrize(
    "text", ["a", " a \n", "", " \n", "<|im_end|>", SLOT, "x" + SLOT * 2, "aa a", "{{ 1 }}", IMAGE_MARK]
)
@pytest.mark.parametrize("num_images", [0, 2])
def test_user_turn_equals_the_plain_rendering(text, num_images):
    turn = render_user_turn(TEMPLATE, text, num_images, enable_thinking=True)
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    assert turn.full_text == render(TEMPLATE, [{"role": "user", "content": content}], enable_thinking=True)
    assert turn.rendered.count("<|im_end|>") == 1


def test_images_and_videos_stand_at_their_marks():
    text = f"Is {IMAGE_MARK} in {VIDEO_MARK}\nor {IMAGE_MARK}"
    turn = render_user_turn(TEMPLATE, text, 2, 1, enable_thinking=True)
    assert turn.kinds == ("image", "video", "image")
    assert f"user\nIs {IMAGE} in {IMAGE.replace('image', 'video')}\nor {IMAGE}<|im_end|>" in turn.full_text
    other = render_user_turn(TEMPLATE, text, 1, 1, enable_thinking=True)  # marks that do not fit are text
    assert other.kinds == ("image", "video") and text in other.full_text


def test_a_template_that_drops_the_text_is_refused():
    with pytest.raises(ValueError, match="0 times"):
        render_user_turn("{{ messages[0].role }}", "a", 0, enable_thinking=True)


def test_a_template_cannot_reach_python():
    with pytest.raises(ChatTemplateError, match="'__class__' of 'list' object is unsafe"):
        render("{{ messages.__class__.__mro__[1].__subclasses__() }}", [QUERY], enable_thinking=True)
