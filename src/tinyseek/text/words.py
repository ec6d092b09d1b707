"""The word-level tokenizer: a regular expression cuts, a sorted list of the words seen is the vocabulary.

The first tokenizer that a course shows, because its two weaknesses explain why byte-level BPE (`bpe.py`) exists: a word that was
not in the training text becomes `<|unk|>`, and decoding has to guess where the spaces were.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import regex

from tinyseek.artifact import write_text
from tinyseek.errors import UserError

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unk|>"

# A special token | one Han character (Chinese writes no spaces, so each character is a word) | a double dash | a run of anything
# that is neither space, punctuation nor Han | one punctuation mark or symbol.
_WORD = regex.compile(r"<\|endoftext\|>|<\|unk\|>|\p{Han}|--|[^\s\p{P}\p{S}\p{Han}]+|[\p{P}\p{S}]")
_NO_SPACE_BEFORE = frozenset(",.:;?!)]}'\"%，。：；？！、）》」』”’…")
_NO_SPACE_AFTER = frozenset("([{（《「『“‘")
_WIDE = regex.compile(r"[\p{Han}，。：；？！、（）《》「」『』“”‘’…]")


def split(text: str) -> list[str]:
    """The words and punctuation marks of `text`, spaces dropped."""
    return _WORD.findall(text)


class WordTokenizer:
    """Ids are positions in the sorted vocabulary; `<|endoftext|>` and `<|unk|>` are the last two."""

    def __init__(self, words: Iterable[str]) -> None:
        """
        Args:
            words: the vocabulary in id order, the two special tokens among them.
        """
        self.words = list(words)
        self.ids = {word: index for index, word in enumerate(self.words)}
        if len(self.ids) != len(self.words) or UNKNOWN not in self.ids or END_OF_TEXT not in self.ids:
            raise UserError(f"a word vocabulary holds each word once, {END_OF_TEXT} and {UNKNOWN} among them")

    @classmethod
    def train(cls, texts: Iterable[str]) -> WordTokenizer:
        """Every word that occurs, sorted by code point, then the two special tokens."""
        seen: set[str] = set()
        for text in texts:
            seen.update(split(text))
        return cls([*sorted(seen - {END_OF_TEXT, UNKNOWN}), END_OF_TEXT, UNKNOWN])

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """The ids of the words of `text`; a word that training never saw is `<|unk|>`."""
        unknown = self.ids[UNKNOWN]
        return [self.ids.get(word, unknown) for word in split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text with a guess at the spaces: none before closing punctuation, none between Chinese characters.

        Encoding the result gives the same ids again, but the text need not be the one that was encoded.

        Raises:
            UserError: an id that is not in the vocabulary.
        """
        text, before = "", ""
        for index in ids:
            if not 0 <= index < len(self.words):
                raise UserError(f"token id {index} is outside the vocabulary of {len(self.words)} words")
            word = self.words[index]
            tight = word in _NO_SPACE_BEFORE or before in _NO_SPACE_AFTER
            if text and not tight and not (_WIDE.match(before) and _WIDE.match(word)):
                text += " "
            text += word
            before = word
        return text

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON, its words in id order."""
        write_text(Path(path), json.dumps({"words": self.words}, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> WordTokenizer:
        """Read what `save` wrote.

        Raises:
            UserError: missing, unreadable or no word vocabulary.
        """
        try:
            words = json.loads(Path(path).read_text(encoding="utf-8"))["words"]
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no word vocabulary ({error}); train and save it again") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f'{path}: "words" should be a list of strings; train and save it again')
        try:
            return cls(words)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
