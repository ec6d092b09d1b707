"""OpenAI's API: the routes, and the short ones among their answers (models, embeddings, tokens)."""

from __future__ import annotations

import array
import asyncio
import base64
import sys

from fastapi import APIRouter, Request, Response

from tinyseek.serve.chat import answer_chat, messages_of, thinking_of
from tinyseek.serve.completions import answer_completion, many_of
from tinyseek.serve.errors import ApiError, json_response, refused
from tinyseek.serve.kb_routes import answer_any, kb_models
from tinyseek.serve.kb_served import ServedKnowledge
from tinyseek.serve.replies import (
    ERRORS,
    ChatReply,
    CompletionReply,
    DetokenizeReply,
    EmbeddingReply,
    Model,
    ModelList,
    TokenizeReply,
    TokenizerInfo,
)
from tinyseek.serve.served import Served
from tinyseek.serve.wire import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    JsonRoute,
    TokenizeRequest,
)
from tinyseek.text.chat import encode_prompt

_STREAMED = {"text/event-stream": {"schema": {"type": "string"}}}


def routes(served: Served, knowledge: ServedKnowledge | None = None) -> APIRouter:
    """Every route below /v1 but /v1/responses; DeepSeek's /beta; vLLM's /tokenize and its kin.

    Args:
        knowledge: documents that are a model of their own, too.
    """
    router = APIRouter(route_class=JsonRoute, responses=ERRORS)

    @router.get("/v1/models", responses={200: {"model": ModelList}})
    async def models(request: Request) -> Response:
        """The models: a base, adapters over it, and the collections of documents that this key sees."""
        own = [_model(one) for one in served.models.values()]
        return json_response(ModelList(object="list", data=[*own, *await kb_models(knowledge, request)]))

    @router.get("/v1/models/{name:path}", responses={200: {"model": Model}})
    async def model(name: str, request: Request) -> Response:
        """One model."""
        asked = next((one for one in await kb_models(knowledge, request) if one["id"] == name), None)
        return json_response(asked or _model(served.model(name)))

    @router.post("/beta/chat/completions", include_in_schema=False)
    @router.post("/v1/chat/completions", responses={200: {"model": ChatReply, "content": _STREAMED}})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        if knowledge is not None:
            return await answer_any(knowledge, body, request, served)
        return await answer_chat(served, body, request)

    @router.post("/beta/completions", include_in_schema=False)
    @router.post("/v1/completions", responses={200: {"model": CompletionReply, "content": _STREAMED}})
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """The text after a text."""
        return await answer_completion(served, body, request)

    @router.post("/v1/embeddings", responses={200: {"model": EmbeddingReply}})
    async def embeddings(body: EmbeddingRequest) -> Response:
        """Vectors of texts."""
        return json_response(await _embeddings(served.model(body.model), body))

    @router.post("/tokenize", responses={200: {"model": TokenizeReply}})
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text or of a conversation."""
        return json_response(await asyncio.to_thread(_tokenize, served, body))

    @router.post("/detokenize", responses={200: {"model": DetokenizeReply}})
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        one = served if body.model is None else served.model(body.model)
        return json_response(DetokenizeReply(prompt=one.tokenizer.decode(body.tokens)))

    @router.get("/tokenizer_info", responses={200: {"model": TokenizerInfo}})
    async def tokenizer_info() -> Response:
        """The tokenizer's special tokens and template, as vLLM tells them."""
        decode = served.tokenizer.decode
        ids = served.tokenizer
        return json_response(
            TokenizerInfo(
                tokenizer_class="PreTrainedTokenizerFast",
                bos_token=decode([ids.bos_id]),
                eos_token=decode([ids.eos_id]),
                pad_token=decode([ids.pad_id]),
                chat_template=ids.chat_template,
            )
        )

    return router


def _model(served: Served) -> Model:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tinyseek",
        "parent": served.base,
        "max_model_len": served.engine.context,
    }


async def _embeddings(served: Served, body: EmbeddingRequest) -> EmbeddingReply:
    vectors, tokens = await embed(served, body.input, body.dimensions)
    return {
        "object": "list",
        "model": served.name,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if body.encoding_format == "base64" else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def embed(
    served: Served, given: str | list[str] | list[int] | list[list[int]], dimensions: int | None = None
) -> tuple[list[list[float]], int]:
    """Vectors of texts or of token ids, and how many tokens were read.

    Raises:
        ApiError: 400 for an empty or too long text, or another number of dimensions than the model has.
    """
    width = served.engine.model.config.hidden_size
    if dimensions is not None and dimensions != width:
        raise refused(
            f"dimensions: this model's vectors have {width}, and were not trained to be cut; leave dimensions out",
            "dimensions",
        )
    prompts = await asyncio.to_thread(_texts, served, given)
    try:
        async with asyncio.timeout(served.settings.request_seconds):
            vectors = await asyncio.to_thread(served.engine.embed, prompts, served.chat.adapter)
    except TimeoutError:
        raise ApiError(504, f"the vectors took more than {served.settings.request_seconds:g} s") from None
    return vectors, sum(map(len, prompts))


def _texts(served: Served, given: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
    """What to embed, as token ids. A text begins with the begin token, as in training."""
    begin = served.tokenizer.begin_ids
    many = many_of(served, given, "input")
    prompts = [[*begin, *served.tokenizer.encode(entry)] if isinstance(entry, str) else entry for entry in many]
    for at, (entry, prompt) in enumerate(zip(many, prompts, strict=True)):
        if not entry or not prompt:
            raise refused(f"input[{at}]: it is empty", "input")
        if len(prompt) > served.engine.context:
            raise refused(
                f"input[{at}]: {len(prompt)} tokens, but the model's context is {served.engine.context}; shorten it",
                "input",
                "context_length_exceeded",
            )
    return prompts


def _packed(vector: list[float]) -> str:
    """float32, little-endian, in base64: what OpenAI's client asks for where numpy is installed."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def _tokenize(served: Served, body: TokenizeRequest) -> TokenizeReply:
    if body.model is not None:
        served = served.model(body.model)
    tokenizer = served.tokenizer
    if body.messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
        ids = encode_prompt(
            tokenizer, messages_of(body.messages), tools=tools or None, thinking=thinking_of(body.thinking)
        )
    elif body.prompt is not None:
        begin = served.tokenizer.begin_ids if body.add_special_tokens is not False else []
        ids = [*begin, *tokenizer.encode(body.prompt, specials=bool(body.parse_special))]
    else:
        raise refused("prompt or messages is required", "prompt", "missing_required_parameter")
    return {
        "count": len(ids),
        "max_model_len": served.engine.context,
        "tokens": ids,
        "token_strs": [tokenizer.decode([index]) for index in ids] if body.return_token_strs else None,
    }
