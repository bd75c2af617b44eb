r"""Text answers: cleaning shared by all types, and the rules for strings and ANLS.

Cleaning uses NFKC except where that changes the value: `x²` must not become `x2`, nor `5½` `51/2`.
All patterns are linear: no nested quantifiers over the same characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_SUPERSCRIPT_RUN = re.compile(f"[{_SUPERSCRIPTS}]+")
_SUBSCRIPT_RUN = re.compile(f"[{_SUBSCRIPTS}]+")
_VULGAR_FRACTION = re.compile(r"[¼-¾⅐-⅞↉]")
_SYMBOLS = str.maketrans(
    {
        "−": "-", "‐": "-", "‑": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ",
        "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "°": r"^{\circ}", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "≈": r"\approx ", "≠": r"\ne ", "Ω": r"\Omega ",
        "µ": r"\mu ", "μ": r"\mu ", "△": r"\triangle ", "∠": r"\angle ", "′": "'", "″": "''", "∶": ":",
        "⩽": r"\le ", "⩾": r"\ge ", "≡": r"\equiv ", "∓": r"\mp ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ",
        "φ": r"\phi ", "ω": r"\omega ", "σ": r"\sigma ", "\u200b": "", "\u2060": "", "\ufeff": "",
    }
)  # fmt: skip

_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?)|([^\W\d_])|(?=([({])))")
_DEGREES_OF_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_FENCE = re.compile(r"^(?:\$\$|\$|\\\(|\\\[)\s*(.*?)\s*(?:\$\$|\$|\\\)|\\\])$", re.DOTALL)
TEXT_COMMANDS = (
    r"\\(?:text(?:bf|it|rm|sf|tt|up|normal)?|math(?:rm|bf|sf|it|tt|normal)|mbox|emph|boxed|boldsymbol|bm|pmb|"
    r"operatorname\*?|underline|uline|ce)"
)
"""Commands whose argument is shown as it is."""
_TEXT_COMMAND = re.compile(rf"{TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}")
TYPEWRITER = str.maketrans(dict.fromkeys("‘’‚‛′", "'") | dict.fromkeys("“”„‟″", '"') | dict.fromkeys("‐‑‒–—―−", "-"))
_QUOTED = re.compile(r"^(\"|'|`|\*\*)(?=\S)(.+)\1$", re.DOTALL)
LATEX_ESCAPE = re.compile(r"\\([%$#&_ ])")
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
        return text.strip() if not text.endswith(" ") else text.strip().removesuffix("\\")
    text = roots(text)
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{_flat(run)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{_flat(run)}}}", text)
    text = _VULGAR_FRACTION.sub(_vulgar_to_latex, text)
    return unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS).strip()


def roots(source: str) -> str:
    r"""Writes the root signs √, ∛ and ∜ as \sqrt: of the whole number, the letter or the bracket that follows."""
    if not any(sign in source for sign in _DEGREES_OF_ROOTS):
        return source

    def root(match: re.Match[str]) -> str:
        radicand = match[2] or match[3]
        return rf"\sqrt{_DEGREES_OF_ROOTS[match[1]]}" + (f"{{{radicand}}}" if radicand else "")

    parts, end = [], 0
    for match in _ROOT.finditer(source):
        parts.append(source[end : match.start()] + root(match))
        end = match.end()
        if match[4] == "(":
            close = _closing(source, end)
            parts.append(f"{{{source[end:close]}}}" if close else "")
            end = close or end
    return "".join(parts) + source[end:]


def _closing(source: str, start: int) -> int:
    """The position behind the bracket that closes the one at `start`; 0 if none does, or another root is inside."""
    depth = 0
    for place in range(start, len(source)):
        depth += (source[place] == "(") - (source[place] == ")")
        if source[place] in _DEGREES_OF_ROOTS:
            return 0
        if depth == 0:
            return place + 1
    return 0


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
    r"""The form in which two text answers are compared: NFKC, casefold, one space, no final period, no \text{}, and
    quotes and dashes as on a typewriter."""
    text = unfence(text.strip())
    text = text if text.isascii() else _SUPERSCRIPT_RUN.sub(lambda run: f"^{_flat(run)}", text)
    text = unicodedata.normalize("NFKC", text).translate(TYPEWRITER)
    text = LATEX_ESCAPE.sub(r"\1", unwrap_text(text)).replace("~", " ").strip()
    text = quoted[2] if (quoted := _QUOTED.match(text)) and quoted[1] not in quoted[2] else text
    text = " ".join(text.casefold().split())
    return text.removesuffix(".").rstrip()


def strings_match(gold: str, answer: str) -> bool:
    """Whether both are equal as strings, after `string_key`. A gold that is only a period keeps it."""
    return (string_key(gold) or gold.strip()) == (string_key(answer) or answer.strip())


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
