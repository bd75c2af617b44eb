r"""Multiple choice: which of the options A, B, ... an answer names, by letter, by text or by both."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from zppo_jax.rewards import latex, text
from zppo_jax.rewards.verdict import MalformedAnswer

Same = Callable[[str, str], bool]
"""Whether two option texts mean the same."""

_WRAPPERS = '{(["'
_PREFIX = re.compile(
    r"^(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:(?:the\s+)?(?:correct\s+|final\s+|best\s+)?(?:answer|option|choice)\s*"
    r"(?:is|[:=])|(?:正确|最终)?答案(?:[是为:]|应?选)|it\s+is\b|(?:i\s+)?(?:choose|select|pick)\b)\s*[:=]?\s*|"
    r"^(?:(?:the\s+)?(?:correct\s+|final\s+)?(?:answer|option|choice)s?|选项|选择|答案|选)\s*"
    r"(?=[(\[{]?[a-z][)\]}]?(?:$|[.,:)\]}\s]))",
    re.I,
)
_SUFFIX = re.compile(
    r"\s+is\s+(?:the\s+)?(?:correct|right)(?:\s+(?:answer|option|choice|one))?\.?$|(?<=[A-Za-z])\s*选?项$", re.I
)
_LETTER = re.compile(r"^[(\[<【]?([a-z])[)\]>】]?\s*[.:)]?$", re.I)
_LETTER_THEN_TEXT = re.compile(
    r"^(?:[(\[]([a-z])[)\]][.:]?\s*|([a-z])\s*[.:)]\s*|([a-z])\s*(?=\())(?=\S)(.*)$", re.I | re.DOTALL
)
# Only an option's own text may follow these: "A cat" and "A, B" name no option.
_LETTER_AND_OPTION = re.compile(r"^([a-z])(?:\s*[-,=/]\s*|\s+)(?=\S)(.*)$", re.I | re.DOTALL)
_BETWEEN_LETTERS = re.compile(r"[\s,;、/&.()\[\]{}\"']+|\band\b|和", re.I)
_SEVERAL_LETTERS = re.compile(r"^[a-z](?:\s*(?:,|;|、|(?:,\s*)?and|&)\s*[a-z])+$|^[a-z]{2,}$", re.I)


def choices_match(gold: str, answer: str, choices: Sequence[str] = (), same: Same = text.strings_match) -> bool:
    r"""Whether the answer names the gold choice: b, (B), \text{B}, "B.", "B: its text", or the choice's text.

    `choices` are the texts of A, B, ... in order, compared by `same`. A gold of several letters ("ACD", "A, C")
    requires exactly that set. Without `choices`, a gold that is not a letter is compared as a string.

    Raises:
      MalformedAnswer: the answer names no choice ("A cat", "A or B"), or the gold is not among `choices`.
    """
    gold, answer = _clean(gold), _clean(answer)
    gold_letter = _letter(gold, choices, same)
    if not gold_letter and _is_letter_set(gold):
        return _letter_set(answer) == _letter_set(gold)
    if not gold_letter and choices:
        raise MalformedAnswer("the gold is not among the choices")
    if not gold_letter:
        return text.strings_match(gold, answer)
    answer_letter = _letter(answer, choices, same)
    if not answer_letter:
        raise MalformedAnswer("the answer names no choice")
    return answer_letter == gold_letter


def _clean(source: str) -> str:
    source = unicodedata.normalize("NFKC", source.strip()).replace("。", ".")
    source = text.LATEX_ESCAPE.sub(r"\1", text.unwrap_text(latex.peel(source, _WRAPPERS)))
    source = " ".join(source.replace("**", "").translate(text.TYPEWRITER).split())
    source = _SUFFIX.sub("", _PREFIX.sub("", source))
    return latex.peel(source, _WRAPPERS)


def _letter(answer: str, choices: Sequence[str], same: Same) -> str:
    """The upper-case letter of the choice that a text names; "" if it names none.

    A letter that belongs to no choice may be a choice's text. "B: Paris" where Paris is not choice B contradicts
    itself: it counts for neither.
    """
    if (one := _LETTER.match(answer)) and (not choices or _place(one[1]) < len(choices)):
        return one[1].upper()
    named = [place for place, choice in enumerate(choices) if same(choice, answer)]
    if len(named) == 1:
        return chr(ord("A") + named[0])
    if both := _LETTER_THEN_TEXT.match(answer):
        letter, rest = both[1] or both[2] or both[3], both[4]
        return letter.upper() if not choices or _is_text_of(letter, rest, choices, same) else ""
    both = _LETTER_AND_OPTION.match(answer) if choices else None
    return both[1].upper() if both and _is_text_of(both[1], both[2], choices, same) else ""


def _place(letter: str) -> int:
    return ord(letter.upper()) - ord("A")


def _is_text_of(letter: str, rest: str, choices: Sequence[str], same: Same) -> bool:
    rest = latex.peel(rest, _WRAPPERS)
    return _place(letter) < len(choices) and same(choices[_place(letter)], rest)


def _is_letter_set(gold: str) -> bool:
    """Whether a gold lists letters. Written without separators they must be capitals in order ("ACD", not "CAT")."""
    if not _SEVERAL_LETTERS.match(gold):
        return False
    return not gold.isalpha() or (gold.isupper() and list(gold) == sorted(set(gold)))


def _letter_set(source: str) -> frozenset[str]:
    """The letters that an answer lists, however it separates them."""
    if _LETTER.match(source) or _SEVERAL_LETTERS.match(source):
        return frozenset(re.sub(r"[^A-Z]", "", source.upper().replace("AND", "")))
    letters = [part.upper() for part in _BETWEEN_LETTERS.split(source) if part]
    if not letters or not all(len(letter) == 1 and "A" <= letter <= "Z" for letter in letters):
        raise MalformedAnswer("the answer names no set of choices")
    return frozenset(letters)
