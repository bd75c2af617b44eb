r"""LaTeX that means the same, written the same way: spacing, sizes, brackets, thousands, names, wrappers.

Nothing here changes a value. All patterns are linear: no nested quantifiers over the same characters.
"""

from __future__ import annotations

import re

from zppo_jax.rewards import text

_SIZE = re.compile(
    r"\\(?:left|right|middle|displaystyle|textstyle|limits|nolimits|[bB]igg?[lrm]?|"
    r"bf|it|rm|bfseries|small|normalsize|[lL]arge|LARGE|[hH]uge|therefore)(?![A-Za-z])|\\(?:color)\s*\{[^{}]*\}"
)
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}\s*(?=\{)")
_BRACKET = {
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lparen": "(", r"\rparen": ")",
    r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|",
    r"\langle": "(", r"\rangle": ")",
}  # fmt: skip
_BRACKET_NAME = re.compile(r"\\(?:[lr](?:brace|brack|paren|vert|angle)|vert|mid)(?![A-Za-z])")
_OUTWARD = re.compile(r"^([\](])([^\[\]()]*,[^\[\]()]*)([\[)\]])$")
_BRACED_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")
_THIN = r"(?:\\[,!:; ]|~)"
_THOUSANDS = re.compile(rf"(?<=[0-9])(?:,?\\!\s*|{_THIN}\s*|')(?=[0-9]{{3}}(?![0-9]))")
_ROW_END_OR_SPACE = re.compile(r"(\\\\)(?:\s*\[\s*-?[0-9.]+\s*[a-z]{2}\s*\])?|\\!|\\[,:;> ]|\\q?quad(?![A-Za-z])")
_ROW_END = re.compile(r"\\cr(?![A-Za-z])")
_TABLE = re.compile(r"(\\begin\s*\{array\}\s*\{)([^{}]*)\}|(\\(?:begin|end)\s*\{)[bp]?small(matrix\})|\\hline")
_LAST_ROW_END = re.compile(r"\\\\\s*(?=\\end)")
_SLANTED = re.compile(r"\\([gl]e)qslant(?![A-Za-z])")
_PRIME = re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|\\prime(?![A-Za-z]))")
_FRACTION_KIND = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_INLINE_MATH = re.compile(r"(?<![\\$])\$(?=[^\s$])([^$]*[^\s$\\])\$(?!\$)")
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,20})\.([0-9]{0,20})(?:\\(?:overline|bar|dot)\s*\{\s*([0-9]{1,20})\s*\}"
    r"(?:([0-9]{0,20})\\dot\s*\{\s*([0-9])\s*\})?|\(([0-9]{1,20})\))(?![0-9])"
)
_DOTS = r"(?:\.{3,}|\\(?:[lc]?dots)(?![A-Za-z]))"
_GOES_ON = re.compile(rf"(?<![0-9.])([0-9]{{1,20}})\.([0-9]{{0,20}}?)([0-9]{{1,6}}?)\3{{2,20}}\s*{_DOTS}$")
_GOES_ON_ANYHOW = re.compile(rf"^(-?\s*[0-9]{{1,20}}\.[0-9]{{5,20}})\s*{_DOTS}$")
_MARKDOWN = re.compile(r"^(\*\*\*|\*\*|\*|__|```|`)\s*(?=\S)(.*\S)\s*\1$", re.DOTALL)
_WHOLE_TEXT = re.compile(rf"^{text.TEXT_COMMANDS}\s*\{{([^{{}}]*)\}}$")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」", "『": "』"}
_INFIX = re.compile(r"\\(?:choose|over|atop|brace|brack)(?![A-Za-z])")
_FIRST_OF_WRAPPERS = frozenset("*_`$\\{([") | _QUOTES.keys()
_MAX_WRAPPERS = 8
MAX_DIGITS = 64
"""The longest run of digits that is compared."""
_RELATION = r"(?:=|\\(?:approx|sim|in)(?![A-Za-z]))"
_NO_NAMES = (
    r"(?!\\(?:d?frac|sqrt|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|pm|mp|int|sum|prod|lim|left|infty|pi)(?![A-Za-z]))"
)
_INDEX = r"(?:_(?:\{[^{}=]{1,20}\}|\w))?"
_VECTOR = r"\\(?:vec|overline|overrightarrow|mathbf|hat)\s*\{\s*[A-Za-z]{1,3}\s*\}"
_NAMED = re.compile(
    rf"""^(?P<name>
        (?:m\s*)?\\(?:measured)?(?:angle|triangle)\s*[A-Za-z]{{1,4}}
        |\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|operatorname)\s*\{{[^{{}}]*\}}{_INDEX}(?:\([^()=]{{0,30}}\))?
        |\\frac\s*\{{\s*\\?(?:mathrm|partial)?\s*d?[^{{}}=+*/-]{{0,10}}\}}\{{\s*\\?(?:mathrm|partial)?\s*d[^{{}}=+*/-]{{1,10}}\}}
        |\|?(?:\\(?:overline|vec|hat|bar|widehat)\s*)?\{{?[A-Za-z]{{1,3}}\}}?\|?(?:'{{1,3}}|\^\{{-1\}})?{_INDEX}(?:\([^()=]{{0,30}}\))?
        |\|?{_VECTOR}(?:\s*(?:\\cdot|\\times|[-+])\s*[0-9]?{_VECTOR})*\|?
        |P\s*\([^()]{{1,30}}\)|\\sigma\s*\^\{{?2\}}?
        |[A-Z](?:\s*\\(?:cap|cup|setminus)\s*[A-Z])+
        |[A-Za-z]{{1,3}}(?:\s*:\s*[A-Za-z]{{1,3}})+
        |{_NO_NAMES}\\[A-Za-z]+{_INDEX}(?:\([^()=]{{0,30}}\))?
        |[A-Za-z][A-Za-z ]{{2,40}}
    )\s*{_RELATION}\s*(?P<value>[^=<>]+)$""",
    re.VERBOSE,
)
_INTRODUCTION = re.compile(
    r"^(?:\\text\s*\{\s*)?(?:(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:correct\s+|final\s+)?"
    r"(?:answer|solution|result)\s*(?:is|:|=)|(?:正确|最终)?答案\s*[是为:]|(?:is\s+)?(?:about|approximately|approx\.?|roughly)\b|大?约)"
    r"\s*:?\s*(?:\}\s*)?(?=\S)",
    re.I,
)
_LABELLED = re.compile(
    r"^(?:\\text\s*\{\s*)?(?P<name>[A-Za-z][A-Za-z ]{2,40}?)\s*:\s*(?:\}\s*)?(?P<value>[-+$\\0-9][^:]*)$"
)
_MINUS = re.compile(r"^(?:minus|negative|负)\s*(?=[0-9\\($])", re.I)
_LEADING_RELATION = re.compile(rf"^{_RELATION}\s*(?=\S)")


def _row_end_or_space(match: re.Match[str]) -> str:
    if match[1]:
        return r"\\ "
    return "" if match[0] == r"\!" else " "


def _table(match: re.Match[str]) -> str:
    """An array without rules between its columns, and a small matrix as any other."""
    if match[1]:
        columns = re.sub(r"[^lcr]", "", match[2])
        return f"{match[1]}{columns}}}"
    return f"{match[3]}{match[4]}" if match[3] else ""


def _repeating(match: re.Match[str]) -> str:
    r"""0.1\overline{6} and 0.1(6) as a fraction: (16 - 1) / 90."""
    repeated = match[3] + (match[4] or "") + (match[5] or "") if match[3] else match[6]
    return _endless(match[1], match[2], repeated)


def _endless(whole: str, fixed: str, repeated: str) -> str:
    top = int((whole or "0") + fixed + repeated) - int((whole or "0") + fixed)
    return rf"\frac{{{top}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def clean(latex: str) -> str:
    r"""Drops LaTeX for size, colour and spacing, and writes brackets, thousands and fractions in one way.

    A row end (`\\`, also `\\[4pt]`) stays one: `\\ ` is a row end before a space, not a backslash and a thin space.
    """
    if latex.count("$") > 1:
        latex = _INLINE_MATH.sub(r"\1", latex)
    if "\\" in latex or "{,}" in latex or "'" in latex or "~" in latex:
        latex = _COLOURED.sub("", _SIZE.sub("", latex))
        latex = _BRACKET_NAME.sub(lambda match: _BRACKET[match[0]], latex)
        latex = _THOUSANDS.sub("", _BRACED_COMMA.sub(",", latex))
        latex = _TABLE.sub(_table, _ROW_END.sub(r"\\\\", latex)) if r"\begin" in latex else latex
        latex = _SLANTED.sub(r"\\\1", latex)
        latex = _PRIME.sub(lambda match: "'" * max(1, (match[1] or "").count("p")), latex)
        latex = _LAST_ROW_END.sub("", latex)
        latex = _FRACTION_KIND.sub(r"\\frac", _ROW_END_OR_SPACE.sub(_row_end_or_space, latex))
    latex = latex.replace("{:}", ":")
    if "." in latex:
        latex = _GOES_ON.sub(lambda match: _endless(match[1], match[2], match[3]), _REPEATING.sub(_repeating, latex))
        latex = _GOES_ON_ANYHOW.sub(r"\1", latex)
    return latex.replace("~", " ").strip()


def bare(latex: str) -> str:
    """An expression without sizes, spacing commands and fences, by plain replacements: for texts of any length."""
    for sign in (r"\left", r"\right", r"\,", r"\!", r"\;", r"\:", r"\ ", "$"):
        latex = latex.replace(sign, "")
    return latex.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def inward(latex: str) -> str:
    """An interval with brackets turned outwards, ]1,2], as (1,2]; anything else as it is."""
    match = _OUTWARD.match(latex) if latex[:1] == "]" or latex[-1:] == "[" else None
    return f"{match[1].replace(']', '(')}{match[2]}{match[3].replace('[', ')')}" if match else latex


def encloses(source: str, opening: str, closing: str) -> bool:
    """Whether the first and the last character are a pair of brackets around everything between them."""
    if len(source) < 2 or source[0] != opening or source[-1] != closing:
        return False
    depth = 0
    for place, char in enumerate(source):
        depth += (char == opening) - (char == closing)
        if depth == 0:
            return place == len(source) - 1
    return False


def peel(source: str, brackets: str = "{") -> str:
    r"""Removes what is wrapped around a whole answer: math fences, emphasis, code marks, \text{}, and `brackets`.

    `brackets` are the opening brackets that mean nothing for the answer's type; quotes count if '"' is among them.
    """
    if source.strip()[:1] not in _FIRST_OF_WRAPPERS:
        return source.strip()
    for _ in range(_MAX_WRAPPERS):
        inner = _peeled(source.strip(), brackets)
        if inner == source:
            break
        source = inner
    return source


def _peeled(source: str, brackets: str) -> str:
    if (emphasised := _MARKDOWN.match(source)) and emphasised[1][0] not in emphasised[2]:
        return emphasised[2]
    if whole := _WHOLE_TEXT.match(source):
        return whole[1]
    for opening, closing in (("{", "}"), ("(", ")"), ("[", "]")):
        if opening in brackets and encloses(source, opening, closing) and not _INFIX.search(source):
            return source[1:-1]
    if '"' in brackets and len(source) > 2 and _QUOTES.get(source[0]) == source[-1]:
        return source[1:-1]
    return text.unfence(source)


def split_name(latex: str) -> tuple[str, str]:
    r"""Splits `x = 5`, `f(2) = 5`, `\angle ABC = 30` or `\text{Area} = 6` into the name and the value.

    The name is "" if there is none. `\approx` and a relation without a left side count as well.
    """
    first = latex[:1]
    if first.isdigit() and "=" not in latex:
        return "", latex
    if first == "=" or first == "\\" or first.isalpha():
        latex = _LEADING_RELATION.sub("", _INTRODUCTION.sub("", latex))
        latex = _MINUS.sub("-", latex)
    named = _NAMED.match(latex) if "=" in latex or "\\" in latex else None
    named = named or (_LABELLED.match(latex) if ":" in latex else None)
    return (named["name"].strip(), named["value"].strip()) if named else ("", latex)
