"""What clients send to /v1/kb, and the types of what they are answered."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from typing_extensions import TypedDict

from tinyseek.knowledge.answer.options import AnswerSettings, How, Rerank
from tinyseek.knowledge.index.base import Filters
from tinyseek.serve.wire import ChatMessage, Wire

Collection = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Question = Annotated[str, Field(min_length=1, max_length=20_000)]


class WireFilters(Wire):
    """Where to look; what is not given is not asked for."""

    documents: list[int] = Field([], max_length=1000, description="ids")
    names: list[Name] = Field([], max_length=100, description="patterns of names: report*.pdf")
    folders: list[Name] = Field([], max_length=100)
    tags: list[Name] = Field([], max_length=100, description="all of them")
    kinds: list[Name] = Field([], max_length=20, description="pdf, docx, xlsx ...")
    since: str | None = Field(None, description="ISO date")
    until: str | None = Field(None, description="ISO date")
    pages: list[int] | None = Field(None, min_length=2, max_length=2, description="first and last")

    @field_validator("since", "until")
    @classmethod
    def _dates(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError("should be a date like 2026-01-31") from None
        return value

    def filters(self) -> Filters:
        """As an index takes them."""
        pages = (self.pages[0], self.pages[1]) if self.pages else None
        return Filters(
            tuple(self.documents),
            tuple(self.names),
            tuple(self.folders),
            tuple(self.tags),
            tuple(self.kinds),
            self.since,
            self.until,
            pages,
        )


class SearchRequest(Wire):
    """POST /v1/kb/search."""

    query: Question
    collection: Collection = "default"
    how: How = "hybrid"
    limit: int = Field(10, ge=1, le=200)
    rerank: Rerank = Field(
        "none", description="sentences: by the meaning of single sentences; model: a model orders them"
    )
    filters: WireFilters = WireFilters()
    context: bool = Field(False, description="with the section around each passage")


class AskRequest(Wire):
    """POST /v1/kb/ask."""

    question: Question
    collection: Collection = "default"
    history: list[ChatMessage] = Field([], max_length=200, description="the conversation before, as OpenAI's messages")
    model: str | None = Field(None, description="who writes: a model served here; quotes: the documents' own sentences")
    stream: bool = False
    filters: WireFilters = WireFilters()
    how: How | None = None
    rerank: Rerank | None = None
    passages: int | None = Field(None, ge=1, le=50)
    max_tokens: int | None = Field(None, ge=16, le=100_000)
    temperature: float | None = Field(None, ge=0, le=2)
    found_from: float | None = Field(None, ge=0, le=1)
    follow_ups: int | None = Field(None, ge=0, le=10)

    def settings(self, own: AnswerSettings) -> AnswerSettings:
        """The server's, with what this request asks for."""
        names = ("how", "rerank", "passages", "max_tokens", "temperature", "found_from", "follow_ups")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return own.model_copy(update=given)


class CollectionRequest(Wire):
    """POST /v1/kb/collections."""

    name: Collection


class TagsRequest(Wire):
    """PATCH /v1/kb/documents/{id}."""

    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(max_length=100)


class CorrectionRequest(Wire):
    """PATCH /v1/kb/chunks/{id}."""

    text: str = Field(min_length=1, max_length=100_000)


# ---- answers ---------------------------------------------------------------------------------------------------------------------


class CollectionReply(TypedDict):
    name: str
    documents: int
    passages: int
    embedder: str | None
    model: str  # its name in /v1/chat/completions


class CollectionList(TypedDict):
    data: list[CollectionReply]


class DocumentReply(TypedDict):
    id: int
    name: str
    kind: str
    title: str
    author: str
    date: str
    pages: int | None
    language: str
    tags: list[str]
    notes: list[str]
    passages: int
    size: int
    sha256: str
    modified: str
    added: str


class DocumentList(TypedDict):
    data: list[DocumentReply]
    total: int


class BriefReply(TypedDict):
    id: int
    name: str
    kind: str
    title: str


class ChunkReply(TypedDict):
    id: int
    document: int
    number: int
    kind: str
    path: list[str]
    section: int
    tokens: int
    where: str
    places: list[dict[str, Any]]
    text: str


class ChunkList(TypedDict):
    data: list[ChunkReply]
    total: int


class HitReply(TypedDict):
    score: float
    lexical: float | None
    dense: float | None
    document: BriefReply
    passage: ChunkReply


class SearchReply(TypedDict):
    data: list[HitReply]


class CitationReply(TypedDict):
    number: int
    document: BriefReply
    where: str
    places: list[dict[str, Any]]
    quote: str
    claim: str
    score: float
    url: str


class AnswerReply(TypedDict):
    answer: str
    found: bool
    confidence: float
    citations: list[CitationReply]
    dropped_citations: int
    follow_ups: list[str]
    how: Literal["model", "extractive"]
    searched: str
    note: str
    finish: str | None
    usage: dict[str, int] | None


class ProgressReply(TypedDict):
    file: str
    outcome: Literal["added", "changed", "unchanged", "moved", "removed", "failed"]
    why: str
    passages: int
    document: int | None
    done: int
    total: int


class UploadReply(TypedDict):
    data: list[ProgressReply]


class RemovedReply(TypedDict):
    removed: str
