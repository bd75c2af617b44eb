"""The processor's files in a checkpoint directory, in transformers' layout. No code in them is run."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zppo_jax.processor import preprocessing
from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.json_files import read_object, token_ids
from zppo_jax.processor.tokenizer import END_OF_TEXT, IM_END

_MAX_TEMPLATE = 1_000_000  # characters; the longest template of a published model has some 10,000


def read_tokenizer(directory: Path) -> Tokenizer:
    """Reads tokenizer.json. Raises ValueError, naming the directory, if it is missing or damaged."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no tokenizer.json: copy it there from the checkpoint's repository, or write it with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except BaseException as error:  # tokenizers raises bare Exception, and BaseException if its Rust panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{path} is not a tokenizer file: {' '.join(str(error).split())[:200]}") from error


def read_chat_template(directory: Path) -> str:
    """Reads chat_template.jinja, or an older layout's template in a JSON file. Raises ValueError, naming the file."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _checked_template(_text(path), path)
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_object(directory / name).get("chat_template")
        if isinstance(template, list):
            named = [entry for entry in template if isinstance(entry, dict)]
            template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
        if template:
            return _checked_template(template, directory / name)
    raise ValueError(f"{directory} holds no chat_template.jinja: copy it there from the checkpoint's repository")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error


def _checked_template(template: Any, path: Path) -> str:
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise ValueError(
            f"{path}: the chat template is {reprlib.repr(template)}, not a text of at most {_MAX_TEMPLATE:,} characters"
        )
    return template


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """Reads the end ids of generation_config.json; empty without the file, as in the first small releases."""
    path = directory / "generation_config.json"
    return token_ids(read_object(path).get("eos_token_id"), f"{path}: eos_token_id")


def write(
    directory: Path, tokenizer: Tokenizer, chat_template: str, config: ProcessorConfig, stop_ids: Sequence[int]
) -> None:
    """Writes the files that `read_*` and transformers' tokenizer, image and video processors read."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    pad_id = tokenizer.token_to_id(END_OF_TEXT)
    generation = {"bos_token_id": pad_id, "eos_token_id": list(stop_ids), "pad_token_id": pad_id}
    _write_json(directory / "generation_config.json", generation)
    for name, content in preprocessing.contents(config).items():
        _write_json(directory / name, content)
    (directory / preprocessing.NESTED_FILE).unlink(missing_ok=True)  # an old one would take precedence over these
    tokenizer_content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262144,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
