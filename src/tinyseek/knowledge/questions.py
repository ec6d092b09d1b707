"""Questions whose pages are known: how well a collection finds them, and how often an answer cites the right page.

A line of JSON a question:

    {"question": "How many days of leave are there?", "document": "handbook.pdf", "page": 12}
    {"question": "...", "document": "handbook.pdf", "pages": [12, 13]}    any of them is right
    {"question": "...", "document": "notes.md"}                          a document without pages, or any page of it
    {"question": "...", "document": null}                                the documents do not answer this

`en` and `zh` in place of `question` are two questions. A document is known by its name, or the end of its path.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.ask import DEFAULTS, Reply, answer
from tinyseek.knowledge.answer.options import AnswerSettings, How
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.retrieve import search

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.llm.base import ChatModel

HOWS: tuple[How, ...] = ("lexical", "dense", "hybrid")
DEPTH = 10  # passages that are looked at
MOST_QUESTIONS = 100_000
_MOST_BYTES = 100 << 20


@dataclass(frozen=True)
class Question:
    """A question, and where its answer stands."""

    text: str
    document: str | None  # None: nowhere
    pages: tuple[int, ...] = ()  # any of them; none given: any page
    line: int = 0


@dataclass
class Outcome:
    """What became of one question.

    Attributes:
        documents, pages: by how it was searched, at which place the right one came first, from 1; None: not among the first.
        reply: the answer, where one was asked for.
        cited: the places that the answer cites, in order: (document, page or None).
    """

    question: Question
    documents: dict[How, int | None] = field(default_factory=dict)
    pages: dict[How, int | None] = field(default_factory=dict)
    reply: Reply | None = None
    cited: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def first_right(self) -> bool:
        """Whether the first citation is of a right page."""
        return bool(self.cited) and _is_right(self.question, *self.cited[0])

    @property
    def any_right(self) -> bool:
        """Whether any citation is."""
        return any(_is_right(self.question, *place) for place in self.cited)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        question = self.question
        told: dict[str, Any] = {
            "question": question.text,
            "document": question.document,
            "pages": list(question.pages),
            "document_rank": dict(self.documents),
            "page_rank": dict(self.pages),
        }
        if self.reply is not None:
            told |= {
                "found": self.reply.found,
                "confidence": round(self.reply.confidence, 3),
                "answer": self.reply.text,
                "cited": [list(place) for place in self.cited],
            }
        return told


def read_questions(file: Path) -> list[Question]:
    """The questions of a file.

    Raises:
        UserError: it cannot be read, or a line is no question: with its number.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{file}: is larger than {_MOST_BYTES >> 20} MB")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    found = [question for number, line in enumerate(lines, 1) if line.strip() for question in _read(file, number, line)]
    if not found:
        raise UserError(
            f'{file}: holds no questions; a line is {{"question": ..., "document": "report.pdf", "page": 3}}'
        )
    if len(found) > MOST_QUESTIONS:
        raise UserError(f"{file}: {len(found):,} questions; at most {MOST_QUESTIONS:,}")
    return found


def _read(file: Path, number: int, line: str) -> Iterator[Question]:
    try:
        plain = json.loads(line)
    except ValueError as error:
        raise UserError(f"{file}, line {number}: is no JSON ({error})") from None
    if not isinstance(plain, dict):
        raise UserError(
            f'{file}, line {number}: a question is {{"question": ..., "document": "report.pdf", "page": 3}}'
        )
    texts = [plain[key] for key in ("question", "en", "zh") if plain.get(key)]
    document = plain.get("document", plain.get("file"))
    pages = plain.get("pages", plain.get("page"))
    pages = [] if pages is None else pages if isinstance(pages, list) else [pages]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{file}, line {number}: has no question")
    if "document" not in plain and "file" not in plain:
        raise UserError(f"{file}, line {number}: says no document; null where no document answers it")
    if document is not None and not isinstance(document, str):
        raise UserError(f"{file}, line {number}: its document is no name")
    if not all(isinstance(page, int) and not isinstance(page, bool) and page >= 1 for page in pages):
        raise UserError(f"{file}, line {number}: pages are whole numbers from 1")
    for text in texts:
        yield Question(text.strip(), document, tuple(pages), number)


def check_documents(base: KnowledgeBase, questions: Iterable[Question]) -> None:
    """See that the questions' documents are in the collection.

    Raises:
        UserError: some are not; else every one of their questions would count as missed.
    """
    names = [document.name for document in base.documents()]
    wanted = {question.document: question.line for question in reversed(list(questions)) if question.document}
    missing = [
        name for name in sorted(wanted, key=lambda name: wanted[name]) if not any(_same(name, own) for own in names)
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise UserError(f"line {wanted[missing[0]]}: not in the collection {base.collection}: {shown}; add them first")


def ask_all(
    base: KnowledgeBase,
    questions: Sequence[Question],
    model: ChatModel | None = None,
    settings: AnswerSettings = DEFAULTS,
    answers: bool = True,
) -> Iterator[Outcome]:
    """Search for each question in every way, and answer it.

    Args:
        answers: ask for answers too, not for passages alone.
    Raises:
        UserError: the model cannot be reached.
    """
    for question in questions:
        outcome = Outcome(question)
        if question.document is not None:
            for how in HOWS:
                hits = search(base, question.text, how, DEPTH)
                names = [hit.document.name for hit in hits]
                right = [_stands(question, hit.document.name, hit.chunk.chunk.places) for hit in hits]
                outcome.documents[how] = _rank(_same(question.document, name) for name in names)
                outcome.pages[how] = _rank(right)
        if answers:
            reply = answer(base, question.text, (), model, settings)
            outcome.reply = reply
            outcome.cited = [
                (citation.document.name, next((p.page for p in citation.places if p.page is not None), None))
                for citation in reply.citations
            ]
        yield outcome


def _rank(right: Iterable[bool]) -> int | None:
    return next((place for place, is_right in enumerate(right, 1) if is_right), None)


def _same(wanted: str, name: str) -> bool:
    return wanted == name or name.endswith(f"/{wanted}") or wanted.endswith(f"/{name}")


def _stands(question: Question, name: str, places: Iterable[Place]) -> bool:
    pages = {place.page for place in places if place.page is not None}
    return _same(question.document or "", name) and (
        not question.pages or not pages or bool(pages & set(question.pages))
    )


def _is_right(question: Question, name: str, page: int | None) -> bool:
    if question.document is None or not _same(question.document, name):
        return False
    return not question.pages or page is None or page in question.pages


# ---- figures ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """How well one way of searching finds: shares of the questions that have a document, each question's own value."""

    how: How
    document_at_1: list[float]
    page_at_1: list[float]
    page_at_5: list[float]
    page_at_10: list[float]
    reciprocal_rank: list[float]  # of the page


def found_by(outcomes: Sequence[Outcome], how: How) -> Found:
    """The figures of one way."""
    asked = [outcome for outcome in outcomes if outcome.question.document is not None]
    pages = [outcome.pages.get(how) for outcome in asked]

    def within(ranks: Sequence[int | None], most: int) -> list[float]:
        return [float(rank is not None and rank <= most) for rank in ranks]

    return Found(
        how,
        within([outcome.documents.get(how) for outcome in asked], 1),
        within(pages, 1),
        within(pages, 5),
        within(pages, 10),
        [1 / rank if rank else 0.0 for rank in pages],
    )
