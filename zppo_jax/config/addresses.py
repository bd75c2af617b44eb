"""Addresses of models behind a network, as a configuration gives them: one, or several with commas between them."""

from __future__ import annotations

import urllib.parse


def addresses_of(text: str) -> tuple[str, ...]:
    """The addresses in a value such as `http://a:8000/v1,http://b:8000/v1`, each once."""
    return tuple(dict.fromkeys(one.strip() for one in text.split(",")))


def addresses_fault(key: str, text: str, otherwise: str, key_variable: str) -> str | None:
    """The fault of such a value; a password or a key in it would be written to config.json. `otherwise` names what
    else the key may be, `key_variable` is the environment variable for the server's key."""
    return next(filter(None, (_fault(key, one, otherwise, key_variable) for one in addresses_of(text))), None)


def _fault(key: str, url: str, otherwise: str, key_variable: str) -> str | None:
    if "@" in url:  # before it is shown: a password may hold any letter
        return f"{key} holds a user name, password or query: leave it out, and set {key_variable} instead"
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not any(letter <= " " or letter == ";" for letter in url)
    except ValueError:
        parts, usable = None, False
    if parts is None or not usable:
        return f"{key} = {url!r} is not an address: give {otherwise}, or a base URL such as http://HOST:8000/v1"
    if parts.username is not None or parts.query or parts.fragment:
        return f"{key} holds a user name, password or query: leave it out, and set {key_variable} instead"
    return None
