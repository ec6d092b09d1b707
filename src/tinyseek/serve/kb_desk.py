"""More of the knowledge base over HTTP: questions over sheets, summaries with progress, and the facts of whoever holds the key."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from typing_extensions import TypedDict

from tinyseek.errors import UserError
from tinyseek.knowledge.answer.summary import Progress, Summary, sources_of, summarise
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.cache import ResponseCache
from tinyseek.knowledge.memory import Fact, Facts
from tinyseek.knowledge.shelf import FIRST
from tinyseek.llm.base import ChatModel
from tinyseek.serve.errors import ApiError, json_response
from tinyseek.serve.kb_served import ServedKnowledge, key_of
from tinyseek.serve.kb_wire import Collection, Question, WireFilters
from tinyseek.serve.replies import ERRORS
from tinyseek.serve.streaming import DONE, event, stream
from tinyseek.serve.wire import JsonRoute, Wire

T = TypeVar("T")
_STREAMED: dict[str, Any] = {"text/event-stream": {"schema": {}}}


class TableRequest(Wire):
    """POST /v1/kb/table."""

    question: Question
    collection: Collection = FIRST
    model: str | None = Field(None, description="who writes the query: a model served here; quotes: rules do")
    filters: WireFilters = WireFilters()
    chart: bool = Field(False, description="with a picture, where one helps: PNG in base64")


class SummaryRequest(Wire):
    """POST /v1/kb/summary."""

    collection: Collection = FIRST
    filters: WireFilters = Field(WireFilters(), description="which documents: all together are summarised")
    model: str | None = Field(None, description="who writes; quotes: the documents' own sentences")
    words: int = Field(300, ge=20, le=5000)
    language: str = Field("", pattern=r"^(en|zh)?$")
    focus: str = Field("", max_length=500)
    stream: bool = False


class FactRequest(Wire):
    """POST /v1/kb/facts, PATCH /v1/kb/facts/{id}."""

    text: str = Field(min_length=1, max_length=2000)
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field([], max_length=20)


class TableAnswer(TypedDict):
    """What a question over sheets is answered; the rest is in `TableReply.plain`."""

    question: str
    how: str
    text: str
    sql: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str]
    markdown: str
    picture: str | None


class PartReply(TypedDict):
    document: str
    where: str
    summary: str


class SummaryReply(TypedDict):
    summary: str
    how: str
    parts: list[PartReply]
    notes: list[str]


class FactReply(TypedDict):
    id: int
    text: str
    tags: list[str]
    made: float
    changed: float


class FactList(TypedDict):
    data: list[FactReply]


class ForgottenReply(TypedDict):
    forgotten: int


def routes(served: ServedKnowledge) -> APIRouter:
    """/v1/kb/table, /v1/kb/summary, /v1/kb/facts."""
    router = APIRouter(prefix="/v1/kb", route_class=JsonRoute, responses=ERRORS, tags=["knowledge base"])

    @router.post("/table", responses={200: {"model": TableAnswer}})
    async def table(body: TableRequest, request: Request) -> Response:
        """A question over the Excel and CSV files, answered by a read-only query that is shown."""
        base = await served.base(request, body.collection)
        writer = served.writer(body.model)
        replies = _once(lambda: served.shelf.tables.ask(base, body.question, writer, body.filters.filters()))
        reply = (await served.pump(replies, request).all())[0]
        picture = await served.call(reply.picture) if body.chart else None
        plain = reply.plain() | {
            "markdown": reply.markdown(),
            "picture": base64.b64encode(picture).decode() if picture else None,
        }
        return json_response(plain)

    @router.post("/summary", responses={200: {"model": SummaryReply, "content": _STREAMED}})
    async def summary(body: SummaryRequest, request: Request) -> Response:
        """A summary of documents; with stream=true its progress as events."""
        base = await served.base(request, body.collection)
        pump = served.pump(_summary(base, body, served.writer(body.model)), request)
        if body.stream:
            return await stream(pump, _SummaryWriter())
        last = (await pump.all())[-1]
        assert isinstance(last, Summary)
        return json_response(_plain_summary(last))

    _facts(router, served)
    return router


def _once(work: Callable[[], T]) -> Iterator[T]:
    """A call as an iterator, to be waited for like any other answer: with time limits, and for a client that hangs up."""
    yield work()


# ---- summaries -------------------------------------------------------------------------------------------------------------------


def _summary(base: KnowledgeBase, body: SummaryRequest, model: ChatModel | None) -> Iterator[Progress | Summary]:
    with ResponseCache(base.home / "responses.db") as cache:
        yield from summarise(
            sources_of(base.index, body.filters.filters()),
            model,
            cache,
            language=body.language,
            focus=body.focus,
            words=body.words,
        )


def _plain_summary(summary: Summary) -> dict[str, Any]:
    return {
        "summary": summary.text,
        "how": summary.how,
        "parts": [{"document": part.name, "where": part.where, "summary": part.summary} for part in summary.parts],
        "notes": list(summary.notes),
    }


class _SummaryWriter:
    """Progress and the summary as events."""

    def open(self) -> Iterator[bytes]:
        return iter(())

    def write(self, item: Progress | Summary) -> Iterator[bytes]:
        if isinstance(item, Summary):
            yield event(_plain_summary(item), "summary")
        else:
            yield event(asdict(item), "progress")

    def close(self) -> Iterator[bytes]:
        yield DONE

    def fail(self, error: ApiError) -> Iterator[bytes]:
        yield event(error.body(), "error")
        yield DONE


# ---- facts -----------------------------------------------------------------------------------------------------------------------


def _facts(router: APIRouter, served: ServedKnowledge) -> None:
    async def own(request: Request) -> Facts:
        """The facts of the request's key: nobody else's."""
        return Facts(await served.call(served.shelf.personal, key_of(request)))

    async def known(request: Request, fact: int) -> Facts:
        facts = await own(request)
        try:
            await served.call(facts.get, fact)
        except (UserError, OverflowError):
            raise ApiError(404, f"there is no fact {fact}", code="fact_not_found") from None
        return facts

    @router.get("/facts", responses={200: {"model": FactList}})
    async def all_of(request: Request, search: str = "", tag: list[str] = Query([])) -> Response:  # noqa: B008
        """What you asked to remember, the newest first."""
        found: Sequence[Fact] = await served.call((await own(request)).all, search, tag)
        return json_response({"data": [_plain_fact(fact) for fact in found]})

    @router.post("/facts", status_code=201, responses={201: {"model": FactReply}})
    async def remember(body: FactRequest, request: Request) -> Response:
        """Remember a fact; one that is there already is not kept twice."""
        served.check_writable()
        return json_response(_plain_fact(await served.call((await own(request)).remember, body.text, body.tags)), 201)

    @router.patch("/facts/{fact}", responses={200: {"model": FactReply}})
    async def edit(body: FactRequest, fact: int, request: Request) -> Response:
        """Put another text and tags in a fact's place."""
        served.check_writable()
        facts = await known(request, fact)
        await served.call(facts.edit, fact, body.text)
        return json_response(_plain_fact(await served.call(facts.tag, fact, body.tags)))

    @router.delete("/facts/{fact}", responses={200: {"model": ForgottenReply}})
    async def forget(fact: int, request: Request) -> Response:
        """Forget a fact."""
        served.check_writable()
        facts = await known(request, fact)
        return json_response({"forgotten": await served.call(facts.forget, [fact])})


def _plain_fact(fact: Fact) -> dict[str, Any]:
    return asdict(fact) | {"tags": list(fact.tags)}
