"""Text to words and to sentences, Chinese like English.

Words are what lexical search compares: folded (NFKC, no case, no accents), Chinese by dictionary in search mode (a long word and
the short ones in it), Japanese kana and Korean as pairs of characters, English as stems. A number keeps its point, 79.8, and 1,000
is 1000.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

LONGEST_WORD = 64  # characters; what is longer (base64, a line of dashes) is cut
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PAIRED = "\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\uac00-\ud7a3"
_RUN = re.compile(
    rf"(?P<han>[{_HAN}]+)|(?P<paired>[{_PAIRED}]+)"
    rf"|(?P<number>(?<![^\W_{_HAN}{_PAIRED}][.,])[0-9]+(?:[.,][0-9]+)+(?![^\W_{_HAN}{_PAIRED}]))|(?P<word>[^\W_{_HAN}{_PAIRED}]+)"
)
_THOUSANDS = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
_APOSTROPHE = re.compile(r"(?<=[a-z])['’ʼ](?=(?:s|t|d|m|ll|re|ve)\b)")
_lock = threading.Lock()


def words(text: str) -> list[str]:
    """The words of a text in order, as lexical search compares them."""
    found: list[str] = []
    for match in _RUN.finditer(_folded(text)):
        kind, run = match.lastgroup, match[0]
        if kind == "word":
            found.append(_stem(run[:LONGEST_WORD]) if run.isascii() else run[:LONGEST_WORD])
        elif kind == "han":
            found += _cutter().cut_for_search(run)
        elif kind == "paired":
            found += [run[at : at + 2] for at in range(max(len(run) - 1, 1))]
        elif _THOUSANDS.fullmatch(run):
            found.append(run.replace(",", "")[:LONGEST_WORD])
        elif run.count(".") == 1 and "," not in run:
            found.append(run[:LONGEST_WORD])
        else:  # a version, a date, a list of numbers
            found += re.split("[.,]", run[:LONGEST_WORD])
    return found


def _folded(text: str) -> str:
    """One form of what is written in several: width, ligatures, case, accents, a possessive or contracted ending."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    text = text.casefold()
    if not text.isascii():
        plain = unicodedata.normalize("NFD", text)
        if len(plain) != len(text):
            # Accents of Latin, Greek and Cyrillic go; the marks of other scripts are part of their words.
            text = unicodedata.normalize("NFC", "".join(c for c in plain if not "\u0300" <= c <= "\u036f"))
    return _APOSTROPHE.sub("", text)


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    if len(word) < 3 or not word.isalpha():
        return word
    with _lock:  # a stemmer keeps the word that it works on
        return str(_stemmer().stemWord(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=1)
def _cutter() -> Any:
    """The dictionary of Chinese words; 0.3 s to read."""
    import rjieba

    return rjieba


# ---- sentences -------------------------------------------------------------------------------------------------------------------

_END = re.compile(
    r"[。！？!?…．｡]+[”’\"'）)\]】」』》〉]*"  # Chinese, and what ends a sentence anywhere
    r"|[；;](?=\s|[^\x00-\x7f])"
    r"|(?<!\.)\.[”’\"')\]]*(?=\s+[\"“‘'(\[]*[^\sa-z]|\s*\n|\s*$|[^\x00-\x7f])"  # a full stop, not before a small letter
    r"|\n\s*\n|\n(?=\s*(?:[-*•·▪◦‣]\s|\d{1,3}[.)、]\s*\S|[（(]\d{1,2}[）)]))"  # a blank line, an item of a list
)
_SHORT = re.compile(
    r"(?:^|[\s(\[“\"])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|al|cf|e\.g|i\.e|No|Nos|Vol|Fig|Figs|Eq|Eqs"
    r"|Sec|Secs|Ch|Tab|pp|approx|Inc|Ltd|Co|Corp|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|resp|ref|Ref|Refs|ed|eds|Gen|Col|Sen|Rep|Gov|Rev)$",
)


def sentences(text: str) -> list[str]:
    """The sentences of a text; together they are the text, every blank kept at the end of the sentence before it."""
    return [text[start:end] for start, end in spans(text)]


def spans(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end."""
    found: list[tuple[int, int]] = []
    start = 0
    for end in _ends(text):
        while end < len(text) and text[end].isspace():
            end += 1
        if text[start:end].strip():
            found.append((start, end))
            start = end
    if start < len(text):
        if text[start:].strip() or not found:
            found.append((start, len(text)))
        else:
            found[-1] = (found[-1][0], len(text))
    return found


def _ends(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        if match[0][0] == "." and _SHORT.search(text, max(0, match.start() - 12), match.start()):
            continue
        yield match.end()


def pieces(text: str, longest: int, length: Callable[[str], int]) -> list[str]:
    """A text without a sentence's end in reach, cut where it does least harm: at commas, blanks, or between characters.

    Args:
        longest: of a piece, as `length` measures it.
    """
    found: list[str] = []
    todo = [text]
    while todo:
        part = todo.pop()
        if len(part) < 2 or length(part) <= longest:
            found.append(part)
            continue
        at = _cut(part)
        todo += [part[at:], part[:at]]
    return found


def _cut(text: str) -> int:
    """Near the middle: after a comma or a line's end, else after a blank, else anywhere."""
    middle, reach = len(text) // 2, max(len(text) // 4, 1)
    for marks in ("\n", ",，、;；:：", " \t\u3000"):
        near = [at + 1 for at in range(middle - reach, middle + reach) if text[at] in marks]
        near = [at for at in near if 0 < at < len(text)]
        if near:
            return min(near, key=lambda at: abs(at - middle))
    return max(middle, 1)
