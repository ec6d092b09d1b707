"""Answers taken apart: in whatever pieces they come the parts are those of the whole, and no text is lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tinyseek.llm.answer import DSML_BEGIN, MARKS, Parts, Splitter, TokenSplitter
from tinyseek.llm.base import ChatDelta, Collector
from tinyseek.text.chat import decode_answer
from tinyseek.text.tokenizer import SPECIALS, Tokenizer, TokenizerSettings

WORDS = [
    "who",
    " are",
    "你",
    "是谁",
    "？",
    "<",
    "</",
    "think>",
    "\n",
    "  ",
    "{",
    '"',
    "a`b",
    "```",
    "<tool_call",
    ">",
    "é",
    "𝄞",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["who are you? " * 30, "你是谁？我" * 30], TokenizerSettings(vocab_size=320))


def put_together(parts: list[Parts]) -> dict[str, Any]:
    collector = Collector()
    collector.push(ChatDelta())
    for part in parts:
        collector.push(ChatDelta(reasoning=part.reasoning, content=part.content, tool_calls=part.tool_calls))
    message = collector.answers()[0].message
    for call in message.get("tool_calls", []):
        assert call.pop("id").startswith("call_")
    return message


def streamed(splitter: TokenSplitter, ids: list[int], draw: random.Random, tail: str = "") -> dict[str, Any]:
    """The ids in random pieces."""
    parts, at = [], 0
    while at < len(ids):
        size = draw.randint(1, 4)
        parts.append(splitter.push(ids[at : at + size]))
        assert len(splitter.labels) == len(ids[at : at + size])
        at += size
    if tail:
        parts.append(splitter.push_text(tail))
    return put_together([*parts, splitter.end()])


def in_pieces(text: str, draw: random.Random, **options: Any) -> dict[str, Any]:
    """A text in random pieces."""
    splitter, parts, at = Splitter(**options), [], 0
    while at < len(text):
        size = draw.choice([1, 1, 2, 3, 7, 20])
        splitter.text(text[at : at + size])
        parts.append(splitter.taken())
        at += size
    splitter.end()
    return put_together([*parts, splitter.taken()])


def words(draw: random.Random, most: int = 6) -> str:
    return "".join(draw.choices(WORDS, k=draw.randint(0, most)))


def test_our_own_format_equals_decode_answer(tokenizer: Tokenizer) -> None:
    """Random answers of the template's grammar, cut off anywhere, with half characters, thinking opened by the prompt or not."""
    control = tokenizer.controls
    seen = set()
    for seed in range(1500):
        draw = random.Random(seed)

        def text(draw: random.Random = draw) -> list[int]:
            ids = tokenizer.encode(words(draw))
            return ids if draw.random() < 0.8 else [*ids, draw.randrange(len(SPECIALS), 200)]  # any byte

        thinking = draw.random() < 0.4
        ids = text() if thinking else []
        if not thinking and draw.random() < 0.5:
            ids += [control["<think>"], *text()]
            thinks = True
        else:
            thinks = thinking
        if thinks and draw.random() < 0.8:
            ids += [control["</think>"]]
        ids += text()
        if draw.random() < 0.3:  # a mark that means nothing there
            ids += [control[draw.choice(["<think>", "</think>", "<｜tool▁sep｜>", "<｜User｜>"])], *text()]
        if draw.random() < 0.5:
            ids += [control["<｜tool▁calls▁begin｜>"]]
            for _ in range(draw.randint(0, 3)):
                name = tokenizer.encode(draw.choice(["get_weather", " 天气 ", "f"]))
                ids += [
                    control["<｜tool▁call▁begin｜>"],
                    *name,
                    control["<｜tool▁sep｜>"],
                    *text(),
                    control["<｜tool▁call▁end｜>"],
                ]
            ids += [control["<｜tool▁calls▁end｜>"]]
        if draw.random() < 0.3:
            ids = ids[: draw.randint(0, len(ids))]
        whole = decode_answer(tokenizer, ids, thinking=thinking)
        expected = {"role": "assistant", "content": whole.content}
        if whole.reasoning:
            expected["reasoning_content"] = whole.reasoning
        if whole.tool_calls:
            expected["tool_calls"] = whole.tool_calls
        got = streamed(TokenSplitter(tokenizer, thinking=thinking), ids, draw)
        assert got == expected, seed
        seen.add((bool(whole.reasoning), bool(whole.tool_calls), bool(whole.content)))
    assert len(seen) == 8


def test_nothing_is_lost_of_any_jumble_and_pieces_make_no_difference(tokenizer: Tokenizer) -> None:
    control = [tokenizer.controls[mark] for mark in MARKS if mark in tokenizer.controls]
    for seed in range(800):
        draw = random.Random(seed)
        ids: list[int] = []
        letters = []
        for _ in range(draw.randint(1, 14)):
            if draw.random() < 0.6:
                ids.append(draw.choice(control))
            else:
                letters.append(chr(ord("A") + len(letters) % 26))
                ids += tokenizer.encode(letters[-1])
        thinking, tools = draw.random() < 0.3, draw.random() < 0.8
        first = streamed(TokenSplitter(tokenizer, thinking=thinking, tools=tools), ids, draw)
        again = streamed(TokenSplitter(tokenizer, thinking=thinking, tools=tools), ids, random.Random(-1))
        assert first == again
        shown = json.dumps(first, ensure_ascii=False)
        cut_off = letters[-1:] if first.get("tool_calls") else []  # perhaps the name of a call that never came
        assert all(letter in shown for letter in letters if letter not in cut_off), (seed, tokenizer.decode(ids), first)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "北京", "days": 3},
    {"text": 'a "quoted" } ] \\ </tool_call> <tool_call> ``` \n'},
    {"deep": {"list": [{"a": [1, {}]}, []], "x": None}},
]


def test_hermes_calls_in_text() -> None:
    """Random answers of one or more calls, in random pieces: exactly what they were written from."""
    for seed in range(800):
        draw = random.Random(seed)
        calls = [
            call(draw.choice(["get_weather", "搜索"]), **draw.choice(ARGUMENTS)) for _ in range(draw.randint(1, 3))
        ]
        reasoning, content = draw.choice(["", "let me see"]), draw.choice(["", "One moment.", "a < b"])
        text = f"<think>{reasoning}</think>" if reasoning else ""
        text += content + draw.choice(["", "\n"])
        for entry in calls:
            space = draw.choice(["", "\n", " \n "])
            body = f'{{"name": {json.dumps(entry["function"]["name"])}, "arguments": {entry["function"]["arguments"]}}}'
            text += f"<tool_call>{space}{body}{space}</tool_call>" + draw.choice(["", "\n"])
        expected: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": calls}
        if reasoning:
            expected["reasoning_content"] = reasoning
        assert in_pieces(text, draw) == expected, (seed, text)


def test_hermes_marks_that_are_tokens() -> None:
    """As in Qwen's vocabulary, where `<tool_call>` typed as letters is no call."""
    import tokenizers

    plain = Tokenizer.train(["who are you? " * 30], TokenizerSettings(vocab_size=300))
    rust = tokenizers.Tokenizer.from_str(plain._rust.to_str())
    rust.add_tokens([tokenizers.AddedToken(mark, special=False) for mark in ("<tool_call>", "</tool_call>")])
    qwen = Tokenizer(rust, plain._config, None)
    for seed in range(100):
        draw = random.Random(seed)
        arguments = draw.choice(ARGUMENTS)
        body = f'\n{{"name": "f", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n'
        ids = [
            *qwen.encode("see: <tool_call> "),
            qwen.controls["<tool_call>"],
            *qwen.encode(body),
            qwen.controls["</tool_call>"],
        ]
        assert streamed(TokenSplitter(qwen, hermes=True), ids, draw) == {
            "role": "assistant",
            "content": "see: <tool_call>",
            "tool_calls": [call("f", **arguments)],
        }


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("a <tool_call>{nonsense}</tool_call> b", "a <tool_call>{nonsense}</tool_call> b", 0),
        (
            '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
            0,
        ),
        ('<tool_call>["x"]</tool_call>', '<tool_call>["x"]</tool_call>', 0),
        ("<tool_call>never closed", "<tool_call>never closed", 0),
        ("ends in <tool_c", "ends in <tool_c", 0),
        ("  kept  ", "  kept  ", 0),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', "", 1),  # cut off: what came of the arguments
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", 1),  # the other way round
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", 1),  # arguments as a text
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "", 1),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}} and more</tool_call>', "and more", 1),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "", 1),
    ],
)
def test_what_is_no_call_is_content(text: str, content: str, calls: int) -> None:
    for seed in range(30):
        got = in_pieces(text, random.Random(seed))
        assert got["content"] == content
        found = got.get("tool_calls", [])
        assert len(found) == calls
        for entry in found:
            assert entry["function"]["name"] == "f"
            assert entry["function"]["arguments"].startswith('{"a": 1')


def test_arguments_stream_as_they_come() -> None:
    splitter = Splitter()
    splitter.text('<tool_call>\n{"name": "f", "arguments": {"a": "on')
    first = splitter.taken()
    assert first.tool_calls[0].name == "f"
    assert first.tool_calls[1].arguments == '{"a": "on'
    splitter.text('e"')
    assert splitter.taken().tool_calls[0].arguments == 'e"'
    splitter.text("}}\n</tool_call>")
    assert splitter.taken().tool_calls[0].arguments == "}"
    assert splitter.calls_ended == 1


@pytest.mark.parametrize("arguments", ['{"city": "北京"}', '{\n  "a": "```"\n}', "{}"])
def test_v3_and_r1_calls_in_a_fence(tokenizer: Tokenizer, arguments: str) -> None:
    text = (
        "<think>hm</think>Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>other\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    for seed in range(40):
        got = streamed(TokenSplitter(tokenizer), tokenizer.encode(text, specials=True), random.Random(seed))
        assert got["content"] == "Let me see."
        assert [entry["function"] for entry in got["tool_calls"]] == [
            {"name": "get_weather", "arguments": arguments},
            {"name": "other", "arguments": arguments},
        ]


def test_a_function_that_is_called_function(tokenizer: Tokenizer) -> None:
    text = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        '{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    got = streamed(TokenSplitter(tokenizer), tokenizer.encode(text, specials=True), random.Random(0))
    assert got["tool_calls"][0]["function"] == {"name": "function", "arguments": '{"a": 1}'}


def test_a_call_ends_the_reasoning(tokenizer: Tokenizer) -> None:
    text = (
        "I need it<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    splitter = TokenSplitter(tokenizer, thinking=True)
    got = streamed(splitter, tokenizer.encode(text, specials=True), random.Random(0))
    assert got["reasoning_content"] == "I need it"
    assert got["tool_calls"] == [call("f")]
    assert (splitter.calls, splitter.calls_ended) == (1, 1)


def test_without_tools_marks_are_text(tokenizer: Tokenizer) -> None:
    text = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    got = streamed(TokenSplitter(tokenizer, tools=False), tokenizer.encode(text, specials=True), random.Random(0))
    assert got == {"role": "assistant", "content": text}
    assert (
        in_pieces("<tool_call>{}</tool_call>  ", random.Random(0), tools=False)["content"]
        == "<tool_call>{}</tool_call>  "
    )


def test_where_each_token_stands(tokenizer: Tokenizer) -> None:
    text = "<think>a</think>b<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>c"
    splitter = TokenSplitter(tokenizer)
    splitter.push(tokenizer.encode(text, specials=True))
    assert splitter.labels == [
        "mark",
        "reasoning",
        "mark",
        "content",
        "mark",
        "mark",
        "tool_calls",
        "mark",
        "tool_calls",
    ]


def test_a_stop_string_leaves_half_a_token(tokenizer: Tokenizer) -> None:
    got = streamed(TokenSplitter(tokenizer), tokenizer.encode("who"), random.Random(0), tail=" ar")
    assert got["content"] == "who ar"


def dsml(*calls: str) -> str:
    """A block of V3.2's calls."""
    return "<｜DSML｜function_calls>\n" + "".join(calls) + "</｜DSML｜function_calls>"


def invoke(name: str, *parameters: tuple[str, bool, str]) -> str:
    lines = [
        f'<｜DSML｜parameter name="{key}" string="{str(text).lower()}">{value}</｜DSML｜parameter>\n'
        for key, text, value in parameters
    ]
    return f'<｜DSML｜invoke name="{name}">\n{"".join(lines)}</｜DSML｜invoke>\n'


WEATHER = invoke("weather", ("city", True, "杭州 <b>"), ("days", False, "3"))
READ = [
    ("Well.\n\n" + dsml(WEATHER), "Well.", [("weather", {"city": "杭州 <b>", "days": 3})]),
    (dsml(WEATHER, invoke("now")) + " Done.", "Done.", [("weather", {"city": "杭州 <b>", "days": 3}), ("now", {})]),
    (
        dsml(WEATHER).removesuffix("</｜DSML｜function_calls>") + '<｜DSML｜invoke name="cut',
        "",
        [("weather", {"city": "杭州 <b>", "days": 3})],
    ),
    ("a <｜DSML｜function_calls> b", "a <｜DSML｜function_calls> b", []),
    (dsml(invoke("f", ("x", False, "no json"))), dsml(invoke("f", ("x", False, "no json"))), []),
    (dsml('<｜DSML｜invoke name="f">'), dsml('<｜DSML｜invoke name="f">'), []),
    ("<｜DSML｜function", "<｜DSML｜function", []),
]


@pytest.mark.parametrize(("text", "content", "calls"), READ)
def test_v3_2_s_markup_in_any_pieces(text: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    for seed in range(20):
        draw, parts, at = random.Random(seed), [], 0
        splitter = Splitter((*MARKS[:2], DSML_BEGIN))
        while at < len(text):
            size = draw.randint(1, 12)
            splitter.text(text[at : at + size])
            parts.append(splitter.taken())
            at += size
        splitter.end()
        message = put_together([*parts, splitter.taken()])
        assert message["content"].strip() == content
        told = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", [])
        ]
        assert told == calls
        assert splitter.calls == splitter.calls_ended == len(calls)
