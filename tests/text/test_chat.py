"""Conversations: the template against transformers, ids and masks, safety, and the files they come from."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseek.errors import UserError
from tinyseek.text import chat
from tinyseek.text.chat import (
    decode_answer,
    encode_conversation,
    encode_examples,
    encode_prompt,
    read_conversations,
    split_reasoning,
)
from tinyseek.text.tokenizer import SPECIALS, Tokenizer, TokenizerSettings

TOOL = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}

# A published kind of template, with no {% generation %}: ChatML, as Qwen2.5 has it.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = (
        "the answer to that question is yes, no; 你好，我是助手。 12 + 34 = 46 <think> weather user assistant\n" * 20
    )
    return Tokenizer.train([words], TokenizerSettings(vocab_size=400))


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


def user(content: str) -> chat.Message:
    return {"role": "user", "content": content}


def assistant(content: str, **more) -> chat.Message:
    return {"role": "assistant", "content": content, **more}


def said(tokenizer: Tokenizer, pair: tuple[list[int], list[bool]]) -> list[str]:
    """The learnt stretches of an example."""
    parts, before = [], False
    for index, learnt in zip(*pair, strict=True):
        if learnt and not before:
            parts.append([])
        if learnt:
            parts[-1].append(index)
        before = learnt
    return [tokenizer.decode(part) for part in parts]


CONVERSATIONS = {
    "one": [user("1+1?"), assistant("2")],
    "system": [
        {"role": "system", "content": "Be brief."},
        user("你好"),
        assistant("你好！"),
        user("bye"),
        assistant("bye"),
    ],
    "thought": [user("1+1?"), assistant("<think>1 and 1\n</think>\n\n2"), user("and?"), assistant("<think>x</think>y")],
    "reasoning_content": [
        user("q"),
        assistant("a", reasoning_content="r"),
        user("q"),
        assistant("b", reasoning_content="s"),
    ],
    "tools": [
        {"role": "system", "content": "", "tools": [TOOL]},
        user("天气?"),
        assistant("", reasoning_content="look", tool_calls=[CALL, CALL]),
        {"role": "tool", "content": "晴"},
        {"role": "tool", "content": "雨"},
        assistant("晴和雨。"),
        user("谢谢"),
        assistant("不客气"),
    ],
    "arguments as an object": [
        user("q"),
        assistant(None, tool_calls=[{"function": {"name": "f", "arguments": {"a": [1, "é"]}}}]),
    ],
    "two in a row": [user("q"), assistant("a"), assistant("b")],
    "greeting first": [assistant("hello"), user("q"), assistant("a")],
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_transformers_renders_and_masks_alike(tokenizer, theirs, name) -> None:
    messages = CONVERSATIONS[name]
    for prompt in (False, True):
        assert tokenizer.render(messages, add_generation_prompt=prompt) == theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    ids, mask = encode_conversation(tokenizer, messages)
    assert ids == tokenizer.encode(tokenizer.render(messages), specials=True)
    encoded = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids == encoded["input_ids"]
    assert mask == [bool(learnt) for learnt in encoded["assistant_masks"]]
    assert encode_prompt(tokenizer, messages) == tokenizer.encode(
        tokenizer.render(messages, add_generation_prompt=True), specials=True
    )


def test_deepseeks_layout(tokenizer) -> None:
    render = tokenizer.render
    assert render(CONVERSATIONS["system"]) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>你好<｜Assistant｜>你好！<｜end▁of▁sentence｜>"
        "<｜User｜>bye<｜Assistant｜>bye<｜end▁of▁sentence｜>"
    )
    assert render([user("q")], add_generation_prompt=True) == "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>"
    assert render([user("q")], add_generation_prompt=True, thinking=True).endswith("<｜Assistant｜><think>")
    call = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "北京"}<｜tool▁call▁end｜>'
    assert render(CONVERSATIONS["tools"][1:6]) == (
        "<｜begin▁of▁sentence｜><｜User｜>天气?<｜Assistant｜><think>look</think>"
        f"<｜tool▁calls▁begin｜>{call}{call}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "<｜tool▁output▁begin｜>晴<｜tool▁output▁end｜><｜tool▁output▁begin｜>雨<｜tool▁output▁end｜>"
        "晴和雨。<｜end▁of▁sentence｜>"
    )
    assert render(CONVERSATIONS["tools"][:5], add_generation_prompt=True).endswith("<｜tool▁output▁end｜>")
    assert '## Tools\n\n### weather\n天气\nParameters: {"type": "object"}<｜User｜>' in render(CONVERSATIONS["tools"])
    assert render([user("q")], tools=[TOOL]) == render([{"role": "system", "content": "", "tools": [TOOL]}, user("q")])


def test_reasoning_is_kept_in_the_last_turn_and_dropped_from_history(tokenizer) -> None:
    for name in ("thought", "reasoning_content"):
        messages = CONVERSATIONS[name]
        assert "think" in tokenizer.render(messages[:2])
        assert tokenizer.render(messages).count("<think>") == 1
        assert "think" not in tokenizer.render([*messages, user("next")])
    assert "<｜Assistant｜>2<｜end" in tokenizer.render(CONVERSATIONS["thought"])
    # across the tool calls of the turn, it stays
    assert "<think>look</think>" in tokenizer.render(CONVERSATIONS["tools"][:6])


END = "<｜end▁of▁sentence｜>"


def test_mask_is_what_the_assistant_said(tokenizer) -> None:
    assert said(tokenizer, encode_conversation(tokenizer, CONVERSATIONS["system"])) == [f"你好！{END}", f"bye{END}"]
    # history without its reasoning is not what the assistant said
    assert said(tokenizer, encode_conversation(tokenizer, CONVERSATIONS["thought"])) == [f"<think>x</think>y{END}"]
    messages = [user("q"), assistant("a", weight=0), user("q"), assistant("b", weight=1)]
    assert said(tokenizer, encode_conversation(tokenizer, messages)) == [f"b{END}"]


def test_examples_learn_each_turn_once_as_it_was_said(tokenizer) -> None:
    examples = encode_examples(tokenizer, CONVERSATIONS["thought"])
    assert [said(tokenizer, pair) for pair in examples] == [
        [f"<think>1 and 1\n</think>\n\n2{END}"],
        [f"<think>x</think>y{END}"],
    ]
    assert examples[0] == encode_conversation(tokenizer, CONVERSATIONS["thought"][:2])
    calls, answer, thanks = (
        part for pair in encode_examples(tokenizer, CONVERSATIONS["tools"]) for part in said(tokenizer, pair)
    )
    assert calls.startswith("<think>look</think><｜tool▁calls▁begin｜>")
    assert (answer, thanks) == (f"晴和雨。{END}", f"不客气{END}")
    assert encode_examples(tokenizer, CONVERSATIONS["system"]) == [
        encode_conversation(tokenizer, CONVERSATIONS["system"])
    ]


hostile = st.lists(st.sampled_from([*SPECIALS, "a", "<", "｜", "<think", ">", "\ufdd0", "é", "\n"]), max_size=6).map(
    "".join
)


@given(texts=st.lists(hostile, min_size=6, max_size=6))
@settings(max_examples=150, deadline=None)
def test_contents_cannot_write_control_tokens(tokenizer, texts) -> None:
    system, question, reasoning, argument, output, answer = texts
    messages = [
        {"role": "system", "content": system, "tools": [{"name": argument, "description": output}]},
        user(question),
        assistant(
            "", reasoning_content="r" + reasoning, tool_calls=[{"function": {"name": "f", "arguments": argument}}]
        ),
        {"role": "tool", "content": output},
        assistant("a" + answer),
    ]
    plain = [
        {"role": "system", "content": "x", "tools": [{"name": "x"}]},
        user("x"),
        assistant("", reasoning_content="x", tool_calls=[{"function": {"name": "f", "arguments": "x"}}]),
        {"role": "tool", "content": "x"},
        assistant("x"),
    ]
    controls = set(tokenizer.controls.values())

    def skeleton(conversation):
        return [index for index in encode_conversation(tokenizer, conversation)[0] if index in controls]

    assert skeleton(messages) == skeleton(plain)
    ids, mask = encode_conversation(tokenizer, messages)
    assert tokenizer.decode(ids) == tokenizer.render(messages)
    assert len(ids) == len(mask)
    prompt = encode_prompt(tokenizer, messages[:2])
    assert [index for index in prompt if index in controls] == [
        tokenizer.bos_id,
        tokenizer.token_id("<｜User｜>"),
        tokenizer.token_id("<｜Assistant｜>"),
    ]


def test_only_leading_closed_reasoning_is_control(tokenizer) -> None:
    think = tokenizer.token_id("<think>")
    for content, count in {
        "<think>a</think>b": 1,
        "<think>a": 0,
        "x<think>a</think>": 0,
        "<think><think></think>": 1,
    }.items():
        assert encode_conversation(tokenizer, [user("<think>a</think>"), assistant(content)])[0].count(think) == count


def test_published_templates_without_generation_blocks(tokenizer) -> None:
    rust = tokenizer._rust.from_str(tokenizer._rust.to_str())
    rust.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    qwen = Tokenizer(rust, {"eos_token": "<|im_end|>"}, CHATML)
    messages = [user("hi <|im_end|>"), assistant("hello"), user("bye"), assistant("bye\n")]
    ids, mask = encode_conversation(qwen, messages)
    assert qwen.decode(ids) == qwen.render(messages)
    assert said(qwen, (ids, mask)) == ["hello<|im_end|>", "bye\n<|im_end|>"]
    assert ids.count(qwen.token_id("<|im_end|>")) == 4
    # the answer begins where generation would begin
    prompt = encode_prompt(qwen, messages[:3])
    assert ids[: len(prompt)] == prompt
    assert mask[len(prompt)]
    rewriting = Tokenizer(rust, {"eos_token": "<|im_end|>"}, "{{ messages|length }}" + CHATML)
    with pytest.raises(UserError, match="rewrites earlier turns"):
        encode_conversation(rewriting, messages)


def test_templates_are_rendered_as_hugging_face_does(theirs, tokenizer) -> None:
    template = (
        "{%- for m in messages %}\n  {%- if loop.index0 == 3 %}{% break %}{% endif %}\n    {% if m.role == 'user' %}\n"
        "{{ m.content | tojson }} {{ m | tojson(indent=2) }}\n    {% endif %}\n{% generation %}x{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') }}{{ bos_token }}{{ eos_token }}"
    )
    messages = [user("é<'&>"), assistant("a"), user('"'), assistant("dropped")]
    ours = Tokenizer(tokenizer._rust, tokenizer._config, template)
    assert ours.render(messages) == theirs.apply_chat_template(messages, chat_template=template, tokenize=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no!') }}",
        "{% for %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 + '' }}",
    ],
)
def test_broken_or_hostile_templates_are_clear_errors(tokenizer, template) -> None:
    with pytest.raises(UserError, match="chat template"):
        Tokenizer(tokenizer._rust, tokenizer._config, template).render([user("q")])


def test_messages_that_the_template_refuses(tokenizer) -> None:
    for messages in ([{"role": "robot", "content": "x"}], [{"role": "user", "content": ["x"]}]):
        with pytest.raises(UserError, match="refuses these messages"):
            tokenizer.render(messages)


# ---- answers ----


def test_answers_come_apart_as_they_were_put_together(tokenizer) -> None:
    rng = random.Random(5)
    pieces = ["", "a", "你好", "</think>", "\n", "<｜tool▁calls▁begin｜>", "12"]
    for _ in range(100):
        content = rng.choice(pieces[1:]) + rng.choice(pieces)
        message = assistant(content)
        if rng.random() < 0.5:
            message["reasoning_content"] = "r" + rng.choice(pieces)
        if rng.random() < 0.5:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": "f", "arguments": '{"a": "</think>"}'}}
            ] * 2
        ids, mask = encode_conversation(tokenizer, [user("q"), message])
        generated = [index for index, learnt in zip(ids, mask, strict=True) if learnt]
        assert decode_answer(tokenizer, generated).message() == message, "seed 5"
        assert decode_answer(tokenizer, generated[:-1]).message() == message
        if "reasoning_content" in message:
            assert decode_answer(tokenizer, generated[1:], thinking=True).message() == message


def test_answers_cut_short(tokenizer) -> None:
    assert decode_answer(tokenizer, tokenizer.encode("<think>so", specials=True)).message() == assistant(
        "", reasoning_content="so"
    )
    cut = decode_answer(
        tokenizer, tokenizer.encode("<think>so<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f", specials=True)
    )
    assert (cut.reasoning, cut.tool_calls) == ("so", [])
    assert decode_answer(tokenizer, []).content == ""


def test_split_reasoning() -> None:
    assert split_reasoning("<think>a</think>b</think>") == ("a", "b</think>")
    assert split_reasoning("<think></think>b") == ("", "b")
    assert split_reasoning("a</think>b") == (None, "a</think>b")
    assert split_reasoning("a</think>b", thinking=True) == ("a", "b")
    assert split_reasoning("<think>a") == (None, "<think>a")


# ---- files ----


ALPACA = {"instruction": "add", "input": "1 2", "output": "3", "history": [["q", "a"]], "system": "s"}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "h"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "é"}}'},
        {"from": "observation", "value": "o"},
        {"from": "gpt", "value": "g"},
    ],
    "tools": '[{"name": "f"}]',
}
OPENAI = {
    "messages": [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "t"},
        {"role": "assistant", "content": "a", "reasoning": "r", "weight": 1},
    ],
    "tools": [TOOL],
}
READ = [
    [
        {"role": "system", "content": "s"},
        user("q"),
        assistant("a"),
        user("add\n1 2"),
        assistant("3"),
    ],
    [
        {"role": "system", "content": "", "tools": [{"name": "f"}]},
        user("h"),
        assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}}]),
        {"role": "tool", "content": "o"},
        assistant("g"),
    ],
    [
        {"role": "system", "content": "d", "tools": [TOOL]},
        user("uv"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "t", "tool_call_id": "1"},
        assistant("a", reasoning_content="r", weight=1),
    ],
]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "lines.json", "bom.json", "bom.jsonl"])
def test_formats_are_told_apart_record_by_record(tokenizer, tmp_path, name) -> None:
    records = [ALPACA, SHAREGPT, OPENAI]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    array = name in ("a.json", "bom.json")
    text = json.dumps(records, ensure_ascii=False, indent=1) if array else lines + "\n\n"
    (tmp_path / name).write_text(text, encoding="utf-8-sig" if name.startswith("bom") else "utf-8")
    found = read_conversations(tmp_path / name)
    conversations = list(found)
    assert conversations == READ
    assert (found.good, found.bad, found.problems) == (3, 0, [])
    for conversation in conversations:
        assert any(encode_conversation(tokenizer, conversation)[1])


def test_one_object_in_a_file_and_a_folder_of_ours(tmp_path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ALPACA, indent=2))
    assert list(read_conversations(tmp_path / "one.json")) == READ[:1]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "manifest.json").write_text("{}")
    (tmp_path / "tasks" / "heldout.jsonl").write_text("{}")
    (tmp_path / "tasks" / "train.jsonl").write_text(
        json.dumps({"messages": [user("q"), assistant("a")], "answer": "a"})
    )
    assert list(read_conversations(tmp_path / "tasks")) == [[user("q"), assistant("a")]]


BAD = {
    "{": "not JSON",
    "[1]": "an object is expected, not list",
    '{"text": "x"}': "no known columns (found text)",
    '{"instruction": "x", "output": 3}': '"output" should be text, not int',
    '{"instruction": "x", "output": " "}': "an empty question or answer",
    '{"conversations": []}': "a list that is not empty",
    '{"conversations": [{"from": "robot", "value": ""}]}': "unknown speaker 'robot'",
    '{"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{"}]}': "function_call is not JSON",
    '{"messages": [{"role": "user", "content": "x"}]}': "the assistant says nothing",
    '{"messages": [{"role": "assistant", "content": "x"}]}': "the user says nothing",
    '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "no text",
    '{"messages": [{"role": ["user"], "content": "x"}]}': "unknown role",
    '{"instruction": "x", "output": "y", "tools": "["}': '"tools" is not JSON',
    '{"instruction": "x", "output": "y", "history": ["a"]}': "history",
    '{"instruction": "x", "output": "y", "tools": [{}]}': "a tool has no name",
}


def test_bad_lines_are_named_and_counted_and_the_rest_goes_on(tmp_path) -> None:
    good = json.dumps({"instruction": "x", "output": "y"}).encode()
    lines = [good, *map(str.encode, BAD), b'{"instruction": "\xff", "output": "y"}', good]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read_conversations(path)
    assert len(list(found)) == found.good == 2
    assert found.bad == len(BAD) + 1 == len(found.problems)
    for number, (problem, why) in enumerate(zip(found.problems, [*BAD.values(), "not UTF-8"], strict=True), 2):
        assert problem.startswith(f"{path}, line {number}: ")
        assert why in problem


def test_bad_entries_of_an_array_are_named_and_the_rest_goes_on(tmp_path) -> None:
    good = '{"instruction": "x", "output": "y"}'
    path = tmp_path / "a.json"
    path.write_bytes(
        f'[{good}, {{"instruction": "x" "output": "y"}}, {good},\n {good}, 7, {good}, {{"instruc'.encode() + b"\xff"
    )
    found = read_conversations(path)
    assert len(list(found)) == found.good == 4
    assert found.bad == 3
    assert [problem.split(": ")[0] for problem in found.problems] == [f"{path}, record {n}" for n in (2, 5, 7)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b'{"question": "x", "answer": "y"}\n' * 3, "found the columns question, answer, but expected instruction"),
        (b"\x00\xff\x01" * 500, "found no columns"),
        (b"[]", "empty"),
        (b"plain text\nof two lines", "no usable conversation among 2 records"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_file_without_conversations_is_an_error(tmp_path, name, content, said) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_conversations(path))


def test_a_missing_file_is_an_error_at_once(tmp_path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_conversations(tmp_path / "missing.json")
    with pytest.raises(UserError, match=r"no \.json or \.jsonl"):
        read_conversations(tmp_path)
