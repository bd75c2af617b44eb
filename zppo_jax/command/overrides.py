"""Overrides on the command line, `--config.KEY=VALUE`: found, checked and quoted for config_flags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections.config_flags import tuple_parser

from zppo_jax.config import keys, type_words, unknown_key
from zppo_jax.errors import ConfigError


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(text: str) -> tuple[int, ...]:
    value: Any = tuple_parser.TupleParser().parse(text)
    if not all(type(item) is int for item in value):
        raise ValueError(text)
    return value


_PARSERS: dict[Any, Callable[[str], Any]] = {
    int: flags.IntegerParser().parse,
    float: flags.FloatParser().parse,
    bool: flags.BooleanParser().parse,
    str: flags.ArgumentParser().parse,
    tuple[int, ...]: _integers,
    tuple[str, ...]: _texts,
}


def overrides(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The (key, value) of every `--config.KEY=VALUE`, `--config.KEY VALUE`, `--config.KEY` and `--noconfig.KEY`."""
    for position, argument in enumerate(argv):
        if argument == "--":
            return
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argument, flags=re.DOTALL)
        if match is None:
            continue
        negated, name, value = match.groups()
        if value is None and not negated and position + 1 < len(argv) and not argv[position + 1].startswith("-"):
            value = argv[position + 1]
        yield name, "false" if negated else value


def quoted(argv: Sequence[str]) -> list[str]:
    """The command line with every tuple of texts in Python's notation, as config_flags needs it."""
    words, names = list(argv), {key.name for key in keys() if key.type == tuple[str, ...]}
    for position, argument in enumerate(argv):
        if argument == "--":
            break
        flag, equals, text = argument.partition("=")
        if not flag.startswith("-") or flag.lstrip("-").removeprefix("config.") not in names:
            continue
        if equals:
            words[position] = f"{flag}={_texts(text)!r}"
        elif position + 1 < len(argv):
            words[position + 1] = repr(_texts(argv[position + 1]))
    return words


def check_override(name: str, text: str | None) -> None:
    """Raises ConfigError for an unknown key or a value of another type; `text` None means no value."""
    key = {key.name: key for key in keys()}.get(name)
    if key is None:
        raise unknown_key(name, "" if text is None else text)
    if text is None and key.type is not bool:
        raise ConfigError(f"{name} has no value: give {type_words(key.type)}, as --config.{name}=VALUE")
    if text is not None and not _reads_as(key.type, text):
        raise ConfigError(f"{name} = {text!r} has the wrong type: give {type_words(key.type)}")


def value_of(name: str, text: str) -> Any:
    """The value of a checked override, in the key's type."""
    return _PARSERS[{key.name: key.type for key in keys()}[name]](text)


def _reads_as(kind: Any, text: str) -> bool:
    try:
        _PARSERS[kind](text)
    except (ValueError, TypeError):
        return False
    return True
