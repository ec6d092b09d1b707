"""Where the knowledge base meets OpenAI's routes: its names among the models, its answers, its tool; and the routes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fastapi import APIRouter, Request, Response

from tinyseek.llm.base import Collector, Usage
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.kb_chat import DocumentTool, ToolWriter, answer_kb, cited
from tinyseek.serve.kb_served import ServedKnowledge
from tinyseek.serve.replies import ERRORS, ChatChoice, ChatReply, Health, Model, ModelList
from tinyseek.serve.streaming import stream
from tinyseek.serve.wire import ChatRequest, JsonRoute

if TYPE_CHECKING:
    from tinyseek.serve.served import Served

_STREAMED = {"text/event-stream": {"schema": {"type": "string"}}}


async def kb_models(knowledge: ServedKnowledge | None, request: Request) -> list[Model]:
    """The collections that a request's key sees, as models."""
    if knowledge is None:
        return []
    names = await knowledge.call(knowledge.models_of, request)
    writer = knowledge.writer()
    context = (writer.context if writer is not None else None) or 0
    return [
        {
            "id": name,
            "object": "model",
            "created": knowledge.created,
            "owned_by": "tinyseek",
            "parent": writer.name if writer is not None else None,
            "max_model_len": context,
        }
        for name in names
    ]


async def answer_any(
    knowledge: ServedKnowledge, body: ChatRequest, request: Request, served: Served | None = None
) -> Response:
    """The answer to a chat request: of a collection, of a model that may search one, or of a model alone."""
    from tinyseek.serve.chat import answer_chat

    collection = await knowledge.call(knowledge.collection_of, request, body.model)
    if collection is not None:
        return await answer_kb(knowledge, collection, body, request)
    if served is None:
        there = ", ".join(f'"{name}"' for name in await knowledge.call(knowledge.models_of, request))
        raise ApiError(
            404,
            f'the model "{body.model[:80]}" is not served here; there are: {there}',
            param="model",
            code="model_not_found",
        )
    if body.search_documents is None:
        return await answer_chat(served, body, request)
    return await _with_documents(knowledge, body, request, served.model(body.model))


async def _with_documents(knowledge: ServedKnowledge, body: ChatRequest, request: Request, served: Served) -> Response:
    """A model's answer that may search the documents."""
    from tinyseek.serve.chat import message_reply, messages_of, options_of
    from tinyseek.serve.served import head, usage_reply

    wanted = body.search_documents
    assert wanted is not None
    if (body.n or 1) > 1 or body.logprobs:
        raise refused("search_documents goes with one answer without logprobs", "search_documents")
    if body.functions:
        raise refused("search_documents goes with tools, not with the old functions", "functions")
    collection = wanted.collection or next(iter(wanted.vector_store_ids or ["default"]))
    base = await knowledge.base(request, collection)
    tool = DocumentTool(served, knowledge, base, wanted)
    pump = served.pump(tool.answer(messages_of(body.messages), options_of(served, body)), request)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await stream(pump, ToolWriter(served, usage, tool, request, collection))
    collector = Collector()
    for delta in await pump.all():
        collector.push(delta)
    answer = collector.answers()[0]
    message = message_reply(answer.message)
    if tool.citations:
        more = cited(answer.content, tool.citations, request, collection)
        message["annotations"], message["citations"] = more["annotations"], more["citations"]
    reply = cast("ChatReply", head("chat.completion", "chatcmpl", served))
    reply["choices"] = [ChatChoice(index=0, message=message, logprobs=None, finish_reason=answer.finish or "stop")]
    reply["usage"] = usage_reply(collector.usage or Usage())
    return json_response(reply)


def routes(knowledge: ServedKnowledge) -> APIRouter:
    """OpenAI's routes of a server that holds documents alone."""
    router = APIRouter(route_class=JsonRoute, responses=ERRORS)

    @router.get("/v1/models", responses={200: {"model": ModelList}})
    async def models(request: Request) -> Response:
        """The collections that this key sees, as models."""
        return json_response(ModelList(object="list", data=await kb_models(knowledge, request)))

    @router.get("/v1/models/{name:path}", responses={200: {"model": Model}})
    async def model(name: str, request: Request) -> Response:
        """One of them."""
        found = next((one for one in await kb_models(knowledge, request) if one["id"] == name), None)
        if found is None:
            raise ApiError(404, f'the model "{name[:80]}" is not served here', param="model", code="model_not_found")
        return json_response(found)

    @router.post("/v1/chat/completions", responses={200: {"model": ChatReply, "content": _STREAMED}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """An answer from the documents."""
        return await answer_any(knowledge, body, request)

    @router.get("/health", responses={200: {"model": Health}})
    async def health() -> Response:
        """Whether questions are answered."""
        return json_response(Health(status="ok", model="kb"))

    @router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Counts in Prometheus' text format."""
        return Response(knowledge.metrics.text(None), media_type="text/plain; version=0.0.4")

    return router
