"""RemoteChat against a server that misbehaves in every way that was seen, and some more."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from toy_server import chunk, events, reply, stream, toy_server

from tinyseek.errors import UserError
from tinyseek.llm.base import DEFAULT, ChatError, ChatModel, ChatOptions, gather
from tinyseek.llm.options import Prices, RemoteSettings
from tinyseek.llm.remote import RemoteChat, server
from tinyseek.llm.retry import PassingError, retry_after, wait_before
from tinyseek.llm.sending import chat_body
from tinyseek.llm.sse import EventReader

USER = {"role": "user", "content": "你好"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
QUICK = RemoteSettings(backoff_seconds=0.001, retries=3, first_token_seconds=5, between_tokens_seconds=5)
GOOD = stream(
    events(
        chunk(role="assistant", content=""),
        chunk(content="你好"),
        chunk(content=" 𝄞!"),
        chunk("stop"),
        {"choices": [], "usage": USAGE},
    )
)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEEPSEEK_API_KEY", "OPENAI_API_KEY", "TINYSEEK_API_KEY", "OPENAI_BASE_URL", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def quick(**changes: Any) -> RemoteSettings:
    return QUICK.model_copy(update=changes)


def answered(
    *replies: Any, options: ChatOptions = DEFAULT, messages: Any = (USER,), **settings: Any
) -> tuple[Any, Any]:
    """The answer and the server that gave it."""
    with toy_server(*replies) as toy, RemoteChat(toy.url, "m", settings=quick(**settings)) as chat:
        return chat.complete(list(messages), options), toy


# ---- streams


def test_an_answer_with_its_usage() -> None:
    answer, toy = answered(GOOD)
    assert answer.message == {"role": "assistant", "content": "你好 𝄞!"}
    assert (answer.finish, answer.usage.total_tokens, answer.usage.cost) == ("stop", 14, None)
    request = toy.requests[0]
    assert (request["method"], request["path"]) == ("POST", "/v1/chat/completions")
    assert "authorization" not in request["headers"]
    assert request["body"] == {
        "model": "m",
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_comments_empty_lines_unknown_fields_and_no_done(line_end: str) -> None:
    data = events(
        ": keep-alive\n\n",
        "\n\n\n",
        "event: message\nid: 7\nretry: 3\n",
        {
            "id": "x",
            "choices": [
                {"delta": {"role": "assistant", "content": None, "reasoning_content": None, "new": [1]}, "native": 1}
            ],
        },
        ": OPENROUTER PROCESSING\n\n",
        {"something": "else"},
        "data: 3\n\n",
        {"choices": [{"index": 0, "delta": {"content": "你好"}, "finish_reason": None}], "usage": None},
        {"choices": [{"index": 0, "delta": {"content": " 𝄞!"}, "finish_reason": "stop"}], "usage": USAGE},
        done=False,
        line_end=line_end,
    )
    answer, _ = answered(stream(b"\xef\xbb\xbf", *(data[at : at + 1] for at in range(len(data)))))
    assert (answer.content, answer.finish, answer.usage.prompt_tokens) == ("你好 𝄞!", "stop", 10)


def test_events_in_any_pieces_are_those_of_the_standard() -> None:
    """Against a plain reading of the whole text, over random texts cut anywhere."""
    parts = [
        "data: x",
        "data:",
        "data",
        "\r\n",
        "\n",
        "\r",
        ": keep",
        "event: y",
        "你",
        "data: 你\n",
        "id:3",
        "\r\n\r\n",
        "\n\n",
    ]
    for seed in range(3000):
        draw = random.Random(seed)
        text = "".join(draw.choices(parts, k=draw.randint(1, 14)))
        expected, data = [], []
        for line in [*re.split("\r\n|\n|\r", text), ""]:
            if not line and data:
                expected.append("\n".join(data))
            data = data if line else []
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
        reader, got, at, raw = EventReader(), [], 0, text.encode()
        while at < len(raw):
            size = draw.randint(1, 5)
            got += reader.push(raw[at : at + size])
            at += size
        assert [*got, *reader.end()] == expected, (seed, text)


def test_an_event_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyseek.llm.sse.LONGEST_EVENT", 1000)
    with pytest.raises(ChatError, match="without end"):
        answered(stream(b"data: " + b"x" * 5000))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_every_name(name: str) -> None:
    answer, _ = answered(
        stream(events(chunk(**{name: "so "}), chunk(**{name: "so"}), chunk(content="yes"), chunk("stop")))
    )
    assert (answer.reasoning, answer.content) == ("so so", "yes")


def test_reasoning_left_in_the_content_is_taken_out() -> None:
    pieces = ["<th", "ink>so", " so</thi", "nk>yes </think>"]
    answer, _ = answered(stream(events(*(chunk(content=piece) for piece in pieces), chunk("stop"))))
    assert (answer.reasoning, answer.content) == ("so so", "yes </think>")


def test_calls_however_they_come() -> None:
    def call(**fields: Any) -> dict[str, Any]:
        return chunk(tool_calls=[fields])

    openai = [
        call(index=0, id="a", type="function", function={"name": "f", "arguments": ""}),
        call(index=0, function={"arguments": '{"x":'}),
        call(index=0, id="a", function={"name": None, "arguments": " 1}"}),
        call(index=1, id="b", function={"name": "g", "arguments": "{}"}),
    ]
    no_index = [
        call(id="a", function={"name": "f", "arguments": '{"x":'}),
        call(function={"arguments": " 1}"}),
        call(id="b", function={"name": "g", "arguments": "{}"}),
    ]
    whole = [
        chunk(
            tool_calls=[
                {"id": "a", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "b", "function": {"name": "g"}},
            ]
        )
    ]
    for chunks, finish in ((openai, "tool_calls"), (no_index, "stop"), (whole, "stop")):
        answer, _ = answered(stream(events(*chunks, chunk(finish))))
        assert answer.finish == "tool_calls"
        assert [(one["id"], one["function"]["name"]) for one in answer.tool_calls] == [("a", "f"), ("b", "g")]
        assert json.loads(answer.tool_calls[0]["function"]["arguments"]) == {"x": 1}
    bare = [call(function={"name": "f", "arguments": "{}"}), call(function={"name": "g", "arguments": "{}"})]
    answer, _ = answered(stream(events(*bare, chunk("tool_calls"))))
    assert [one["function"]["name"] for one in answer.tool_calls] == ["f", "g"]
    assert all(one["id"].startswith("call_") for one in answer.tool_calls)


def test_several_answers_and_logprobs() -> None:
    entry = {"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": [{"token": "x", "logprob": -2}]}
    first = {
        "choices": [
            {"index": 1, "delta": {"content": "hé"}, "logprobs": {"content": [entry, "odd"]}, "finish_reason": "length"}
        ]
    }
    with toy_server(stream(events(first, chunk(content="b"), chunk("stop")))) as toy, RemoteChat(toy.url, "m") as chat:
        deltas = list(chat.stream([USER], ChatOptions(n=2, logprobs=True, top_logprobs=1)))
    answers = gather(deltas)
    assert [(one.content, one.finish) for one in answers] == [("b", "stop"), ("hé", "length")]
    token = answers[1].logprobs[0]
    assert (token.token, token.bytes, token.logprob, token.top[0].token) == ("hé", "hé".encode(), -0.5, "x")
    assert deltas[-1].finish == "length"


def test_a_server_that_does_not_stream() -> None:
    message = {"role": "assistant", "content": "hi", "reasoning_content": "hm", "tool_calls": None}
    answer, _ = answered(
        reply(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE})
    )
    assert (answer.content, answer.reasoning, answer.usage.completion_tokens) == ("hi", "hm", 4)


def test_what_an_answer_cost() -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "prompt_cache_hit_tokens": 600,
        "completion_tokens_details": {"reasoning_tokens": 70},
    }
    data = stream(events(chunk("stop", content="x"), {"choices": [], "usage": usage}))
    prices = Prices(prompt=2.0, cached=0.5, completion=8.0)
    with toy_server(data) as toy, RemoteChat(toy.url, "m", settings=quick(prices=prices)) as chat:
        first = chat.complete([USER]).usage
        chat.complete([USER])
        assert first is not None
        assert (first.cached_tokens, first.reasoning_tokens) == (600, 70)
        assert first.cost == pytest.approx((400 * 2 + 600 * 0.5 + 500 * 8) / 1e6)
        assert chat.total.prompt_tokens == 2000
        assert chat.total.cost == pytest.approx(2 * first.cost)


# ---- failures


@pytest.mark.parametrize(
    "failure",
    [
        reply(429, {"error": {"message": "slow down"}}),
        reply(500, "oh"),
        reply(503, {"error": "busy"}, retry_after="0"),
        ["hang up"],
        [b"HTTP/1.1 200 OK\r\ncontent-type: text/ev", "hang up"],
        [b"nonsense\r\n\r\n"],
        stream(),
        stream(events(chunk(role="assistant", content=""), done=False)),
        stream(events(chunk(role="assistant"), done=False), "hang up"),
        stream(events({"error": {"message": "overloaded", "code": 503}})),
        stream(events({"error": {"message": "overloaded", "type": "server_error"}})),
        stream(events(chunk("insufficient_system_resource"))),
    ],
)
def test_it_is_asked_again_while_nothing_was_said(failure: Any) -> None:
    answer, toy = answered(failure, failure, GOOD)
    assert answer.content == "你好 𝄞!"
    assert len(toy.requests) == 3


@pytest.mark.parametrize(
    "ending",
    [
        ["hang up"],
        [],
        [events({"error": {"message": "overloaded", "code": 503}})],
        [events(chunk("insufficient_system_resource"))],
        [b"data: {nonsense\n\n"],
    ],
)
def test_an_answer_that_breaks_off_is_not_begun_again(ending: Any) -> None:
    with (
        toy_server(stream(events(chunk(content="half"), done=False), 0.05, *ending), GOOD) as toy,
        RemoteChat(toy.url, "m") as chat,
    ):
        deltas = chat.stream([USER])
        assert next(deltas).content == "half"
        with pytest.raises(ChatError):
            list(deltas)
        assert len(toy.requests) == 1


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (reply(400, {"error": {"message": "bad\n  schema", "type": "invalid_request_error"}}), "says 400: bad schema"),
        (reply(401, {"error": {"message": "no"}}), "401: no; set TINYSEEK_API_KEY to a valid key"),
        (reply(402, {"error": {"message": "Insufficient Balance"}}), "no balance left"),
        (reply(404, {"detail": "Not Found"}), "404: Not Found; is 'm' one of its models"),
        (reply(422, "<html>oh</html>"), "422: Whatever"),
        (reply(302, "", location="http://evil/"), "elsewhere"),
        (stream(events({"error": {"message": "filtered", "code": "content_policy"}})), "says: filtered"),
        (stream(b"data: {nonsense\n\n"), "no JSON: '{nonsense'"),
        (reply(200, "hello"), "before the answer was complete"),
        (
            [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{x"],
            "no JSON",
        ),
    ],
)
def test_refusals_say_why(failure: Any, message: str) -> None:
    with toy_server(failure) as toy, RemoteChat(toy.url, "m", settings=quick(retries=0)) as chat:
        with pytest.raises(ChatError, match=message) as refused:
            chat.complete([USER])
        assert toy.url in str(refused.value)
        assert len(toy.requests) == 1


def test_nobody_there() -> None:
    with toy_server(GOOD) as toy:
        url = toy.url
    with (
        RemoteChat(url, "m", settings=quick(retries=1)) as chat,
        pytest.raises(ChatError, match=r"is it running\?.*asked 2 times"),
    ):
        chat.complete([USER])
    with RemoteChat("http://no.such.host.invalid/v1", "m", settings=quick(retries=0)) as chat, pytest.raises(ChatError):
        chat.models()


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSEEK_API_KEY", "sk-secret-1234")
    echo = reply(401, {"error": {"message": "wrong key sk-secret-1234 given"}})
    with toy_server(echo) as toy, RemoteChat(toy.url, "m", settings=quick()) as chat:
        with pytest.raises(ChatError) as refused:
            chat.complete([USER])
        assert toy.requests[0]["headers"]["authorization"] == "Bearer sk-secret-1234"
    assert "secret" not in str(refused.value) + repr(chat) + repr(refused.value)
    assert "wrong key *** given" in str(refused.value)
    monkeypatch.setenv("OTHER", "sk-other")
    with toy_server(GOOD) as toy, RemoteChat(toy.url, "m", settings=quick(key_from="OTHER")) as chat:
        chat.complete([USER])
        assert toy.requests[0]["headers"]["authorization"] == "Bearer sk-other"
    with toy_server(GOOD) as toy, RemoteChat(toy.url, "m", kind="ollama") as chat:
        chat.complete([USER])
        assert "authorization" not in toy.requests[0]["headers"]


def test_waits_grow_and_the_server_goes_first() -> None:
    settings = RemoteSettings(backoff_seconds=1, retries=6, longest_wait_seconds=10)
    for attempt, least, most in ((0, 0.5, 1), (1, 1, 2), (3, 4, 8), (5, 10, 10)):
        waits = [wait_before(attempt, PassingError("x"), settings) for _ in range(50)]
        assert all(least <= wait <= most for wait in waits)
        assert len(set(waits)) > 1 or least == most
    assert 7 <= wait_before(0, PassingError("x", 429, 7.0), settings) <= 8
    with pytest.raises(ChatError, match="asks to wait 30 seconds"):
        wait_before(0, PassingError("x", 429, 30.0), settings)
    with pytest.raises(ChatError, match=r"x \(asked 7 times\)"):
        wait_before(6, PassingError("x"), settings)


def test_retry_after_in_seconds_or_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "-3"}) == 0
    assert 15 < (retry_after({"retry-after": later}) or 0) < 21
    for odd in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert retry_after(odd) is None
    with (
        toy_server(reply(429, {"error": "slow"}, retry_after="0.2"), GOOD) as toy,
        RemoteChat(toy.url, "m", settings=quick()) as chat,
    ):
        began = time.monotonic()
        chat.complete([USER])
        assert time.monotonic() - began >= 0.2


def test_a_server_that_never_says_anything() -> None:
    for slow in (
        [5.0],
        stream(*[b": keep-alive\n\n", 0.05] * 40),
        stream(events(chunk(role="assistant"), done=False), 5.0),
    ):
        began = time.monotonic()
        with pytest.raises(ChatError, match=r"no token for 0 seconds|no answer in time"):
            answered(slow, retries=0, first_token_seconds=0.3)
        assert time.monotonic() - began < 2


def test_a_server_that_falls_silent() -> None:
    began = time.monotonic()
    with pytest.raises(ChatError, match=r"nothing more.*the answer broke off"):
        answered(stream(events(chunk(content="a"), done=False), 5.0), between_tokens_seconds=0.2)
    with pytest.raises(ChatError, match=r"nothing more"):  # signs of life without a word are not enough for ever
        answered(
            stream(events(chunk(content="a"), done=False), *[b": keep-alive\n\n", 0.05] * 40),
            between_tokens_seconds=0.2,
            first_token_seconds=0.4,
        )
    assert time.monotonic() - began < 3
    kept, _ = answered(
        stream(
            events(chunk(content="a"), done=False), *[b": keep-alive\n\n", 0.1] * 5, events(chunk("stop", content="b"))
        ),
        between_tokens_seconds=0.3,
    )
    assert kept.content == "ab"


def test_blank_json_is_asked_for_again() -> None:
    options = ChatOptions(response_format={"type": "json_object"})
    blank = stream(events(chunk(content=" \n"), chunk("stop"), {"choices": [], "usage": USAGE}))
    answer, toy = answered(blank, blank, stream(events(chunk(content=' {"a": 1}'), chunk("stop"))), options=options)
    assert answer.parsed == {"a": 1}
    assert len(toy.requests) == 3
    thought = stream(events(chunk(reasoning_content="hm"), chunk("stop")))
    answer, toy = answered(thought, stream(events(chunk(content='{"a": 1}'), chunk("stop"))), options=options)
    assert (answer.parsed, answer.reasoning) == ({"a": 1}, "")
    answer, toy = answered(blank, options=options, retries=2)
    assert (answer.content.strip(), answer.finish, answer.parsed) == ("", "stop", None)
    answer, toy = answered(blank)
    assert len(toy.requests) == 1


def test_a_server_that_knows_no_stream_options() -> None:
    refusal = reply(400, {"error": {"message": "Unrecognized field: stream_options"}})
    answer, toy = answered(refusal, GOOD)
    assert answer.content == "你好 𝄞!"
    assert ["stream_options" in body for body in toy.bodies] == [True, False]


# ---- leaving, and asyncio


def test_leaving_early_hangs_up() -> None:
    endless = stream(*[events(chunk(content="x"), done=False), 0.02] * 500)
    with toy_server(endless) as toy, RemoteChat(toy.url, "m") as chat:
        deltas = chat.stream([USER])
        next(deltas)
        deltas.close()  # type: ignore[attr-defined]
        assert toy.hung_up.wait(3)

    async def cancelled() -> None:
        chat = RemoteChat(toy.url, "m")

        async def read() -> None:
            async for delta in chat.astream([USER]):
                assert delta.content == "x"
                reading.set()

        reading = asyncio.Event()
        task = asyncio.create_task(read())
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await chat.aclose()

    with toy_server(endless) as toy:
        asyncio.run(cancelled())
        assert toy.hung_up.wait(3)


def test_many_at_once_by_asyncio() -> None:
    async def all_of_them(url: str) -> list[str]:
        chat = RemoteChat(url, "m", settings=QUICK)
        answers = await asyncio.gather(*(chat.acomplete_all([USER]) for _ in range(20)))
        assert chat.total.prompt_tokens == 200
        await chat.aclose()
        return [answer[0].content for answer in answers]

    with toy_server(GOOD) as toy:
        assert asyncio.run(all_of_them(toy.url)) == ["你好 𝄞!"] * 20


def test_closing_ends_what_is_being_read() -> None:
    with toy_server(stream(events(chunk(content="x"), done=False), 5.0)) as toy:
        chat = RemoteChat(toy.url, "m")
        deltas = chat.stream([USER])
        next(deltas)
        chat.close()
        with pytest.raises(ChatError, match="closed"):
            next(deltas)


# ---- what is sent

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLED = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "one", "reasoning_content": "left out"},
    {"role": "user", "content": "2"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "passed back",
        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "a", "content": "42"},
    {"role": "assistant", "content": "two", "reasoning_content": "this too", "tool_calls": []},
    {"role": "user", "content": "3"},
]


def test_reasoning_goes_back_on_turns_with_calls_alone() -> None:
    for kind in ("deepseek", "other", "ollama"):
        sent = chat_body(kind, "m", CALLED, ChatOptions())["messages"]
        assert [message.get("reasoning_content") for message in sent] == [
            None,
            None,
            None,
            "passed back",
            None,
            "this too",
            None,
        ]
        assert all("reasoning" not in message for message in sent)
    sent = chat_body("openai", "m", CALLED, ChatOptions())["messages"]
    assert not any("reasoning_content" in message for message in sent)
    assert "tool_calls" not in sent[5]
    assert CALLED[1]["reasoning_content"] == "left out"  # ours stay as they were


def test_options_as_each_server_wants_them() -> None:
    body = chat_body(
        "other",
        "m",
        [USER],
        ChatOptions(
            temperature=0.5,
            top_k=3,
            max_tokens=7,
            stop=("a",),
            n=2,
            logit_bias={5: 1.0},
            thinking=False,
            seed=1,
            choice=["a"],
        ),
    )
    assert (
        body
        | {
            "temperature": 0.5,
            "top_k": 3,
            "max_tokens": 7,
            "stop": ["a"],
            "n": 2,
            "logit_bias": {"5": 1.0},
            "seed": 1,
            "chat_template_kwargs": {"thinking": False, "enable_thinking": False},
            "structured_outputs": {"choice": ["a"]},
        }
        == body
    )
    body = chat_body("openai", "m", [USER], ChatOptions(max_tokens=7))
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body
    assert chat_body("deepseek", "m", [USER], ChatOptions(thinking=True))["thinking"] == {"type": "enabled"}
    assert chat_body("ollama", "m", [USER], ChatOptions(thinking=False))["reasoning_effort"] == "none"
    named = chat_body(
        "other", "m", [USER], ChatOptions(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "f"}})
    )
    assert named["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert "tool_choice" not in chat_body("other", "m", [USER], ChatOptions(tools=[TOOL]))


def test_what_a_server_would_ignore_in_silence_is_refused() -> None:
    for kind, options in (
        ("openai", {"top_k": 3}),
        ("deepseek", {"regex": "a"}),
        ("ollama", {"min_p": 0.1}),
        ("openai", {"prefix": True}),
    ):
        with pytest.raises(UserError, match=r"API|Ollama"):
            chat_body(kind, "m", [USER], ChatOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no messages"):
        chat_body("other", "m", [], ChatOptions())
    with pytest.raises(UserError, match="assistant's"):
        chat_body("other", "m", [USER], ChatOptions(prefix=True))


def test_deepseek_gets_its_json_prefixes_and_strict_tools() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "title": "T"}}}
    body = chat_body(
        "deepseek", "m", [{"role": "system", "content": "be kind"}, USER], ChatOptions(response_format=schema)
    )
    assert body["response_format"] == {"type": "json_object"}
    assert (
        body["messages"][0]["content"]
        == 'be kind\n\nAnswer in JSON of this JSON schema:\n{"type": "object", "title": "T"}'
    )
    plain = ChatOptions(response_format={"type": "json_object"})
    assert chat_body("deepseek", "m", [USER], plain)["messages"][0] == {"role": "system", "content": "Answer in JSON."}
    asked = [{"role": "user", "content": "as JSON please"}]
    assert chat_body("deepseek", "m", asked, plain)["messages"] == asked
    begun = [USER, {"role": "assistant", "content": "Once"}]
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    for options, messages, path in (
        (ChatOptions(), [USER], "/v1/chat/completions"),
        (ChatOptions(prefix=True), begun, "/v1/beta/chat/completions"),
        (ChatOptions(tools=[strict]), [USER], "/v1/beta/chat/completions"),
    ):
        with toy_server(GOOD) as toy, RemoteChat(toy.url, "m", kind="deepseek", key="x") as chat:
            chat.complete(messages, options)
            assert toy.requests[0]["path"] == path
            assert toy.bodies[0]["messages"][-1].get("prefix") == (True if options.prefix else None)


def test_pictures_go_through() -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}
    assert chat_body("other", "m", [picture], ChatOptions())["messages"] == [picture]


# ---- embeddings, models, addresses


def test_embeddings_come_in_the_texts_order() -> None:
    def vectors(numbers: list[int]) -> list[Any]:
        data = [{"index": at, "embedding": [number, 1]} for at, number in enumerate(numbers)]
        return reply(200, {"data": data[::-1], "usage": {"prompt_tokens": 3}})

    with (
        toy_server(reply(503, "busy"), vectors(list(range(64))), vectors([64, 65])) as toy,
        RemoteChat(toy.url, "m", settings=QUICK) as chat,
    ):
        assert chat.embed([f"text {number}" for number in range(66)]) == [[float(number), 1.0] for number in range(66)]
        assert [len(body["input"]) for body in toy.bodies] == [64, 64, 2]
        assert toy.requests[0]["path"] == "/v1/embeddings"
        assert chat.total.prompt_tokens == 6
        assert chat.embed([]) == []
    for odd in ({"data": [{"embedding": "x"}]}, {"data": []}, {"data": None}, {}, {"data": [3]}):
        with toy_server(reply(200, odd)) as toy, RemoteChat(toy.url, "m") as chat, pytest.raises(ChatError):
            chat.embed(["a"])


def test_an_address_is_enough() -> None:
    with toy_server(reply(200, {"data": [{"id": "first"}, {"id": "second"}]}), GOOD) as toy:
        address = toy.url.removesuffix("/v1")
        with ChatModel.open(address, remote=QUICK) as chat:
            assert isinstance(chat, RemoteChat)
            assert (chat.model, chat.name, chat.url) == ("first", "first", toy.url)
            assert chat.complete([USER]).content == "你好 𝄞!"
            assert toy.bodies[-1]["model"] == "first"
        for where in (toy.url + "/", toy.url + "/chat/completions"):
            named = ChatModel.open(where, model="x")
            assert isinstance(named, RemoteChat)
            assert named.url == toy.url
    with toy_server(reply(200, {"data": []})) as toy, pytest.raises(UserError, match="model=NAME"):
        ChatModel.open(toy.url)


def test_services_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="export DEEPSEEK_API_KEY="):
        ChatModel.open("deepseek")
    with pytest.raises(UserError, match="export OPENAI_API_KEY="):
        ChatModel.open("openai:gpt")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "a")
    monkeypatch.setenv("OPENAI_API_KEY", "b")
    for where, url, model, kind in (
        ("deepseek", "https://api.deepseek.com", "deepseek-chat", "deepseek"),
        ("deepseek:deepseek-reasoner", "https://api.deepseek.com", "deepseek-reasoner", "deepseek"),
        ("openai:gpt", "https://api.openai.com/v1", "gpt", "openai"),
        ("ollama:qwen3:0.6b", "http://127.0.0.1:11434/v1", "qwen3:0.6b", "ollama"),
    ):
        chat = ChatModel.open(where)
        assert isinstance(chat, RemoteChat)
        assert (chat.url, chat.model, chat.kind) == (url, model, kind)
    at_deepseek = ChatModel.open("https://api.deepseek.com", model="x")
    assert isinstance(at_deepseek, RemoteChat)
    assert (at_deepseek.kind, at_deepseek.url, at_deepseek._key) == ("deepseek", "https://api.deepseek.com", "a")
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:5000")
    assert server("ollama", "x").url == "http://127.0.0.1:5000/v1"
    for where, message in (
        ("openai", "which model"),
        ("http://", "no address"),
        ("http://x:notaport", "no address"),
        ("http://me:secret@host", "does not belong into an address"),
        ("deepseek:a", "named twice"),
    ):
        with pytest.raises(UserError, match=message):
            ChatModel.open(where, model="b" if where == "deepseek:a" else None)
