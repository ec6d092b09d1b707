"""What OpenAI's API answers: the types of our answers, for the type checker and for /openapi.json."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on


class ErrorBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    error: ErrorBody


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None  # the model that this one is an adapter of, as vLLM tells it
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class PromptDetails(TypedDict):
    cached_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class UsageReply(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class LogprobReply(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    content: list[LogprobReply]
    reasoning_content: NotRequired[list[LogprobReply]]
    refusal: None


class CalledFunction(TypedDict):
    name: NotRequired[str]
    arguments: str


class CallReply(TypedDict):
    index: NotRequired[int]
    id: NotRequired[str | None]
    type: NotRequired[Literal["function"]]
    function: CalledFunction


class MessageReply(TypedDict):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None
    refusal: None
    tool_calls: NotRequired[list[CallReply]]
    function_call: NotRequired[CalledFunction]  # for those who asked in the old form
    annotations: NotRequired[list[dict[str, Any]]]  # of documents that it cites: url_citation
    citations: NotRequired[list[dict[str, Any]]]  # the same, with places and quotes


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | None]
    reasoning_content: str | None
    tool_calls: NotRequired[list[CallReply]]
    function_call: NotRequired[CalledFunction]
    annotations: NotRequired[list[dict[str, Any]]]
    citations: NotRequired[list[dict[str, Any]]]


class ChatChoice(TypedDict):
    index: int
    message: MessageReply
    logprobs: ChoiceLogprobs | None
    finish_reason: str


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: str | None


class ChatReply(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageReply


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: NotRequired[UsageReply | None]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionReply(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[UsageReply | None]


class EmbeddingData(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(TypedDict):
    object: Literal["list"]
    model: str
    data: list[EmbeddingData]
    usage: EmbeddingUsage


class TokenizeReply(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(TypedDict):
    prompt: str


class TokenizerInfo(TypedDict):
    tokenizer_class: str
    bos_token: str
    eos_token: str
    pad_token: str
    chat_template: str | None


class Health(TypedDict):
    status: Literal["ok"]
    model: str


class ResponseReply(TypedDict):
    """/v1/responses; the items of `output` are of several kinds, described in OpenAI's reference."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: dict[str, Any] | None
    user: str | None


class DeletedReply(TypedDict):
    id: str
    object: Literal["response"]
    deleted: bool


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in {
        400: "the request cannot be served as it is",
        401: "no key, or a wrong one",
        403: "a web page of another origin, or a name that is not this server",
        404: "no such model",
        408: "the request came in too slowly",
        413: "the request is too large",
        429: "too many requests; Retry-After says when to come again",
        500: "a fault of the server",
        503: "the model is not running",
        504: "the answer took too long",
    }.items()
}
