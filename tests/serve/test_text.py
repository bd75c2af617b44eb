"""Text while tokens arrive: whole characters, no part of a stop string, the same in any chunks."""

from __future__ import annotations

import functools

from hypothesis import given
from hypothesis import strategies as st

from zppo_jax.generate.text import ResponseText, whole
from zppo_jax.warmstart import tiny

processor = functools.cache(tiny.processor)

pieces_of_text = st.lists(st.sampled_from(["ab", "abc", "b", " ", "é", "😀", "漢字", "\n\n", "x"]), max_size=12)
stops = st.lists(st.sampled_from(["abc", "bab", "字x", "\n\n", "😀é", "ababx"]), max_size=3, unique=True)


def streamed(ids: list[int], chunk: int, stops: list[str]) -> tuple[list[str], list[bytes]]:
    text, tokens = ResponseText(processor(), stops), []
    given = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        piece = text.add(part, [-0.5] * len(part))
        given.append(piece.text)
        tokens += piece.tokens
    piece = text.finish()
    return [*given, piece.text], [token.content for token in [*tokens, *piece.tokens]]


def cut(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    first = min(ends, default=(0, len(text)))[0]
    return text[: min((start for end, start in ends if end == first), default=len(text))]


@given(pieces_of_text, stops, st.integers(1, 7))
def test_streams_are_the_text_up_to_the_first_stop(words, stops, chunk):
    said = "".join(words)
    ids = processor().encode_text(said)
    given, tokens = streamed(ids, chunk, stops)
    text = processor().decode(ids)
    assert "".join(given) == cut(text, stops) == whole(processor(), ids, [0.0] * len(ids), stops)
    assert b"".join(tokens).decode(errors="replace").startswith("".join(given))
    assert not any("\ufffd" in part for part in given)


def test_a_half_character_waits_and_a_broken_one_is_replaced():
    text = ResponseText(processor())
    first, *rest = processor().encode_text("😀")
    assert text.add([first], [0.0]).text == ""
    assert text.add(rest, [0.0] * len(rest)).text == "😀"
    assert text.add([first], [0.0]).text == "" and text.finish().text == "\ufffd"


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not():
    text = ResponseText(processor(), ["abc"])
    ids = [processor().encode_text(letter)[0] for letter in "xababc"]
    assert [text.add([token], [0.0]).text for token in ids] == ["x", "", "", "ab", "", ""]
    assert text.stopped and text.finish().text == ""
    unfinished = ResponseText(processor(), ["abc"])
    assert unfinished.add(ids[:3], [0.0] * 3).text == "x" and unfinished.finish().text == "ab"


def test_stop_ids_add_no_text_and_no_token():
    ids = [*processor().encode_text("ab"), processor().stop_ids[0]]
    given, tokens = streamed(ids, 1, [])
    assert "".join(given) == "ab" and b"".join(tokens) == b"ab"
