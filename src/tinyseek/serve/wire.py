"""What clients of OpenAI's API send, DeepSeek's and vLLM's additions included.

Types are strict (a number in quotes is an error, as at OpenAI's); fields that are not known are left aside, since every client adds
some of its own.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinyseek.knowledge.index.base import Filters
from tinyseek.serve.errors import refused

MOST_TOKENS = 1 << 20  # a max_tokens beyond it is a mistake; one beyond the context is only generous
_DEEPEST = 100  # levels of JSON


class Wire(BaseModel):
    """The base of all requests."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


# ---- reading ---------------------------------------------------------------------------------------------------------------------


class JsonRequest(Request):
    """A request whose body is JSON, whatever it says of itself: `curl -d` calls it a form."""

    async def json(self) -> Any:
        """The body.

        Raises:
            ApiError: 400, saying where it is no JSON.
        """
        return read_json(await self.body())


class JsonRoute(APIRoute):
    """A route that reads its body with `JsonRequest`."""

    def get_route_handler(self) -> Any:
        """FastAPI's own, given another request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
            scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
            return await handler(JsonRequest(scope, request.receive))

        return handle


def read_json(body: bytes) -> Any:
    """JSON from outside: no NaN, no infinity, no depth without end, no halves of characters.

    Raises:
        ApiError: 400.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number in JSON")

    def finite(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"{text[:20]} is too large a number")
        return value

    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(
            f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}", code="invalid_utf8"
        ) from None
    try:
        value = json.loads(text, parse_constant=constant, parse_float=finite)
    except json.JSONDecodeError as error:
        raise refused(
            f"the body is not JSON: line {error.lineno}, column {error.colno}: {error.msg}", code="invalid_json"
        ) from None
    except ValueError as error:  # a constant, an infinity, or a whole number of thousands of digits
        raise refused(f"the body cannot be used: {str(error)[:100]}", code="invalid_json") from None
    except RecursionError:
        raise refused(f"the body is nested deeper than {_DEEPEST} levels", code="invalid_json") from None
    _check_depth(value)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise refused("the body holds half a character (a lone \\ud800 to \\udfff)", code="invalid_json") from None
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise refused(f"the body is nested deeper than {_DEEPEST} levels", code="invalid_json")


# ---- conversations ---------------------------------------------------------------------------------------------------------------

Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class Part(Wire):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Wire):
    name: str = Field(min_length=1, max_length=256)
    arguments: str


class ToolCall(Wire):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Wire):
    """A message of a conversation; what each role may hold is checked in `chat.messages_of`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = Field(None, description="the old form of tool_calls")
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    prefix: bool | None = Field(None, description="on the last message, the assistant's: go on from its content")


class Function(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class DocumentSearch(Wire):
    """A tool that the server calls itself: {"type": "search_documents", "collection": "notes"}, or OpenAI's file_search."""

    type: Literal["search_documents", "file_search"] = "search_documents"
    collection: str | None = Field(None, min_length=1, max_length=64)
    vector_store_ids: list[str] | None = Field(
        None, min_length=1, max_length=1, description="another name of the collection"
    )
    max_num_results: int | None = Field(None, ge=1, le=50)
    names: list[str] = Field([], max_length=100, description="patterns of documents' names")
    tags: list[str] = Field([], max_length=100)

    def filters(self) -> Filters:
        """Where it looks."""
        return Filters(names=tuple(self.names), tags=tuple(self.tags))


class StreamOptions(Wire):
    include_usage: bool | None = None


class JsonSchema(Wire):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Thinking(Wire):
    type: Literal["enabled", "disabled", "auto", "adaptive"]


class StructuredOutputs(Wire):
    """vLLM's way to constrain the output."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = Field(None, description="in llguidance's Lark dialect; /v1/completions only")


class Sampling(Wire):
    """How tokens are drawn; what OpenAI's, DeepSeek's and vLLM's requests have in common."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 31, description="-1 or 0: all")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = Field(None, description="token id, as text, to what is added to its logit")
    max_tokens: Tokens | None = None
    min_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    user: str | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    search_documents: DocumentSearch | None = Field(
        None, description="let the model search a collection of the knowledge base; may stand among the tools as well"
    )
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(None, max_length=128, description="the old form of tools")
    function_call: str | dict[str, Any] | None = Field(None, description="the old form of tool_choice")
    response_format: ResponseFormat | None = None
    thinking: Thinking | None = Field(None, description="DeepSeek's switch")
    reasoning_effort: str | None = Field(
        None, description="none and minimal: answer at once; anything else: think first"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="thinking or enable_thinking: true or false")

    @model_validator(mode="before")
    @classmethod
    def _own_tool(cls, values: Any) -> Any:
        """The tool that the server calls itself, out of the list of the client's."""
        tools = values.get("tools") if isinstance(values, dict) else None
        if not isinstance(tools, list) or values.get("search_documents") is not None:
            return values
        kinds = ("search_documents", "file_search")
        own = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") in kinds]
        if not own:
            return values
        if len(own) > 1:
            raise ValueError("documents can be searched in one collection at a time")
        rest = [tool for tool in tools if tool is not own[0]]
        return {**values, "tools": rest or None, "search_documents": own[0]}


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    model: str
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="a text, token ids, or several of either"
    )
    suffix: str | None = Field(None, description="what follows what is to be written: fill in the middle")
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS, description="16 if none; 0 with echo only")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="likeliest tokens to tell at each place")
    best_of: int | None = Field(None, ge=1, le=128)
    ignore_eos: bool | None = None
    add_special_tokens: bool | None = Field(
        None, description="begin a text with the begin token, as training did (default)"
    )
    parse_special: bool | None = Field(
        None, description="read control tokens written in a text as such (default: as text)"
    )
    response_format: ResponseFormat | None = None


class EmbeddingRequest(Wire):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


class TokenizeRequest(Wire):
    """POST /tokenize, as vLLM's: of a text or of a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    thinking: Thinking | None = None
    add_special_tokens: bool | None = Field(None, description="begin a text with the begin token (default)")
    parse_special: bool | None = Field(
        None, description="read control tokens written in the text as such (default: as text)"
    )
    return_token_strs: bool | None = None


class DetokenizeRequest(Wire):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]


# ---- /v1/responses ---------------------------------------------------------------------------------------------------------------


class Item(Wire):
    """A part of what was said and done so far: a message, a reasoning, a function_call or a function_call_output."""

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class ResponseTool(Wire):
    type: str
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Wire):
    format: TextFormat | None = None


class Reasoning(Wire):
    effort: str | None = None
    summary: str | None = None


class ResponseRequest(Wire):
    """POST /v1/responses."""

    model: str
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="remember the answer for previous_response_id (default)")
    stream: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = None
