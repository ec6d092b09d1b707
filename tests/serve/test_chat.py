"""Chat completions, by the openai SDK and byte for byte: order of chunks, tools, schemas, reasoning, what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import openai
import pytest
from http_models import CONTEXT, Running, Stage, said, scripted
from pydantic import BaseModel

from tinyseek.llm.base import ChatDelta, ChatOptions, Message, ToolCallDelta, Usage
from tinyseek.llm.local import LocalChat

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0)


def ask(tiny: Running, **changes: Any) -> Any:
    return tiny.post("/v1/chat/completions", {"model": "tiny", "messages": HELLO, "max_tokens": 4, **changes})


def events(text: str) -> list[Any]:
    """The data of a stream, checked: every event is one data line, and the last says that it is over."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    assert all(block.startswith("data: {") and "\n" not in block for block in blocks if block != ": keep-alive")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block != ": keep-alive"]


# ---- plain answers


def test_an_answer_whole_and_streamed_is_the_same(client: openai.OpenAI, chat: LocalChat) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12}
    expected = chat.complete(HELLO, ChatOptions(max_tokens=12))
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected.content
    assert whole.choices[0].finish_reason == expected.finish
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_the_chunks_of_a_stream_come_in_order(tiny: Running) -> None:
    chunks = events(ask(tiny, stream=True).text)
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert all("reasoning_content" in choice["delta"] and "role" not in choice["delta"] for choice in [*middle, last])
    assert not any(choice["finish_reason"] for choice in [first, *middle])
    assert (last["delta"], last["finish_reason"]) == ({"reasoning_content": None}, "length")
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)
    told = events(ask(tiny, stream=True, stream_options={"include_usage": True}).text)
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] == 4
    assert all(chunk["usage"] is None for chunk in told[:-1])


def test_several_answers_at_once(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 5, "n": 3, "temperature": 1, "seed": 4}
    whole = client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        ends += [chunk.choices[0].index] if chunk.choices[0].finish_reason else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=3)  # type: ignore[arg-type]
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 6
    for entry in told.content:
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert len(entry.top_logprobs) == 3
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token


def test_the_second_request_is_told_what_was_cached(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "the river " * 40}]
    first, second = (client.chat.completions.create(model="tiny", messages=messages, max_tokens=1) for _ in range(2))
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= first.usage.prompt_tokens - 32
    extra = second.usage.model_extra or {}
    assert extra["prompt_cache_hit_tokens"] == cached
    assert extra["prompt_cache_hit_tokens"] + extra["prompt_cache_miss_tokens"] == second.usage.prompt_tokens


def test_going_on_from_a_beginning(tiny: Running, chat: LocalChat) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "In the begin", "prefix": True}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 6}
    told = tiny.post("/beta/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert told == chat.complete(messages, ChatOptions(max_tokens=6, prefix=True)).content
    plain = tiny.post("/v1/chat/completions", {**body, "messages": [*HELLO, messages[-1] | {"prefix": False}]})
    assert plain.status_code == 200
    assert plain.json()["choices"][0]["message"]["content"] != told


# ---- forms


class Place(BaseModel):
    city: str
    celsius: int


def test_structured_outputs_are_parsed(client: openai.OpenAI) -> None:
    class Short(BaseModel):
        city: bool
        celsius: bool

    parsed = client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Short, max_tokens=200)  # type: ignore[arg-type]
    assert isinstance(parsed.choices[0].message.parsed, Short)
    with client.chat.completions.stream(
        model="tiny",
        messages=HELLO,
        response_format=Short,
        max_tokens=200,  # type: ignore[arg-type]
    ) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_other_forms(tiny: Running) -> None:
    def content(**form: Any) -> str:
        answer = ask(tiny, max_tokens=400, temperature=1, seed=1, **form).json()
        return str(answer["choices"][0]["message"]["content"])

    assert content(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert content(structured_outputs={"regex": "[a-c]{3}x"})[3] == "x"
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    form = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    jsonschema.validate(json.loads(content(structured_outputs={"json": form})), form)
    assert content(response_format={"type": "json_object"}).lstrip().startswith("{")


# ---- tools


def test_a_required_tool_is_called_with_arguments_that_fit(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": HELLO, "tools": [WEATHER], "max_tokens": 200, "reasoning_effort": "none"}
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.tool_calls
        (call,) = answer.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])  # type: ignore[index]
        told: dict[str, Any] = {"name": "", "arguments": "", "ids": []}
        for chunk in client.chat.completions.create(
            **asked, tool_choice=choice, parallel_tool_calls=False, stream=True
        ):
            for piece in chunk.choices[0].delta.tool_calls or []:
                assert piece.function is not None
                told["ids"] += [piece.id] if piece.id else []
                told["name"] += piece.function.name or ""
                told["arguments"] += piece.function.arguments or ""
        assert (told["name"], told["arguments"]) == (call.function.name, call.function.arguments)
        assert len(told["ids"]) == 1


BRIEF = {"max_tokens": 200, "reasoning_effort": "none"}
OLD = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}, **BRIEF}


def test_functions_of_the_old_api_are_called_and_told_in_the_old_way(tiny: Running) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    new = ask(tiny, tools=[WEATHER], tool_choice=named, parallel_tool_calls=False, **BRIEF).json()
    call = new["choices"][0]["message"]["tool_calls"][0]["function"]
    choice = ask(tiny, **OLD).json()["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == call
    assert "tool_calls" not in choice["message"]
    chunks = [chunk["choices"][0] for chunk in events(ask(tiny, **OLD, stream=True).text)]
    pieces = [chunk["delta"]["function_call"] for chunk in chunks if "function_call" in chunk["delta"]]
    assert [piece.get("name") for piece in pieces] == ["weather", *[None] * (len(pieces) - 1)]
    assert "".join(piece["arguments"] for piece in pieces) == call["arguments"]
    assert chunks[-1]["finish_reason"] == "function_call"
    free = ask(tiny, functions=[WEATHER["function"]], function_call="none").json()["choices"][0]
    assert "function_call" not in free["message"]


def test_a_conversation_in_the_old_form_goes_on(tiny: Running) -> None:
    """The same tokens as with tools."""
    call = {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}
    old = [
        *HELLO,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "cold"},
    ]
    new = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": "cold"},
    ]
    first, second = (tiny.post("/tokenize", {"messages": messages}).json()["tokens"] for messages in (old, new))
    assert first == second
    assert ask(tiny, messages=old, functions=[WEATHER["function"]]).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"functions": [WEATHER["function"]], "tools": [WEATHER]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({**OLD, "function_call": "required"}, "function_call"),
        ({**OLD, "function_call": {"name": "wether"}}, "tool_choice"),
        ({"messages": [*HELLO, {"role": "function", "content": "cold"}]}, "messages[1].name"),
        ({"messages": [*HELLO, {"role": "function", "name": "weather", "content": "cold"}]}, "messages[1]"),
    ],
)
def test_what_is_wrong_in_the_old_form_is_named(tiny: Running, changes: dict[str, Any], param: str) -> None:
    answer = ask(tiny, **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_no_tool_is_called_if_none_is_wanted(tiny: Running) -> None:
    message = ask(tiny, tools=[WEATHER], tool_choice="none", max_tokens=30).json()["choices"][0]["message"]
    assert "tool_calls" not in message


def test_streamed_calls_are_written_as_clients_read_them(stage: Stage) -> None:
    def answer(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
        yield ChatDelta(reasoning="hm")
        yield ChatDelta(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""),))
        yield ChatDelta(tool_calls=(ToolCallDelta(0, arguments='{"city":'),))
        yield ChatDelta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),))
        yield ChatDelta(finish="tool_calls", usage=Usage(5, 9, 2, 1))

    with stage.plays(answer) as server:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(ask(server, stream=True, tools=[WEATHER]).text)]
        assert deltas[1:-1] == [
            {"reasoning_content": "hm"},
            {
                "reasoning_content": None,
                "tool_calls": [
                    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
                ],
            },
            {"reasoning_content": None, "tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
            {"reasoning_content": None, "tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        ]
        whole = ask(server, tools=[WEATHER]).json()
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
        ],
    }
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert (whole["usage"]["prompt_cache_hit_tokens"], whole["usage"]["prompt_cache_miss_tokens"]) == (2, 3)


# ---- what is asked


def test_every_way_to_ask_for_thought(stage: Stage) -> None:
    with stage.plays(scripted(said("x"))) as server:
        for fields, expected in (
            ({}, None),
            ({"thinking": {"type": "enabled"}}, True),
            ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, False),
            ({"reasoning_effort": "none"}, False),
            ({"reasoning_effort": "low"}, True),
            ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ):
            assert ask(server, **fields).status_code == 200
            assert stage.model.asked[-1][1].thinking is expected, fields


def test_what_a_request_says_reaches_the_model(stage: Stage) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "mild"},
    ]  # fmt: skip
    with stage.plays(scripted(said("x"))) as server:
        answer = ask(
            server,
            messages=messages,
            max_completion_tokens=9,
            temperature=0,
            top_p=0,
            top_k=-1,
            stop="END",
            logit_bias={"7": -3},
            tools=[WEATHER],
            tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "function", "function": {"name": "weather"}}]}},
            unknown_field={"of": "a client"},
        )  # fmt: skip
    assert answer.status_code == 200
    heard, options = stage.model.asked[0]
    assert heard[0] == {"role": "system", "content": "Be kind."}
    assert heard[2]["reasoning_content"] == "hm"
    assert heard[3] == {"role": "tool", "content": "mild", "tool_call_id": "a"}
    assert options.max_tokens == 9
    assert (options.temperature, options.top_k, options.stop, options.logit_bias) == (0, None, ("END",), {7: -3})
    assert options.top_p is not None
    assert 0 < options.top_p < 1e-6
    assert options.tool_choice == "required"
    assert [tool["function"]["name"] for tool in options.tools or []] == ["weather"]


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"messages": []}, "at least 1", "messages"),
    ({"messages": None}, "messages", "messages"),
    ({"messages": "hi"}, "valid list", "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "'system'", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "content is required", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "valid string", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text only", None),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "no assistant message", "messages[0]"),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, *HELLO]}, "answered first", "messages[2]"),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}]}, "add the tools' answers", "messages[1]"),
    ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "b", "content": ""}]},
     "none of the calls", "messages[2].tool_call_id"),
    ({"messages": [{"role": "assistant", "content": "x", "prefix": True}, *HELLO]}, "only the last", None),
    ({"messages": [{"role": "user", "content": "x", "prefix": True}]}, "only the assistant", None),
    ({"messages": [{"role": "user", "content": "word " * 2000}]}, "context", "messages"),
    ({"model": 5}, "valid string", "model"),
    ({"temperature": "hot"}, "valid number", "temperature"),
    ({"temperature": -0.1}, "greater than", "temperature"),
    ({"temperature": 5}, "less than", "temperature"),
    ({"top_p": 1.5}, "less than", "top_p"),
    ({"seed": -1}, "greater than", "seed"),
    ({"max_tokens": -1}, "greater than", "max_tokens"),
    ({"max_tokens": 10**12}, "less than", "max_tokens"),
    ({"max_tokens": 10**30}, "", "max_tokens"),
    ({"n": 0}, "greater than", "n"),
    ({"n": 10**6}, "less than", "n"),
    ({"stop": [""]}, "at least 1 character", "stop"),
    ({"stop": ["x"] * 100}, "at most 16", "stop"),
    ({"logit_bias": {"x": 1}}, "no token id", "logit_bias"),
    ({"logit_bias": {"99999999999999999999999": 1}}, "no token id", "logit_bias"),
    ({"logit_bias": {"5": 1000}}, "between -100 and 100", "logit_bias"),
    ({"top_logprobs": 3}, "logprobs: true", "top_logprobs"),
    ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, 'no tool "weather"', "tool_choice"),
    ({"tool_choice": "required"}, "no tools", "tool_choice"),
    ({"tool_choice": "maybe"}, "required", "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {}}, "tool_choice", "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "sea"}}}, 'no tool "sea"', "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "missing", "tool_choice"),
    ({"tools": [WEATHER, WEATHER]}, "same name", "tools"),
    ({"tools": [{"type": "function"}]}, "required", "tools[0].function"),
    ({"response_format": {"type": "xml"}}, "json_schema", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "schema", "response_format.json_schema.schema"),
    (schema({"type": "integer", "minimum": 3, "maximum": 2}), "JSON schema", None),
    (schema({"type": "nothing known"}), "JSON schema", None),
    ({"structured_outputs": {"regex": "("}}, "regular expression", None),
    ({"structured_outputs": {"choice": []}}, "choice", None),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "said", "param"), BAD, ids=[json.dumps(entry[0])[:50] for entry in BAD])
def test_a_bad_request_is_told_what_is_wrong(
    tiny: Running, fields: dict[str, Any], said: str, param: str | None
) -> None:
    answer = ask(tiny, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert param in (None, error["param"])


@pytest.mark.parametrize(
    "regex", ["(((((a{1,300}){1,300}){1,300}){1,300}){1,300})b", "(a+)+(a|aa)+$" * 40, "(?:a?){3000}a{3000}"]
)
def test_an_expression_that_explodes_holds_nobody_up(tiny: Running, regex: str) -> None:
    started = time.perf_counter()
    answer = ask(tiny, structured_outputs={"regex": regex})
    assert answer.status_code in (200, 400)
    assert time.perf_counter() - started < 10


def test_a_generous_limit_is_no_error(tiny: Running) -> None:
    answer = ask(tiny, max_tokens=100_000, logit_bias={"1": 100})  # the end token, at once
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= CONTEXT


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="is not served here") as error:
        client.chat.completions.create(model="gpt-9", messages=HELLO)  # type: ignore[arg-type]
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_model_that_was_not_taught_to_chat(tiny: Running, chat: LocalChat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", None)
    answer = ask(tiny)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]
    plain = {"model": "tiny", "prompt": "by the", "stream": False, "options": {"num_predict": 4}}
    texts = [tiny.post("/api/generate", {**plain, "raw": raw}).json()["response"] for raw in (True, False)]
    assert texts[0] == texts[1]


def test_bad_requests_do_not_disturb_a_stream(tiny: Running, client: openai.OpenAI, chat: LocalChat) -> None:
    expected = chat.complete(HELLO, ChatOptions(max_tokens=40)).content
    told = ""
    for number, chunk in enumerate(
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=40, stream=True)
    ):  # type: ignore[call-overload]
        told += chunk.choices[0].delta.content or ""
        if number % 8 == 0:
            assert ask(tiny, **BAD[number % len(BAD)][0]).status_code == 400
    assert told == expected
