r"""Dates and times of day: 2023-05-07, May 7th, 2023, 2023年5月7日, 05/07/2023, 3:00 PM, 15:00, 3 p.m."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_CLOCK = re.compile(r"^([0-9]{1,2})(?::([0-9]{2})(?::([0-9]{2}))?)?\s*(?:([ap])\.?\s*m\.?)?$", re.I)
_DATE = re.compile(r"^([0-9]{1,4})\s*([-/.])\s*([0-9]{1,2})\s*\2\s*([0-9]{1,4})$")
_CHINESE = re.compile(r"^(?:([0-9]{4})\s*年\s*)?([0-9]{1,2})\s*月\s*([0-9]{1,2})\s*[日号]$")
_MONTHS: Sequence[str] = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905
_MONTH = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"([0-9]{1,2})(?:st|nd|rd|th)?"
_MONTH_DAY = re.compile(rf"^{_MONTH}\s+{_DAY}(?:\s*,?\s+([0-9]{{4}}))?$", re.I)
_DAY_MONTH = re.compile(rf"^{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,?\s+([0-9]{{4}}))?$", re.I)


class Date(NamedTuple):
    """A date; `year` 0 is not written. `swapped`: month and day may be meant in the other order (05/07/2023)."""

    year: int
    month: int
    day: int
    swapped: bool = False


class Time(NamedTuple):
    """A time of day. `half` is "a" or "p", "" if it is not written and the hour leaves it open."""

    hour: int
    minute: int
    second: int
    half: str


def time_of(source: str) -> Time | None:
    """Hours and minutes, both of them in their range: 2:3 and 25:00 are ratios. 15:00 is 3:00 PM."""
    match = _CLOCK.match(source)
    if not match or not (match[2] or match[4]):
        return None
    hour, minute, second, half = int(match[1]), int(match[2] or 0), int(match[3] or 0), (match[4] or "").lower()
    if hour > (12 if half else 24) or minute > 59 or second > 59:
        return None
    if not half and (hour > 12 or hour == 0):
        half = "p" if 12 < hour < 24 else "a"
    return Time(hour % 12, minute, second, half)


def date_of(source: str) -> Date | None:
    """A date in digits, in words or in Chinese."""
    if match := _DATE.match(source):
        first, second, third = int(match[1]), int(match[3]), int(match[4])
        if len(match[1]) == 4:
            return Date(first, second, third)
        if len(match[4]) not in (2, 4):
            return None
        return Date(third, second, first) if first > 12 else Date(third, first, second, swapped=second <= 12)
    if match := _CHINESE.match(source):
        return Date(int(match[1] or 0), int(match[2]), int(match[3]))
    if match := _MONTH_DAY.match(source):
        return Date(int(match[3] or 0), _number(match[1]), int(match[2]))
    if match := _DAY_MONTH.match(source):
        return Date(int(match[3] or 0), _number(match[2]), int(match[1]))
    return None


def _number(month: str) -> int:
    return _MONTHS.index(month[:3].lower()) + 1
