"""/v1/responses, by the openai SDK: items, events, going on from an answer, what is remembered and for whom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from http_models import Running, ScriptedChat, Stage, running, said, scripted
from openai.types.responses import Response, ResponseFunctionToolCall, ResponseOutputMessage
from pydantic import BaseModel

from tinyseek.llm.base import ChatDelta, ChatOptions, Message, ToolCallDelta, Usage
from tinyseek.llm.local import LocalChat
from tinyseek.serve.kept import Kept, Store

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def client_of(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    return client_of(tiny)


def everything(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
    """Thinks, speaks, calls twice."""
    yield ChatDelta(reasoning="Let me ")
    yield ChatDelta(reasoning="see.")
    yield ChatDelta(content="One ")
    yield ChatDelta(content="moment.")
    yield ChatDelta(tool_calls=(ToolCallDelta(0, "call_1", "weather", ""), ToolCallDelta(0, arguments='{"city"')))
    yield ChatDelta(tool_calls=(ToolCallDelta(0, arguments=':"Oslo"}'),))
    yield ChatDelta(tool_calls=(ToolCallDelta(1, "call_2", "weather", "{}"),))
    yield ChatDelta(finish="tool_calls", usage=Usage(11, 7, 4, 3))


def test_an_answer_whole_and_streamed(client: openai.OpenAI, chat: LocalChat) -> None:
    expected = chat.complete([{"role": "user", "content": "Hello"}], ChatOptions(max_tokens=10)).content
    whole = client.responses.create(model="tiny", input="Hello", max_output_tokens=10)
    assert whole.output_text == expected
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(model="tiny", input="Hello", max_output_tokens=10) as stream:
        told = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert told == expected


def test_the_events_of_a_stream(stage: Stage) -> None:
    with stage.plays(everything) as server:
        client = client_of(server)
        events = list(client.responses.create(model="tiny", input="Hi", tools=[TOOL], stream=True))
        whole = client.responses.create(model="tiny", input="Hi", tools=[TOOL])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    item = ["output_item.added", "content_part.added"]
    ended = ["content_part.done", "output_item.done"]
    call = "function_call_arguments"
    assert kinds == [
        "created", "in_progress",
        *item, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", *ended,
        *item, "output_text.delta", "output_text.delta", "output_text.done", *ended,
        item[0], f"{call}.delta", f"{call}.delta", f"{call}.done", ended[1],
        item[0], f"{call}.delta", f"{call}.done", ended[1],
        "completed",
    ]  # fmt: skip
    last = events[-1]
    assert last.type == "response.completed"
    for response in (last.response, whole):
        Response.model_validate(response.model_dump(), strict=True)
        reasoning, message, first, second = response.output
        assert reasoning.type == "reasoning"
        assert reasoning.content is not None
        assert reasoning.content[0].text == "Let me see."
        assert isinstance(message, ResponseOutputMessage)
        assert response.output_text == "One moment."
        assert isinstance(first, ResponseFunctionToolCall)
        assert isinstance(second, ResponseFunctionToolCall)
        assert (first.call_id, first.name, json.loads(first.arguments)) == ("call_1", "weather", {"city": "Oslo"})
        assert second.arguments == "{}"
        assert response.usage is not None
        assert response.usage.input_tokens_details.cached_tokens == 4
        assert response.usage.output_tokens_details.reasoning_tokens == 3


def test_an_answer_that_breaks_off_says_so(stage: Stage) -> None:
    def answer(messages: Sequence[Message], options: ChatOptions) -> Iterator[ChatDelta]:
        yield ChatDelta(content="One")
        raise RuntimeError("the secret of the house")

    with stage.plays(answer, pause=0.05) as server:
        last = list(client_of(server).responses.create(model="tiny", input="Hi", stream=True))[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert "secret" not in last.response.error.message
        with pytest.raises(openai.InternalServerError) as error:
            client_of(server).responses.create(model="tiny", input="Hi")
        assert "secret" not in str(error.value)


def test_structured_outputs(client: openai.OpenAI) -> None:
    class Both(BaseModel):
        yes: bool
        no: bool

    asked: Any = {"model": "tiny", "input": "Hi", "max_output_tokens": 200, "reasoning": {"effort": "none"}}
    parsed = client.responses.parse(**asked, text_format=Both)
    assert isinstance(parsed.output_parsed, Both)
    with client.responses.stream(**asked, text_format=Both) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_a_tool_is_called_and_answered(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": [TOOL], "max_output_tokens": 300, "reasoning": {"effort": "none"}}
    answer = client.responses.create(
        **asked, input="Hi", tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False
    )
    (call,) = answer.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert json.loads(call.arguments) == {"city": "Oslo"}
    given = [{"type": "function_call_output", "call_id": call.call_id, "output": "cold"}]
    after = client.responses.create(**asked, input=given, previous_response_id=answer.id, tool_choice="none")
    spelt_out: Any = [{"role": "user", "content": "Hi"}, *(item.to_dict() for item in answer.output), *given]
    same = client.responses.create(**asked, input=spelt_out, tool_choice="none")
    assert after.output_text == same.output_text
    assert after.usage is not None
    assert same.usage is not None
    assert after.usage.input_tokens == same.usage.input_tokens


def test_going_on_from_an_answer(stage: Stage) -> None:
    with stage.plays(scripted(said("Well."))) as server:
        client = client_of(server)
        first = client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
        second = client.responses.create(model="tiny", input="And?", previous_response_id=first.id)
        assert stage.model.asked[0][0][0] == {"role": "system", "content": "Be brief."}
        assert [message["content"] for message in stage.model.asked[1][0]] == ["Hi", "Well.", "And?"]
        assert client.responses.retrieve(second.id).output_text == "Well."
        items = client.responses.input_items.list(second.id).data
        assert [item.content[0].text for item in items] == ["And?"]  # type: ignore[union-attr]
        client.responses.delete(first.id)
        for gone in (first.id, client.responses.create(model="tiny", input="Hi", store=False).id, "resp_x"):
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(gone)
            with pytest.raises(openai.BadRequestError) as error:
                client.responses.create(model="tiny", input="And?", previous_response_id=gone)
            assert error.value.code == "previous_response_not_found"
        assert client.responses.create(model="tiny", input="So?", previous_response_id=second.id).output_text == "Well."


def test_an_answer_is_remembered_for_the_key_that_asked(chat: LocalChat) -> None:
    with running(ScriptedChat(chat.engine, scripted(said("Well."))), api_key=["ada", "bob"]) as server:
        kept = client_of(server, "ada").responses.create(model="tiny", input="Hi").id
        assert client_of(server, "ada").responses.retrieve(kept).id == kept
        for act in ("retrieve", "delete"):
            with pytest.raises(openai.NotFoundError):
                getattr(client_of(server, "bob").responses, act)(kept)


def test_memory_is_bounded() -> None:
    def kept(name: str, size: int) -> Kept:
        reply: Any = {"id": name}
        return Kept(b"", reply, [], [], size)

    store = Store(3, 100)
    for number in range(5):
        store.keep(kept(str(number), 10))
        store.find("1", b"")
    assert [name for name in "01234" if store.find(name, b"")] == ["1", "3", "4"]
    store.keep(kept("large", 80))
    assert len(store) == 3
    store.keep(kept("huge", 101))
    assert len(store) == 0
    store.keep(kept("small", 100))
    assert store.find("small", b"") is not None


BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "at least"),
    ({"input": ""}, "at least"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "not known here"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "not known here"),
    ({"input": [{}]}, "not known here"),
    ({"input": [{"role": "user"}]}, "content is required"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "text only"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "no assistant message"),
    ({"input": [{"type": "function_call", "call_id": "x"}]}, "name and arguments"),
    ({"tools": [{"type": "web_search"}]}, "only named functions"),
    ({"tool_choice": {"type": "function", "name": "weather"}}, "no tool"),
    ({"tools": [TOOL], "tool_choice": {}}, "tool_choice"),
    ({"background": True}, "background"),
    ({"max_output_tokens": 0}, "greater"),
    ({"text": {"format": {"type": "json_schema"}}}, "schema"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"input": "word " * 3000}, "context"),
]


@pytest.mark.parametrize(("fields", "expected"), BAD, ids=[json.dumps(fields)[:40] for fields, _ in BAD])
def test_a_bad_request(tiny: Running, fields: dict[str, Any], expected: str) -> None:
    answer = tiny.post("/v1/responses", {"model": "tiny", "input": "Hi", "max_output_tokens": 3, **fields})
    assert answer.status_code == 400, answer.text
    assert expected in answer.json()["error"]["message"]
