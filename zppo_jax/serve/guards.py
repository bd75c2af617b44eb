"""What a request must pass before anybody reads it: the key, and the size of its body."""

from __future__ import annotations

import hmac

from starlette.requests import ClientDisconnect, Request

from zppo_jax.serve.errors import ApiError


def check_key(request: Request, api_key: str | None) -> None:
    if api_key is None:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode()):
        raise ApiError(
            "the API key is missing or wrong: send the header `Authorization: Bearer KEY`",
            401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def read_body(request: Request, limit: int) -> bytes:
    too_large = ApiError(f"the request exceeds {limit} bytes", 413, headers={"Connection": "close"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
    except ClientDisconnect as error:
        raise ApiError("the client has gone", 400) from error
    return b"".join(parts)
