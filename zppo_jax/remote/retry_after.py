"""The header Retry-After, with which a server asks to be left alone for a while (RFC 9110, 10.2.3)."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime


def retry_after(value: str | None) -> float:
    """The seconds that the header asks for, given as a number or as a date; 0 without one that can be read."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
