"""Byte-level BPE as in Qwen3.5, and encoding that never gives control tokens for user text.

Control tokens are the strings that structure a conversation (turns, images, thinking, tools). They enter a prompt only
through the chat template: text written by users or by a model is encoded without them, whatever it spells.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
VISION_PAD = "<|vision_pad|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# In the order of their ids. True: skipped by `decode(skip_special_tokens=True)`.
CONTROL_TOKENS: dict[str, bool] = {
    END_OF_TEXT: True,
    IM_START: True,
    IM_END: True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    VISION_START: True,
    VISION_END: True,
    VISION_PAD: True,
    IMAGE_PAD: True,
    VIDEO_PAD: True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    THINK_OPEN: False,
    THINK_CLOSE: False,
}

# English contractions | a word with one sign before it | one digit | signs with the line ends after them |
# blank lines | spaces before a word | spaces. Marks (\p{M}) belong to the letters they modify.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

SLOT = re.compile("\ue000[^\ue000\ue001]*\ue001")
"""Placeholders for texts while a chat template is rendered: private-use characters, which no template contains."""

_NUM_BYTES = 256
_LONG_TEXT = 4096
"""From this length on, in characters, encoding does not block other threads; for shorter texts it is not worth it."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def build_tokenizer(texts: Iterable[str], vocab_size: int, whole_words: Sequence[str] = ()) -> Tokenizer:
    """Trains a small tokenizer that behaves like Qwen3.5's.

    Why: a tiny model cannot carry 248k embeddings. Ids: 256 bytes and the merges, then `whole_words`, then the 26
    control tokens. `vocab_size` counts all of them and is an upper bound: few texts yield fewer merges. A whole word
    is one token wherever it occurs, also inside other words; it must be ASCII, because the byte-level decoder would
    read other letters as bytes. Raises ValueError if the vocabulary is too small or a whole word is invalid.
    """
    _check_whole_words(whole_words)
    num_bpe = vocab_size - len(whole_words) - len(CONTROL_TOKENS)
    if num_bpe < _NUM_BYTES:
        needed = vocab_size - num_bpe + _NUM_BYTES
        raise ValueError(
            f"vocab_size={vocab_size} is too small: {_NUM_BYTES} bytes, {len(whole_words)} whole words and "
            f"{len(CONTROL_TOKENS)} control tokens need at least {needed}"
        )
    tokenizer = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=num_bpe,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, whole_words), trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in whole_words])
    for token, special in CONTROL_TOKENS.items():
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
    return tokenizer


class PromptEncoder:
    """Encodes a rendered chat in which slots stand for texts, such as the user's.

    Why: Hugging Face's processors tokenise the rendered string as a whole, so a user who writes `<|image_pad|>` adds
    an image slot. Here the rendered template is split at its control tokens, and everything between two of them, user
    text included, is encoded by a tokenizer that does not know them. For text without such strings the ids are those
    of the whole string, since no merge crosses a control token.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.control_ids = control_ids(tokenizer)
        self._text_tokenizer = _text_tokenizer(tokenizer, self.control_ids)
        self._cut = re.compile(f"({_alternatives(self.control_ids)})")

    def encode_text(self, text: str) -> list[int]:
        """Encodes plain text, never to a control token. Raises ValueError for text that is not valid Unicode."""
        if _SURROGATE.search(text):
            raise ValueError(f"the text holds half a surrogate pair, which UTF-8 cannot encode: {text[:80]!r}")
        if len(text) < _LONG_TEXT:
            return self._text_tokenizer.encode(text, add_special_tokens=False).ids
        # The same ids, but `encode` holds the interpreter's lock: for a second per 300,000 tokens.
        return self._text_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode(self, rendered: str, texts: Mapping[str, str] | None = None) -> list[int]:
        """Encodes a rendered chat, with the keys of `texts` (each a SLOT) replaced by the values."""
        texts = texts or {}
        ids: list[int] = []
        for piece in self._cut.split(rendered):
            if piece in self.control_ids:
                ids.append(self.control_ids[piece])
            elif piece:
                # All at once, so that a text which spells another one's slot is not replaced.
                ids.extend(self.encode_text(SLOT.sub(lambda slot: texts.get(slot[0], slot[0]), piece)))
        return ids


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The control tokens of a tokenizer with their ids, in the order of the ids.

    These are Qwen3.5's, found by their strings, and every other added token that the file marks as special.
    Raises ValueError if one of Qwen3.5's is missing, or also matches the spaces around it.
    """
    added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    missing = [token for token in CONTROL_TOKENS if token not in added]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {', '.join(missing)}: use a Qwen3.5 checkpoint's tokenizer.json, or build_tokenizer"
        )
    found: dict[str, int] = {}
    for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.special or token.content in CONTROL_TOKENS:
            if token.lstrip or token.rstrip or token.single_word:
                raise ValueError(
                    f"added token {token.content!r} has lstrip, rstrip or single_word set: set them to false"
                )
            found[token.content] = token_id
    return found


def byte_values() -> dict[str, int]:
    """The byte of each letter in a byte-level vocabulary.

    Printable bytes of Latin-1 are their own letters; the others have, in their order, the code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(_NUM_BYTES + place): byte for place, byte in enumerate(others)}


def _text_tokenizer(tokenizer: Tokenizer, controls: dict[str, int]) -> Tokenizer:
    """A copy in which every control token is special, and special tokens are encoded as ordinary text. Same ids."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in controls
    copy = Tokenizer.from_str(json.dumps(content))
    copy.encode_special_tokens = True
    copy.no_padding()
    copy.no_truncation()
    return copy


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _check_whole_words(whole_words: Sequence[str]) -> None:
    if len(set(whole_words)) != len(whole_words):
        raise ValueError("whole_words holds a word twice")
    for word in whole_words:
        if not word or not word.isascii():
            raise ValueError(f"whole word {word!r} must be ASCII and not empty")
        if len(word) == 1:
            raise ValueError(f"whole word {word!r} is one character, which is a token already")
        if any(token in word for token in CONTROL_TOKENS):
            raise ValueError(f"whole word {word!r} holds a control token")


def _without(texts: Iterable[str], whole_words: Sequence[str]) -> Iterator[str]:
    """The texts between the whole words, so that no merge is spent on a whole word, which is one token anyway."""
    if not whole_words:
        yield from texts
        return
    cut = re.compile(_alternatives(whole_words))
    for text in texts:
        yield from filter(None, cut.split(text))


def _alternatives(strings: Iterable[str]) -> str:
    """A regular expression for the leftmost and longest of the strings: this is how added tokens are matched."""
    return "|".join(re.escape(string) for string in sorted(strings, key=len, reverse=True))
