"""How often an answer's citation names the right page, with no model at all; and how often the check of citations is right.

    python benchmarks/cite.py DOCUMENTS [--keep VECTORS.npz] [--drawn 100]

DOCUMENTS holds deepseek-r1.pdf (https://arxiv.org/abs/2501.12948) and the two invoices of benchmarks/questions that docling and
markitdown test with (REPAIR-2022-INV-001_multipage.pdf, SPARSE-2024-INV-1234_borderless_table.pdf).

Written: 100 questions about them, each with the pages that answer it, in English and in Chinese; an answer is right if its first
citation names the document and one of these pages. Drawn: sentences of the documents taken by chance, asked for by their rarest
words in the form of a question; right is a page on which the sentence stands. How a sentence is picked for quoting was chosen on
the written questions, not on the drawn ones. Claims: 30 true and 30 false ones, in two languages, as sentences of an answer that
cites each of the passages found; the check's bounds were chosen by half of them, with the other half in sight.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kept import Kept, plain, put_files, questions, show

from tinyseek.knowledge.answer.ask import answer, fitted
from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.answer.support import Supporter
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.embed.open import open_embedder
from tinyseek.knowledge.retrieve import find, passages_of
from tinyseek.knowledge.segment import words
from tinyseek.knowledge.stopwords import stopwords

ALWAYS = AnswerSettings(found_from=0, follow_ups=0)


@dataclass
class Asked:
    question: str
    document: str
    pages: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--keep", type=Path, help="a file for vectors, so that a second run is quick")
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print every wrong answer")
    arguments = parser.parse_args()
    started = time.perf_counter()
    entries = [entry for entry in questions("documents.jsonl") if entry["document"]]
    files = sorted({entry["document"] for entry in entries})
    embedder = Kept(open_embedder("e5"), arguments.keep)
    with tempfile.TemporaryDirectory() as home, KnowledgeBase.open(Path(home), embedder=embedder) as kb:
        put_files(kb, [arguments.documents / name for name in files])
        written = {
            language: [Asked(entry[language], entry["document"], entry["pages"]) for entry in entries]
            for language in ("en", "zh")
        }
        sets = {
            "written, English": written["en"],
            "written, Chinese (English documents)": written["zh"],
            f"drawn, seed {arguments.seed}": drawn(kb, arguments.drawn, arguments.seed),
        }
        figures: dict[str, Any] = {}
        rows = []
        for name, asked in sets.items():
            first, any_, wrong = pages_right(kb, asked)
            figures[name] = round(first / len(asked), 4)
            rows.append((name, str(len(asked)), f"{first / len(asked):.1%}", f"{any_ / len(asked):.1%}"))
            if arguments.show:
                print(*wrong, sep="\n")
        show("Citations: right document and page", ("questions", "", "first citation", "any citation"), rows)
        checks = claims(kb)
    embedder.close()
    line = {"benchmark": "cite", "right_page": figures, "check": checks}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - started)}))


def pages_right(kb: KnowledgeBase, asked: Sequence[Asked]) -> tuple[int, int, list[str]]:
    """How many first citations, and how many of any, are right; and what was answered else."""
    first = some = 0
    wrong = []
    for entry in asked:
        reply = answer(kb, entry.question, settings=ALWAYS)
        right = [
            citation.document.name == entry.document and any(place.page in entry.pages for place in citation.places[:1])
            for citation in reply.citations
        ]
        first += right[:1] == [True]
        some += any(right)
        if right[:1] != [True]:
            where = [(c.document.name[:6], *(place.page for place in c.places)) for c in reply.citations]
            wrong.append(f"{entry.question} {entry.pages}: {where} {reply.text[:200]!r}")
    return first, some, wrong


def drawn(kb: KnowledgeBase, count: int, seed: int) -> list[Asked]:
    """Sentences of the documents as questions: their rarest words in the order in which they stand."""
    sentences: list[tuple[str, str, int]] = []
    for document in kb.index.documents():
        for stored in kb.index.chunks_of(document.id):
            if stored.chunk.kind != "text" or stored.chunk.path[-1:] == ("References",):
                continue
            for place in stored.chunk.places:
                text = stored.chunk.text[slice(*place.span)] if place.span else ""
                sentences += [
                    (s.strip(), document.name, place.page or 0) for s in text.split(". ") if 60 < len(s) < 300
                ]
    frequency = Counter(word for text, _, _ in sentences for word in set(words(text)))
    found: list[Asked] = []
    draw = random.Random(seed)
    draw.shuffle(sentences)
    for text, name, page in sentences:
        said = [word for word in text.split() if (cut := words(word)) and cut[0] not in stopwords() and len(word) > 2]
        rare = sorted(said, key=lambda word: frequency[words(word)[0]])[:5]
        if len(rare) == 5:
            asked = " ".join(word.strip("(),;:•") for word in said if word in rare)
            pages = sorted({there for same, document, there in sentences if (same, document) == (text, name)} | {page})
            found.append(Asked(f"What is said about {asked}?", name, pages))
        if len(found) == count:
            break
    return found


def claims(kb: KnowledgeBase) -> dict[str, Any]:
    """How often a citation that holds is dropped, and one that does not is kept."""
    rows = []
    figures = {}
    for half, title in ((0, "bounds chosen on"), (1, "others")):
        for language in ("en", "zh"):
            kept: dict[str, list[bool]] = {"true": [], "false": [], "elsewhere": []}
            for entry in questions("claims.jsonl")[half::2]:
                hits = passages_of(find(kb, entry[language], limit=18).hits, 6)
                passages = fitted(kb, hits, ALWAYS)
                supporter = Supporter(passages, kb.embedder)
                for number, passage in enumerate(passages):
                    text = plain(passage.text)
                    holds = passage.document.name == entry["document"] and any(
                        plain(a) in text for a in entry["anchors"]
                    )
                    true = supporter.support(entry[language], number) is not None
                    kept["true" if holds else "elsewhere"].append(true)
                    if holds:
                        kept["false"].append(supporter.support(entry[f"wrong_{language}"], number) is not None)
            share = {name: sum(found) / max(1, len(found)) for name, found in kept.items()}
            row = (1 - share["true"], share["false"], share["elsewhere"])
            rows.append((f"{title}, {language}", *(f"{value:.1%}" for value in row)))
            figures[f"{title}, {language}"] = [round(value, 3) for value in row]
    columns = ("claims about English documents", "true, dropped", "false, kept", "true, another passage cited, kept")
    show("The check of citations", columns, rows)
    return figures


if __name__ == "__main__":
    main()
