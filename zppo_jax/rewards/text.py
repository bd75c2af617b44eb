r"""Text answers: cleaning shared by all types, and the rules for strings, multiple choice and ANLS.

Cleaning uses NFKC except where that changes the value: `x²` must not become `x2`, nor `5½` `51/2`.
All patterns are linear: no nested quantifiers over the same characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from zppo_jax.rewards.verdict import MalformedAnswer

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_SUPERSCRIPT_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_SUBSCRIPT_RUN = re.compile(f"[{_SUBSCRIPTS}]+")
_VULGAR_FRACTION = re.compile(r"[¼-¾⅐-⅞↉]")
_SYMBOLS = str.maketrans(
    {
        "−": "-", "‐": "-", "‑": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "°": r"^{\circ}", "√": r"\sqrt ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "\u200b": "", "\u2060": "", "\ufeff": "",
    }
)  # fmt: skip

_FENCE = re.compile(r"^(?:\$\$|\$|\\\(|\\\[)\s*(.*?)\s*(?:\$\$|\$|\\\)|\\\])$", re.DOTALL)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathsf|mbox|emph|boxed)\s*\{([^{}]*)\}"
)
_LATEX_ESCAPE = re.compile(r"\\([%$#&_ ])")
_MAX_UNWRAPS = 8
_ANLS_MAX_CHARS = 256


def _flat(run: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", run.group()).replace("−", "-")


def _vulgar_to_latex(char: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", char.group()).partition("⁄")
    return rf" \frac{{{numerator}}}{{{denominator}}}"


def plain(text: str) -> str:
    """NFKC that keeps the mathematical value: exponents, indices and vulgar fractions become LaTeX."""
    if text.isascii():  # most answers: NFKC and the rest would change nothing
        return text.strip()
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{_flat(run)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{_flat(run)}}}", text)
    text = _VULGAR_FRACTION.sub(_vulgar_to_latex, text)
    return unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS).strip()


def unfence(text: str) -> str:
    """Drop one pair of math delimiters around the whole text: $..$, $$..$$, \\(..\\), \\[..\\]."""
    fenced = _FENCE.match(text)
    inner = fenced.group(1) if fenced else ""
    return inner if fenced and "$" not in inner.replace(r"\$", "") else text


def unwrap_text(text: str) -> str:
    r"""Replace \text{..} and similar commands by their content, innermost first, to a bounded depth."""
    for _ in range(_MAX_UNWRAPS if "\\" in text else 0):
        text, count = _TEXT_COMMAND.subn(r"\1", text)
        if not count:
            break
    return text


def string_key(text: str) -> str:
    r"""The form in which two text answers are compared: NFKC, casefold, one space, no final period, no \text{}."""
    text = unicodedata.normalize("NFKC", unfence(text.strip()))
    text = _LATEX_ESCAPE.sub(r"\1", unwrap_text(text)).replace("~", " ")
    text = " ".join(text.casefold().split())
    return text.removesuffix(".").rstrip()


def strings_match(gold: str, answer: str) -> bool:
    """Whether both are equal as strings, after `string_key`. A gold that is only a period keeps it."""
    return (string_key(gold) or gold.strip()) == (string_key(answer) or answer.strip())


# --- multiple choice ---------------------------------------------------------------------------------------------

_CHOICE_PREFIX = re.compile(
    r"^(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*(?=\(?[a-z]\)?(?:$|[.:)\s]))", re.I
)
_ONE_LETTER = re.compile(r"^\(?([a-z])\)?[.:)]?$", re.I)
_LETTER_AND_TEXT = re.compile(r"^(?:\(([a-z])\)[.:]?\s*|([a-z])\s*[.:)]\s*)(?=\S)(.*)$", re.I | re.DOTALL)
_SEVERAL_LETTERS = re.compile(r"^[a-z](?:\s*(?:,|;|and|&)\s*[a-z])+$|^[a-z]{2,}$", re.I)


def _choice_letter(text: str, choices: Sequence[str]) -> str:
    """The upper-case letter of the choice that a text names; "" if it names none."""
    if one := _ONE_LETTER.match(text):
        letter = one.group(1).upper()
        return letter if not choices or ord(letter) - ord("A") < len(choices) else ""
    named = [chr(ord("A") + i) for i, choice in enumerate(choices) if strings_match(choice, text)]
    if len(named) == 1:
        return named[0]
    if not (both := _LETTER_AND_TEXT.match(text)):
        return ""
    letter = (both.group(1) or both.group(2)).upper()
    place = ord(letter) - ord("A")
    # "B: Paris" where Paris is not choice B contradicts itself: it counts for neither.
    consistent = not choices or (place < len(choices) and strings_match(choices[place], both.group(3)))
    return letter if consistent else ""


def _clean_choice(text: str) -> str:
    text = _LATEX_ESCAPE.sub(r"\1", unwrap_text(unfence(unicodedata.normalize("NFKC", text.strip()))))
    return _CHOICE_PREFIX.sub("", " ".join(text.split()))


def choices_match(gold: str, answer: str, choices: Sequence[str] = ()) -> bool:
    r"""Whether the answer names the gold choice: b, (B), \text{B}, "B.", "B: its text", or the choice's text.

    `choices` are the texts of A, B, ... in order. A gold of several letters ("ACD", "A, C") requires exactly that set.
    Without `choices`, a gold that is not a letter is compared as a string.

    Raises:
      MalformedAnswer: the answer names no choice ("A cat", "A or B"), or the gold is not among `choices`.
    """
    gold, answer = _clean_choice(gold), _clean_choice(answer)
    gold_letter = _choice_letter(gold, choices)
    if not gold_letter and _is_letter_set(gold):
        return _letter_set(answer) == _letter_set(gold)
    if not gold_letter and choices:
        raise MalformedAnswer("the gold is not among the choices")
    if not gold_letter:
        return strings_match(gold, answer)
    answer_letter = _choice_letter(answer, choices)
    if not answer_letter:
        raise MalformedAnswer("the answer names no choice")
    return answer_letter == gold_letter


def _is_letter_set(gold: str) -> bool:
    """Whether a gold lists letters. Written without separators they must be capitals in order ("ACD", not "CAT")."""
    if not _SEVERAL_LETTERS.match(gold):
        return False
    return not gold.isalpha() or (gold.isupper() and list(gold) == sorted(set(gold)))


def _letter_set(text: str) -> frozenset[str]:
    if not (_SEVERAL_LETTERS.match(text) or _ONE_LETTER.match(text)):
        raise MalformedAnswer("the answer names no set of choices")
    return frozenset(re.sub(r"and|[^A-Z]", "", text.upper().replace("AND", "")))


# --- ANLS ----------------------------------------------------------------------------------------------------------


def levenshtein(first: str, second: str) -> int:
    """Edit distance, in O(len(first) * len(second)); callers cap the lengths."""
    row = list(range(len(second) + 1))
    for i, char in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (char != other))
    return row[-1]


def anls(golds: Sequence[str], answer: str) -> float:
    """Average normalised Levenshtein similarity with the best of the golds, in [0, 1] (DocVQA's measure).

    An answer or gold longer than 256 characters only matches exactly, which bounds the time.
    """
    return max((_similarity(string_key(gold), string_key(answer)) for gold in golds), default=0.0)


def _similarity(gold: str, answer: str) -> float:
    if gold == answer:
        return 1.0
    longest = max(len(gold), len(answer))
    return 0.0 if longest > _ANLS_MAX_CHARS else 1.0 - levenshtein(gold, answer) / longest
