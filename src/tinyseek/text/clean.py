"""From raw documents to clean ones, in one streaming pass: normalise, filter, deduplicate, split. Nothing is dropped in silence.

Workers do what concerns one document (normalise, measure, hash); the parent process does what concerns several, in the order of
the corpus: exact and near duplicates, and writing. So the result is the same for any number of workers. Filters follow
Gopher's (Rae et al. 2021, appendix A), put in terms that also hold for Chinese, which has no spaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import no_effect
from tinyseek.text import minhash
from tinyseek.text.parallel import in_order
from tinyseek.text.progress import progress
from tinyseek.text.sources import Document, Reading, SourceSettings, corpus_key, read_documents

BATCH_CHARS = 256_000  # what a worker gets at a time: its arrays of 2 MB stay in the cache
BATCH_DOCUMENTS = 2_048
SHOWN = 300  # characters of a dropped document in the report

NEWLINES = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters, soft hyphens, zero-width and direction marks, tags, lone surrogates. Zero-width joiners stay: Persian,
# Indic scripts and emoji are spelt with them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
ODD_SPACES = re.compile(r"[^\S\n\t ]")  # no-break, ideographic, thin ...
SPACES = re.compile(r"[ \t]+")
BLANK_LINES = re.compile(r"\n{3,}")

# The steps in their order: the name in the report, and what it says of a dropped document.
STEPS = {
    "length": "shorter than min_chars",
    "symbols": "more than max_symbols of it are neither letters nor digits",
    "long words": "more than max_long_words of it are words of over 40 letters",
    "repetition": "more than max_repetition of it repeats itself",
    "exact duplicates": "the same text came before",
    "near duplicates": "nearly the same text came before",
}


class DataSettings(SourceSettings):
    """From a corpus to clean train and validation documents."""

    unicode: Literal["NFC", "NFKC", "none"] = Field(
        "NFC",
        description="Unicode normalisation; NFKC also turns full-width letters, ligatures and the like into plain ones",
    )
    whitespace: Literal["tidy", "collapse", "keep"] = Field(
        "tidy",
        description="tidy: no blanks at line ends, at most one blank line, odd spaces made plain; collapse: runs of "
        "blanks made one, too; keep: as it is",
    )
    min_chars: int = Field(20, ge=1, description="documents with fewer characters are dropped")
    max_symbols: float = Field(
        0.4, ge=0, le=1, description="largest share of punctuation and symbols among visible characters"
    )
    max_long_words: float = Field(
        0.3, ge=0, le=1, description="largest share of characters in words of over 40 letters"
    )
    max_repetition: float = Field(
        0.7,
        ge=0,
        le=1,
        description="largest share of runs of five words (or Chinese characters) that stand in the document already",
    )
    exact_duplicates: bool = Field(True, description="drop documents whose text came before")
    near_duplicates: float | None = Field(
        0.8,
        ge=0.3,
        le=1,
        description="drop documents at least so similar to an earlier one (Jaccard, of runs of five words); none: keep them",
    )
    remember: int = Field(
        1_000_000,
        ge=1_000,
        description="documents that deduplication remembers, the latest ones; about 400 bytes each",
    )
    val_fraction: float = Field(0.05, ge=0, lt=1, description="share of the text that is held out for validation")
    val_split: Literal["hash", "tail"] = Field(
        "hash",
        description="hash: documents by chance, the same ones whatever their order; tail: the last ones of the corpus",
    )
    seed: int = Field(0, ge=0, description="which documents `hash` holds out, and which samples the report shows")
    samples: int = Field(5, ge=0, le=100, description="dropped documents that the report shows for each reason")
    workers: int = no_effect(0, "processes that clean; 0: one a core", ge=0, le=256)


@dataclass
class Count:
    documents: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.documents += 1
        self.bytes += size


@dataclass
class Examined:
    """What a worker found out about one document."""

    source: str
    bytes_read: int
    bytes_clean: int
    dropped: str  # the step that drops it, or ""
    why: str
    shown: str  # its beginning, if dropped
    line: bytes  # its line of the output, if kept
    digest: int


def normalise(text: str, unicode: str = "NFC", whitespace: str = "tidy") -> str:
    """Text in one spelling: line ends as \\n, nothing invisible, one Unicode form, tidy white space."""
    plain = text.isascii()
    text = INVISIBLE.sub("", NEWLINES.sub("\n", text))
    if unicode != "none" and not plain:
        text = unicodedata.normalize(unicode, text)  # type: ignore[arg-type]
    if whitespace == "keep":
        return text
    if not plain:
        text = ODD_SPACES.sub(" ", text)
    if whitespace == "collapse":
        text = SPACES.sub(" ", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", text).strip()


def examine(
    batch: list[Document], settings: DataSettings
) -> tuple[list[Examined], NDArray[np.uint8], NDArray[np.bool_]]:
    """All that can be said of each document by itself.

    Returns:
        What was found, MinHash signatures [n, 120], and which documents have words to compare at all.
    """
    texts = [normalise(document.text, settings.unicode, settings.whitespace) for document in batch]
    characters = minhash.Characters.of(texts)
    shingles = minhash.shingles(characters)
    visible = np.maximum(characters.lengths - characters.count(minhash.SPACE), 1)
    symbols = characters.count(minhash.SYMBOL) / visible
    long_words = shingles.long_letters / visible
    repeated = minhash.repetition(shingles) if settings.max_repetition < 1 else np.zeros(len(texts))
    results = []
    for index, (document, text) in enumerate(zip(batch, texts, strict=True)):
        encoded = text.encode()
        dropped, why = _failing(settings, len(text), symbols[index], long_words[index], repeated[index])
        line = (
            b""
            if dropped
            else json.dumps({"text": text, "source": document.source}, ensure_ascii=False).encode() + b"\n"
        )
        digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
        size = len(document.text.encode("utf-8", "surrogatepass"))
        results.append(
            Examined(document.source, size, len(encoded), dropped, why, text[:SHOWN] if dropped else "", line, digest)
        )
    wanted = settings.near_duplicates is not None
    signatures = minhash.signatures(shingles) if wanted else np.zeros((len(texts), 0), np.uint8)
    return results, signatures, shingles.words > 0


def _failing(settings: DataSettings, chars: int, symbols: float, long_words: float, repeated: float) -> tuple[str, str]:
    """The first filter that a document does not pass, and its figure."""
    if chars < settings.min_chars:
        return "length", f"{chars} characters"
    if symbols > settings.max_symbols:
        return "symbols", f"{symbols:.0%} punctuation and symbols"
    if long_words > settings.max_long_words:
        return "long words", f"{long_words:.0%} in words of over 40 letters"
    if repeated > settings.max_repetition:
        return "repetition", f"{repeated:.0%} repeated"
    return "", ""


# ---- the stage


def build(settings: DataSettings, folder: Path) -> None:
    """Write `train.jsonl`, `val.jsonl` ({"text", "source"} a line) and `report.json`.

    Raises:
        UserError: the corpus cannot be read, or nothing is left of it.
    """
    reading = Reading()
    keys = {"corpus": corpus_key(settings)}
    with artifact.writing(folder, "data", settings.essence(), keys=keys) as (target, figures):
        with (target / "train.jsonl").open("wb+") as train, (target / "val.jsonl").open("wb+") as val:
            cleaning = _Cleaning(settings, train, val)
            work = partial(examine, settings=settings)
            batches = _batches(read_documents(settings, reading))
            with progress("cleaning", 0) as update:
                for examined, signatures, comparable in in_order(work, batches, settings.workers):
                    cleaning.take(examined, signatures, comparable)
                    update(reading.bytes_read, f"{cleaning.kept:,} documents kept")
            cleaning.finish(reading)
        report = cleaning.report(reading)
        artifact.write_text(target / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        figures |= {"read": report["steps"][0], "train": report["train"], "val": report["val"]}


class _Cleaning:
    """The part of the pass that goes document by document, in order: counting, deduplicating, writing."""

    def __init__(self, settings: DataSettings, train: IO[bytes], val: IO[bytes]) -> None:
        self.settings = settings
        self.files = (train, val)
        self.read = Count()
        self.normalised = 0  # bytes
        self.dropped = {step: Count() for step in STEPS}
        self.splits = (Count(), Count())
        self.samples: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
        self.chance = random.Random(settings.seed)
        self.digests: tuple[set[int], set[int]] = (set(), set())  # the older half, and the newer
        self.near = minhash.NearDuplicates(settings.near_duplicates or 1.0, settings.remember)
        # Of each kept document: its number among all read, where its line begins (times 2, plus 1 in val.jsonl), and its bytes.
        self.numbers, self.begins, self.sizes = array("q"), array("q"), array("q")

    @property
    def kept(self) -> int:
        return len(self.numbers)

    def take(self, examined: list[Examined], signatures: NDArray[np.uint8], comparable: NDArray[np.bool_]) -> None:
        first = self.read.documents
        fresh = []
        for index, document in enumerate(examined):
            self.read.add(document.bytes_read)
            self.normalised += document.bytes_clean
            if document.dropped:
                self._drop(document, document.dropped, document.why)
            elif self.settings.exact_duplicates and self._seen(document.digest):
                self._drop(document, "exact duplicates", "")
            else:
                fresh.append(index)
        repeats = dict.fromkeys(fresh, (-1, 0.0))
        if self.settings.near_duplicates is not None:
            rows = np.array([index for index in fresh if comparable[index]], np.int64)
            originals, alike = self.near.add(signatures[rows], first + rows)
            repeats |= dict(zip(rows.tolist(), zip(originals.tolist(), alike.tolist(), strict=True), strict=True))
        for index in fresh:
            original, similarity = repeats[index]
            if original >= 0:
                self._drop(examined[index], "near duplicates", f"{similarity:.0%} alike", original)
            else:
                self._keep(examined[index], first + index)

    def _seen(self, digest: int) -> bool:
        """Whether an earlier document has this digest; it is remembered where none has."""
        older, newer = self.digests
        if digest in newer or digest in older:
            return True
        if len(newer) >= self.settings.remember // 2:
            older, newer = self.digests = newer, set()
        newer.add(digest)
        return False

    def _keep(self, document: Examined, number: int) -> None:
        # SplitMix64 of the text's digest: the same text falls on the same side, wherever it stands.
        mixed = minhash.mix(np.array([document.digest ^ self.settings.seed], np.uint64))[0]
        by_chance = self.settings.val_split == "hash" and int(mixed) < self.settings.val_fraction * 2**64
        file = self.files[by_chance]
        self.numbers.append(number)
        self.begins.append(file.tell() * 2 + by_chance)
        self.sizes.append(document.bytes_clean)
        self.splits[by_chance].add(document.bytes_clean)
        file.write(document.line)

    def _drop(self, document: Examined, step: str, why: str, original: int = -1) -> None:
        count, chosen = self.dropped[step], self.samples[step]
        count.add(document.bytes_clean)
        # A reservoir: each dropped document has the same chance to be shown.
        place = count.documents - 1 if len(chosen) < self.settings.samples else self.chance.randrange(count.documents)
        if place < self.settings.samples:
            shown = document.shown or json.loads(document.line)["text"][:SHOWN]
            entry = {"source": document.source, "text": shown, "why": why or STEPS[step], "original": original}
            chosen[place : place + 1] = [entry]

    def finish(self, reading: Reading) -> None:
        """Tell the originals of the shown duplicates, and split."""
        if not self.kept:
            raise UserError(self._nothing_left(reading))
        for entry in chain.from_iterable(self.samples.values()):
            number = entry.pop("original")
            if number >= 0:
                entry["original"] = self._original(number)
        train, val = self.splits
        if not self.settings.val_fraction or self.kept < 2:
            if not train.documents:
                self._move(1, 0, 0)
            return
        if self.settings.val_split == "tail":
            before = np.cumsum(np.frombuffer(self.sizes, np.int64)) - np.frombuffer(self.sizes, np.int64)
            border = int(np.searchsorted(before, (1 - self.settings.val_fraction) * (before[-1] + self.sizes[-1])))
            self._move(0, 1, min(max(border, 1), self.kept - 1))
        elif not val.documents:  # a small corpus: chance chose none
            self._move(0, 1, self.kept - 1)
        elif not train.documents:
            self._move(1, 0, self.kept - 1)

    def _move(self, source: int, target: int, first: int) -> None:
        """Move the last lines of one file, from kept document `first` on, to the end of the other."""
        start = self.begins[first] // 2
        stream = self.files[source]
        stream.seek(start)
        while block := stream.read(1 << 20):
            self.files[target].write(block)
        stream.truncate(start)
        moved = sum(self.sizes[first:])
        for split, sign in ((source, -1), (target, 1)):
            self.splits[split].documents += sign * (self.kept - first)
            self.splits[split].bytes += sign * moved

    def _original(self, number: int) -> dict[str, str]:
        place = bisect_left(self.numbers, number)
        if place == self.kept or self.numbers[place] != number:  # the original was itself a near-duplicate
            return {"source": "a document that was itself dropped as a near duplicate", "text": ""}
        stream = self.files[self.begins[place] % 2]
        stream.seek(self.begins[place] // 2)
        line = json.loads(stream.readline())
        stream.seek(0, os.SEEK_END)
        return {"source": line["source"], "text": line["text"][:SHOWN]}

    def _nothing_left(self, reading: Reading) -> str:
        corpus = self.settings.corpus
        name = corpus if isinstance(corpus, str) else ", ".join(corpus)[:200]
        if not self.read.documents:
            bad = (
                f"; {reading.bad_records:,} records could not be used. The first: {reading.troubles[0]}"
                if reading.troubles
                else ""
            )
            return f"{name}: no documents in it{bad}"
        lost = ", ".join(f"{count.documents:,} by {step}" for step, count in self.dropped.items() if count.documents)
        worst = max(self.dropped, key=lambda step: self.dropped[step].documents)
        return (
            f"{name}: nothing is left of {self.read.documents:,} documents after cleaning; dropped: {lost}\n"
            f"see data's settings: {STEPS[worst]}"
        )

    def report(self, reading: Reading) -> dict[str, Any]:
        """All counts, for people and for report.html."""
        steps = [
            {"step": "read", **asdict(self.read)},
            {"step": "normalise", "documents": self.read.documents, "bytes": self.normalised},
        ]
        left = Count(self.read.documents, self.normalised)
        for step, count in self.dropped.items():
            left = Count(left.documents - count.documents, left.bytes - count.bytes)
            steps.append({"step": step, **asdict(left)})
        return {
            "corpus": self.settings.corpus,
            "steps": steps,
            "dropped": {
                step: {**asdict(self.dropped[step]), "meaning": meaning, "samples": self.samples[step]}
                for step, meaning in STEPS.items()
            },
            "train": asdict(self.splits[0]),
            "val": asdict(self.splits[1]),
            "reading": {
                "files": reading.files,
                "bytes": reading.bytes_read,
                "ignored_files": reading.ignored_files,
                "bad_files": reading.bad_files,
                "bad_records": reading.bad_records,
                "cut_documents": reading.cut_documents,
                "troubles": reading.troubles,
            },
            "forgotten": self.near.forgotten,
        }


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
