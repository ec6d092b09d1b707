"""Search: by words, by meaning, or by both; what is found comes with the section around it.

Both halves hand over their best hundred. Their scores are brought to 0..1 (the best is 1, what is not among the hundred 0) and added:
on Cranfield nDCG@10 0.423, where reciprocal ranks give 0.416, words alone 0.383 and meaning alone 0.382 (benchmarks/retrieve.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.options import How
from tinyseek.knowledge.chunks import joined
from tinyseek.knowledge.embed.base import Embedder
from tinyseek.knowledge.index.base import Filters, Index, StoredChunk, StoredDocument

DEPTH = 100  # of each half
LONGEST_QUESTION = 4000  # characters that are searched for; what is longer is a document
_REACH = 16  # chunks before and after, in which the rest of a section is looked for
ALL = Filters()

Pairs = list[tuple[int, float]]


class Base(Protocol):
    """As much of a knowledge base as a search needs."""

    @property
    def index(self) -> Index: ...

    @property
    def embedder(self) -> Embedder: ...


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        score: 0 to 1 for an order by both halves; else that of the one half, or of the reranking.
        lexical: BM25, if words found it.
        dense: cosine, if meaning found it.
        section: the chunks of its section in order, itself among them.
    """

    chunk: StoredChunk
    document: StoredDocument
    score: float
    lexical: float | None = None
    dense: float | None = None
    section: tuple[StoredChunk, ...] = ()

    @cached_property
    def context(self) -> str:
        """The text of its section."""
        return joined([stored.chunk for stored in self.section or (self.chunk,)])


@dataclass(frozen=True)
class Search:
    """What a search found, and what later steps need of it.

    Attributes:
        vector: of the question; None where nothing was searched by meaning.
        lexical, dense: both halves as they came.
    """

    question: str
    hits: list[Hit]
    vector: NDArray[np.float32] | None = None
    lexical: Pairs | None = None
    dense: Pairs | None = None


Reranker = Callable[[Base, Search], list[Hit]]


def search(
    base: Base,
    question: str,
    how: How = "hybrid",
    limit: int = 10,
    filters: Filters = ALL,
    rerank: Reranker | None = None,
) -> list[Hit]:
    """The passages that belong to a question, best first.

    Raises:
        UserError: no question, or a limit below 1.
    """
    return find(base, question, how, limit, filters, rerank).hits


def find(
    base: Base,
    question: str,
    how: How = "hybrid",
    limit: int = 10,
    filters: Filters = ALL,
    rerank: Reranker | None = None,
) -> Search:
    """`search`, with both halves.

    Args:
        rerank: orders the best anew; three times `limit` of them are handed to it.
    """
    question = question.strip()[:LONGEST_QUESTION]
    if not question:
        raise UserError("there is no question to search for")
    if limit < 1:
        raise UserError(f"limit={limit}: at least one passage is to be found")
    wanted = limit if rerank is None else 3 * limit
    depth = max(DEPTH, wanted)
    lexical = base.index.lexical(question, depth, filters) if how != "dense" else []
    vector = base.embedder.queries([question])[0] if how != "lexical" else None
    dense = base.index.dense(vector, depth, filters) if vector is not None else []
    ranked = lexical if how == "lexical" else dense if how == "dense" else fused(lexical, dense, depth)
    hits = _hits(base.index, ranked[:wanted], dict(lexical), dict(dense))
    found = Search(question, hits, vector, lexical, dense)
    if rerank is not None:
        found = replace(found, hits=rerank(base, found)[:limit])
    return found


def fused(lexical: Pairs, dense: Pairs, depth: int, share: float = 0.5) -> Pairs:
    """Both halves as one order, by their scores on one scale.

    Args:
        depth: how many each half was asked for.
        share: of the words' half.
    """
    words, meaning = _scaled(lexical, depth, 0.0), _scaled(dense, depth, None)
    scores = {
        number: share * words.get(number, 0.0) + (1 - share) * meaning.get(number, 0.0) for number in words | meaning
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def _scaled(pairs: Pairs, depth: int, least: float | None) -> dict[int, float]:
    """Scores on 0..1.

    Args:
        least: the score of what was not found, where the list holds all that was.
    """
    if not pairs:
        return {}
    low = pairs[-1][1] if len(pairs) >= depth or least is None else least
    high = pairs[0][1]
    if high <= low:
        return {number: 1.0 for number, _ in pairs}
    return {number: (score - low) / (high - low) for number, score in pairs}


def _hits(index: Index, ranked: Pairs, lexical: dict[int, float], dense: dict[int, float]) -> list[Hit]:
    stored = {chunk.id: chunk for chunk in index.chunks([number for number, _ in ranked])}
    wanted = tuple(sorted({chunk.document for chunk in stored.values()}))
    documents = {d.id: d for d in index.documents(Filters(documents=wanted))} if wanted else {}
    hits = []
    for number, score in ranked:
        chunk = stored.get(number)
        if chunk is None or chunk.document not in documents:  # removed since it was found
            continue
        section = section_of(index, chunk)
        hits.append(Hit(chunk, documents[chunk.document], score, lexical.get(number), dense.get(number), section))
    return hits


def section_of(index: Index, chunk: StoredChunk) -> tuple[StoredChunk, ...]:
    """The chunks of a chunk's section, itself among them."""
    near = index.chunks_between(chunk.document, max(0, chunk.number - _REACH), chunk.number + _REACH)
    section = [other for other in near if other.chunk.section == chunk.chunk.section]
    return tuple(section) if any(other.id == chunk.id for other in section) else (chunk,)


def passages_of(hits: Sequence[Hit], limit: int) -> list[Hit]:
    """The first hit of each section: what an answer is written from."""
    seen: set[tuple[int, int]] = set()
    found: list[Hit] = []
    for hit in hits:
        key = (hit.chunk.document, hit.chunk.chunk.section)
        if key not in seen and len(found) < limit:
            seen.add(key)
            found.append(hit)
    return found
