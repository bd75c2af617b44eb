r"""Gold answers as upstream writes them: unwrapped, several alternatives as lists, and the answer type of each.

Vero has a reward type for each row. MMFineReason has none; `decide` reads it off the gold: a letter or an option's text
is multiple_choice, a number, quantity or formula is math, a few words are string, and the rest, sentences, is
free_form, which no rule can score.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from zppo_jax.data.records import canonical_json

_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_THINKING = re.compile(r"^.*</think>", re.IGNORECASE | re.DOTALL)
_FINAL = re.compile(
    r"^(?:so\s*,?\s+|therefore\s*,?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is\s*:?|:)\s*", re.I
)
_BOX = re.compile(r"^\\boxed\s*\{(.*)\}$", re.DOTALL)
_DOLLARS = re.compile(r"^\$([^$]*)\$$|^\\\((.*)\\\)$", re.DOTALL)


def unwrapped(gold: str) -> str:
    r"""The gold without `<answer>` tags, thinking before them, "The answer is", a box or dollars around all of it."""
    if "<answer>" in gold.lower() and (tags := _ANSWER_TAG.findall(gold)):
        gold = tags[-1]
    elif "</think>" in gold.lower():
        gold = _THINKING.sub("", gold)
    gold = gold.strip()
    if said := _FINAL.match(gold):
        gold = gold[said.end() :].strip().removesuffix(".").strip()
    if (box := _BOX.match(gold)) and _balanced(box[1]):
        gold = box[1].strip()
    if dollars := _DOLLARS.match(gold):
        gold = (dollars[1] if dollars[1] is not None else dollars[2]).strip()
    return gold


def _balanced(text: str) -> bool:
    """Whether braces close in order, so that the outer pair of `{text}` belongs together."""
    depth = 0
    for char in re.sub(r"\\.", "", text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0


def tagged(text: str | None) -> str | None:
    """The content of the last `<answer>` tag; None without one."""
    found = _ANSWER_TAG.findall(text or "")
    return found[-1].strip() if found else None


def alternatives(gold: str, max_chars: int) -> str | None:
    """A gold with several alternatives, Python's text of a list, as a JSON list of strings; None if it is none.

    Read as a literal, never evaluated, and only up to `max_chars`. A text that is not a list is a single alternative.
    """
    if len(gold) > max_chars or not gold.startswith("["):
        return None if len(gold) > max_chars else canonical_json([gold])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a text is no concern of ours
            items = ast.literal_eval(gold)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    texts = [_whole(str(item)).strip() for item in items if isinstance(item, str | int | float)]
    kept = [text for text in dict.fromkeys(texts) if text]
    return canonical_json(kept) if kept and len(texts) == len(items) else None


def _whole(text: str) -> str:
    r"""The text with "?" for half surrogate pairs, which a literal can spell ("\ud800") and no file can hold."""
    return text.encode("utf-8", "replace").decode()


# ---------------------------------------------------------------- options

_STYLES = (
    re.compile(r"(?:^|(?<=[\s:,;?.\]]))\(([A-Z])\)\s*"),
    re.compile(r"(?:^|(?<=[\s:,;?.(\[]))([A-Z])\)\s*"),
    re.compile(r"(?:^|(?<=[\s:,;?(\[]))([A-Z])\.(?:\s+|(?=[^\s\w]|\d))"),
    re.compile(r"(?:^|(?<=[\s,;?.\[]))([A-Z]):\s*"),
    re.compile(r"(?:^|(?<=[\s:,;?。？：，；]))([A-Z])[、．]\s*"),
)
_MAX_CHOICES = 26


def choices(question: str) -> tuple[str, ...]:
    """The options that a question spells out, A, B, C, ... in order; empty if it has none.

    The last run of markers of one style that begins with A and has two or more letters without a gap counts. An option
    ends at the next marker; the last one at the end of its line.
    """
    runs = [run for style in _STYLES if (run := _last_run(style, question))]
    if not runs:
        return ()
    run = max(runs, key=len)
    ends = [*(mark.start() for mark in run[1:]), _end_of_last(question, run)]
    texts = [question[mark.end() : end].strip(" \t\r\n,;") for mark, end in zip(run, ends, strict=True)]
    return tuple(texts) if all(texts) else ()


def first_choice(question: str) -> int:
    """The place at which the options begin; the length of the question if it has none."""
    starts = [run[0].start() for style in _STYLES if (run := _last_run(style, question))]
    return min(starts) if starts and choices(question) else len(question)


def _last_run(style: re.Pattern[str], question: str) -> list[re.Match[str]]:
    best: list[re.Match[str]] = []
    run: list[re.Match[str]] = []
    for mark in style.finditer(question):
        expected = chr(ord("A") + len(run))
        if mark[1] == "A":
            run = [mark]
        elif run and mark[1] == expected and len(run) < _MAX_CHOICES:
            run.append(mark)
        best = list(run) if len(run) > 1 else best
    return best


def _end_of_last(question: str, run: Sequence[re.Match[str]]) -> int:
    end = question.find("\n", run[-1].end())
    return len(question) if end < 0 else end


# ---------------------------------------------------------------- the type of a gold without one

_LETTER = re.compile(r"^[(\[]?([A-Z])[)\].:]*$")
_LETTER_AND_TEXT = re.compile(r"^[(\[]?([A-Z])[)\]]?\s*[.:)]\s*(\S.*)$", re.DOTALL)
_LETTERS_ALONE = "ABCDEFGHIJ"
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "exp",
     "lim", "sqrt", "min", "max", "gcd", "lcm", "mod", "det", "and")
)  # fmt: skip
_MATH = re.compile(r"[0-9=<>^_+*/\\|]|[α-ωΑ-Ωπ√∞≤≥°]")
_SENTENCE = re.compile(r"[.?!;:。]\s|[.?!。]$|[,、]\s*(?:and|or|but|so|because|which)\s")
_CJK = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]")
_MAX_STRING_WORDS = 5
_MAX_STRING_CHARS = 48
_MAX_UNIT_WORDS = 2


def decide(gold: str, options: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """The answer type of a gold: (gold, type, the scorer's options). `options` are those of the question.

    A gold "B. its text" becomes "B".
    """
    letter = _LETTER.match(gold)
    if letter and (options or letter[1] in _LETTERS_ALONE):
        return letter[1], "multiple_choice", {"choices": list(options)} if options else {}
    if options and _is_letter_set(gold, len(options)):
        return gold, "multiple_choice", {}
    if options and (named := _named(gold, options)):
        return named, "multiple_choice", {"choices": list(options)}
    bare = _TEXT_COMMAND.sub(r" \1 ", gold)
    words = [word for word in _WORD.findall(_COMMAND.sub(" ", bare)) if word.casefold() not in _FUNCTIONS]
    is_text = gold.casefold() == "no" or bool(_CJK.search(gold))
    if (not words and not is_text) or (_MATH.search(gold) and len(words) <= _MAX_UNIT_WORDS):
        return gold, "math", {}
    few = len(bare.split()) <= _MAX_STRING_WORDS and len(gold) <= _MAX_STRING_CHARS
    if few and not _SENTENCE.search(gold) and not re.search(r"[=<>^\\]", gold):
        return gold, "string", {}
    return gold, "free_form", {}


def _is_letter_set(gold: str, count: int) -> bool:
    """Whether a gold names several of `count` options: "A, C", or capitals in order, "ACD"."""
    letters = re.sub(r"\s*(?:[,;、&]|\band\b)\s*", "", gold)
    known = all(letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count] for letter in letters)
    return len(letters) > 1 and known and (letters != gold or list(letters) == sorted(set(letters)))


def _named(gold: str, options: Sequence[str]) -> str:
    """The letter of the one option that a gold names by its text, or by letter and text; "" if it names none."""
    both = _LETTER_AND_TEXT.match(gold)
    places = [place for place, option in enumerate(options) if _same(option, both[2] if both else gold)]
    if len(places) != 1 or (both and _letter(places[0]) != both[1]):
        return ""
    return _letter(places[0])


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _same(one: str, other: str) -> bool:
    return " ".join(one.casefold().split()).strip(" .") == " ".join(other.casefold().split()).strip(" .")
