"""Errors for clients, in OpenAI's format and with an HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RETRY_SECONDS = 1
_LONGEST_MESSAGE, _LONGEST_NAME = 1000, 100


def shortened(text: str, longest: int = _LONGEST_NAME) -> str:
    """A client's text, cut to the length that an answer may repeat."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


class ApiError(Exception):
    """An error for the client. `param` names the field, `code` is for programs; `headers` go with the answer.

    Neither the message nor `param` repeats more than a line or two of what the client sent.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code = shortened(message, _LONGEST_MESSAGE), status, code
        self.param = None if param is None else shortened(param)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str, status: int = 503, code: str | None = None) -> ApiError:
    """An error after which the client may try again later."""
    return ApiError(message, status, code=code, headers={"Retry-After": str(_RETRY_SECONDS)})
