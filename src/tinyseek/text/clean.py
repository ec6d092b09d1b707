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
from dataclasses import asdict, dataclass, field
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
from tinyseek.text.sources import Document, Reading, SourceSettings, corpus_bytes, corpus_key, read_documents

BATCH_CHARS = 256_000  # what a worker gets at a time: its arrays of 2 MB stay in the cache
BATCH_DOCUMENTS = 2_048
LINE = json.JSONEncoder(ensure_ascii=False)
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
    min_chars: int = Field(10, ge=1, description="documents with fewer characters are dropped")
    max_symbols: float = Field(
        0.5, ge=0, le=1, description="largest share of punctuation and symbols among visible characters"
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

    def add(self, size: int, documents: int = 1) -> None:
        self.documents += documents
        self.bytes += size


@dataclass
class Batch:
    """Some documents on their way to a worker. Columns, because objects cost more to send than their text."""

    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@dataclass
class Examined:
    """What a worker found out about each document of a batch."""

    sources: list[str]
    bytes_read: NDArray[np.int64]
    bytes_clean: NDArray[np.int64]
    dropped: dict[int, tuple[str, str, str]]  # index -> the step that drops it, its figure, its beginning
    lines: list[bytes]  # its line of the output; empty if dropped
    digests: NDArray[np.uint64]
    signatures: NDArray[np.uint8]  # [n, 120]
    comparable: NDArray[np.bool_]  # whether there are words to compare at all


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


def examine(batch: Batch, settings: DataSettings) -> Examined:
    """All that can be said of each document by itself."""
    texts = [normalise(text, settings.unicode, settings.whitespace) for text in batch.texts]
    n = len(texts)
    characters = minhash.Characters.of(texts)
    shingles = minhash.shingles(characters)
    visible = np.maximum(characters.lengths - characters.count(minhash.SPACE), 1)
    symbols = (characters.count(minhash.SYMBOL) / visible).tolist()
    long_words = (shingles.long_letters / visible).tolist()
    repeated = (minhash.repetition(shingles) if settings.max_repetition < 1 else np.zeros(n)).tolist()
    dropped, lines = {}, []
    digests, bytes_clean = np.zeros(n, np.uint64), np.zeros(n, np.int64)
    for index, (source, text) in enumerate(zip(batch.sources, texts, strict=True)):
        encoded = text.encode()
        bytes_clean[index] = len(encoded)
        step, why = _failing(settings, len(text), symbols[index], long_words[index], repeated[index])
        if step:
            dropped[index] = step, why, text[:SHOWN]
            lines.append(b"")
        else:
            digests[index] = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
            lines.append(LINE.encode({"text": text, "source": source}).encode() + b"\n")
    bytes_read = np.fromiter((len(text.encode("utf-8", "surrogatepass")) for text in batch.texts), np.int64, n)
    wanted = settings.near_duplicates is not None
    signatures = minhash.signatures(shingles) if wanted else np.zeros((n, 0), np.uint8)
    return Examined(batch.sources, bytes_read, bytes_clean, dropped, lines, digests, signatures, shingles.words > 0)


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
            with progress("cleaning", corpus_bytes(settings)) as update:
                for examined in in_order(work, batches, settings.workers):
                    cleaning.take(examined)
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
        self.written = [0, 0]  # bytes
        self.samples: dict[str, list[dict[str, Any]]] = {step: [] for step in STEPS}
        self.chance = random.Random(settings.seed)
        self.digests: tuple[set[int], set[int]] = (set(), set())  # the older half, and the newer
        self.near = minhash.NearDuplicates(settings.near_duplicates or 1.0, settings.remember)
        # Of each kept document: its number among all read, where its line begins (times 2, plus 1 in val.jsonl), and its bytes.
        self.numbers, self.begins, self.sizes = array("q"), array("q"), array("q")

    @property
    def kept(self) -> int:
        return len(self.numbers)

    def take(self, batch: Examined) -> None:
        first = self.read.documents
        self.read.add(int(batch.bytes_read.sum()), len(batch.sources))
        self.normalised += int(batch.bytes_clean.sum())
        sizes = batch.bytes_clean.tolist()
        fresh = []
        for index, digest in enumerate(batch.digests.tolist()):
            source, size = batch.sources[index], sizes[index]
            if index in batch.dropped:
                step, why, shown = batch.dropped[index]
                self._drop(step, size, source, why, shown)
            elif self.settings.exact_duplicates and self._seen(digest):
                self._drop("exact duplicates", size, source, "the same text came before", batch.lines[index])
            else:
                fresh.append(index)
        if self.settings.near_duplicates is not None:
            rows = np.array([index for index in fresh if batch.comparable[index]], np.int64)
            originals, alike = self.near.add(batch.signatures[rows], first + rows)
            for place in np.flatnonzero(originals >= 0).tolist():
                index, why = int(rows[place]), f"{alike[place]:.0%} alike"
                self._drop(
                    "near duplicates",
                    sizes[index],
                    batch.sources[index],
                    why,
                    batch.lines[index],
                    int(originals[place]),
                )
            repeats = set(rows[originals >= 0].tolist())
            fresh = [index for index in fresh if index not in repeats]
        # SplitMix64 of the text's digest: the same text falls on the same side, wherever it stands.
        chances = minhash.mix(batch.digests ^ np.uint64(self.settings.seed)) / 2.0**64
        held_out = ((chances < self.settings.val_fraction) & (self.settings.val_split == "hash")).tolist()
        for index in fresh:
            self._keep(batch.lines[index], sizes[index], first + index, held_out[index])

    def _seen(self, digest: int) -> bool:
        """Whether an earlier document has this digest; it is remembered where none has."""
        older, newer = self.digests
        if digest in newer or digest in older:
            return True
        if len(newer) >= self.settings.remember // 2:
            older, newer = self.digests = newer, set()
        newer.add(digest)
        return False

    def _keep(self, line: bytes, size: int, number: int, held_out: bool) -> None:
        self.numbers.append(number)
        self.begins.append(self.written[held_out] * 2 + held_out)
        self.sizes.append(size)
        self.splits[held_out].add(size)
        self.written[held_out] += len(line)
        self.files[held_out].write(line)

    def _drop(self, step: str, size: int, source: str, why: str, text: str | bytes, original: int = -1) -> None:
        count, chosen = self.dropped[step], self.samples[step]
        count.add(size)
        # A reservoir: each dropped document has the same chance to be shown.
        place = count.documents - 1 if len(chosen) < self.settings.samples else self.chance.randrange(count.documents)
        if place < self.settings.samples:
            shown = text if isinstance(text, str) else json.loads(text)["text"][:SHOWN]
            chosen[place : place + 1] = [{"source": source, "text": shown, "why": why, "original": original}]

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


def _batches(documents: Iterable[Document]) -> Iterator[Batch]:
    batch, size = Batch(), 0
    for document in documents:
        batch.texts.append(document.text)
        batch.sources.append(document.source)
        size += len(document.text)
        if size >= BATCH_CHARS or len(batch.texts) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = Batch(), 0
    if batch.texts:
        yield batch
