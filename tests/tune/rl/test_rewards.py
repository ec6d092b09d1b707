"""Rewards: what the shipped ones say, and that a bad one of the user's own harms nothing but itself."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinyseek.errors import UserError
from tinyseek.llm.base import ChatModel
from tinyseek.text.datasets import find_data
from tinyseek.text.tasks import Counts, TaskSettings, check, generate
from tinyseek.tune.rl import shipped
from tinyseek.tune.rl.rewards import RewardSet

MINE = """
import os, time
from beside import SCALE

def good(completions, score, **columns):
    print("what it prints must not come between")
    return [SCALE * s + len(c[0]["content"]) for c, s in zip(completions, score)]

def one_bad(completions, **columns):
    return [float(c[0]["content"]) for c in completions]

def hangs(completions, **columns):
    time.sleep(60)

def dies(completions, **columns):
    os._exit(3)

def few(completions):
    return [1.0]

def words(completions):
    return ["much" for _ in completions]

def infinite(completions):
    return [float("inf")] * len(completions)

def wants(completions, grade):
    return list(grade)

def nothing(completions, **columns):
    return [None] * len(completions)
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("SCALE = 10\n")
    return str(tmp_path / "mine.py")


def call(rewards: RewardSet, texts: list[str], **columns: list[Any]) -> np.ndarray[Any, Any]:
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    rows = [{name: values[n] for name, values in columns.items()} for n in range(len(texts))]
    return rewards([[{"role": "user", "content": "?"}]] * len(texts), completions, rows, [[1] * len(t) for t in texts])


# ---- what the shipped ones say ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("42", "42", True),
        ("<think>6*7=42</think>42", "42", True),
        ("<think>6*7=42</think> 42. ", "42", True),
        ("<think>42", "42", False),  # the thought never ends
        ("<think>42</think>", "42", False),
        ("a</think>b<think>42", "42", False),
        ("The answer is 42", "42", False),
        ("<think>hm</think>It is \\boxed{42}.", "42", True),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", True),
        ("1,000", "1000", True),
        ("4.0", "4", True),
        ("2/4", "0.5", True),
        ("１２", "12", True),  # full-width
        ("-3", "3", False),
        ("石桥。", "石桥", True),
        ("石桥街", "石桥", False),
        ("", "", False),
        ("0042", "42", False),
        ("007", "007", True),
        ("1/0", "1/0", True),
        ("9" * 5000, "9", False),
        (42, 42, True),
    ],
)
def test_exact_answer(said: Any, answer: Any, right: bool) -> None:
    assert shipped.exact_answer([str(said)], [answer]) == [float(right)]


def test_exact_answer_loose_and_without_an_answer() -> None:
    said = ["so it is 41, no, 42 apples", "there are 42", "forty-two"]
    assert shipped.exact_answer(said, ["42"] * 3, loose=True) == [1.0, 1.0, 0.0]
    assert shipped.exact_answer(["1", "2"], [None, "2"]) == [None, 1.0]
    split = [{"role": "assistant", "reasoning_content": "6*7", "content": "42"}]
    assert shipped.exact_answer([split], ["42"]) == [1.0]
    assert shipped.format([split]) == [1.0]


def test_exact_answer_says_what_the_evaluation_says_of_every_task(tmp_path: Path) -> None:
    """Of tasks as the stages read them: bare answers, whole replies, other forms, refusals that go on, others' replies."""
    counts = Counts(arithmetic=40, world=40, identity=20, refusal=20)
    records = generate(TaskSettings(train=Counts(world=40), heldout=counts, seed=3)).heldout
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prompts = list(find_data(str(tmp_path / "asked.jsonl")).examples("prompt"))
    replies = [record["messages"][-1]["content"] for record in records]
    seen = set()
    with RewardSet(["exact_answer"]) as rewards:
        rewards.check(list(prompts[0].columns))
        for texts in (
            replies,
            [record["answer"] for record in records],
            [f"\\boxed{{{record['answer']}}}" for record in records],
            [f"{record['answer']}.0" for record in records],
            [f"0{record['answer']}" for record in records],
            [f"<think>{record['answer']}" for record in records],
            [f"{record['answer']} and so on" for record in records],
            [*replies[1:], replies[0]],
        ):
            said = [[{"role": "assistant", "content": text}] for text in texts]
            found = rewards([p.messages for p in prompts], said, [p.columns for p in prompts])[:, 0]
            expected = [check(record, text) for record, text in zip(records, texts, strict=True)]
            assert found.tolist() == [float(one) for one in expected]
            seen |= {(r["kind"], one) for r, one in zip(records, expected, strict=True)}
    assert len(seen) == 8  # each kind both ways


def test_format() -> None:
    good = ["<think>so</think>42", "\n<think>\nso\n</think>\n42"]
    bad = [
        "42",
        "<think>so</think>",
        "<think></think>42",
        "<think>so",
        "x<think>so</think>42",
        "<think>a</think>b</think>c",
    ]
    assert shipped.format(good) == [1.0, 1.0]
    assert shipped.format(bad) == [0.0] * 6


def test_repetition_is_seen_in_any_script() -> None:
    """A reward that splits at spaces says 0 of this Chinese, and of its opposite."""
    texts = {
        "我说得好我说得好我说得好我说得好": True,
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。": False,
        "as I said as I said as I said as I said": True,
        "the quick brown fox jumps over a lazy dog": False,
        "ทำดีทำดีทำดีทำดี": True,
        "もう一度もう一度もう一度もう一度": True,
    }
    for (text, repeats), (found,) in zip(texts.items(), (shipped.repetition([t]) for t in texts), strict=True):
        assert (found < -0.4) == repeats, text
        assert (found == 0) == (not repeats), text
    n, length = 4, 40  # one character over and over: all n-grams but the first are repeated
    assert shipped.repetition(["哈" * length]) == [-(1 - 1 / (length - n + 1))]
    assert shipped.repetition(["", "哈"]) == [0.0, 0.0]
    assert shipped.repetition(["a b " * 20], most=-3.0) == pytest.approx([-3 * (1 - 2 / 37)])


def test_tool_calls() -> None:
    def said(*calls: tuple[str, str]) -> list[dict[str, Any]]:
        made = [{"type": "function", "function": {"name": name, "arguments": text}} for name, text in calls]
        return [{"role": "assistant", "content": "", "tool_calls": made}]

    add, sub = {"name": "add", "arguments": {"b": 2, "a": 1}}, {"function": {"name": "sub", "arguments": '{"x": [1]}'}}
    cases = [
        (said(("add", '{"a": 1, "b": 2}')), [add], 1.0),
        (said(("sub", '{"x":[1]}'), ("add", '{"a": 1, "b": 2}')), [add, sub], 1.0),
        (said(("add", '{"a": 1, "b": 3}')), [add], 0.5),
        (said(("add", '{"a": 1, "b"')), [add], 0.5),
        (said(("mul", '{"a": 1, "b": 2}')), [add], 0.0),
        (said(), [add], 0.0),
        (said(("add", '{"a": 1, "b": 2}')), [], 0.0),
        ("nothing to call", [], 1.0),
        (said(("add", "{}")), None, None),
        (said(("add", '{"a": 1, "b": 2}')), '[{"name": "add", "arguments": {"a": 1, "b": 2}}]', 1.0),
    ]
    found = shipped.tool_calls([case[0] for case in cases], [case[1] for case in cases])
    assert found == [case[2] for case in cases]


def test_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def complete(messages: list[dict[str, str]], options: Any) -> Any:
        asked.append(messages)
        grades = {"fine": "7", "great": "I give 10 of 10", "odd": "no idea", "over": "99"}
        return SimpleNamespace(content=grades[messages[1]["content"].rpartition("\n")[2]])

    opened = SimpleNamespace(complete=complete, close=lambda: asked.append("closed"))
    monkeypatch.setattr(ChatModel, "open", staticmethod(lambda _: opened))
    with RewardSet(["judge"], args=[{"model": "somewhere"}]) as rewards:
        scores = call(rewards, ["fine", "<think>hm</think>great", "odd", "over"], answer=["ok", "ok", "ok", "ok"])
    assert scores[:, 0].tolist()[:2] == [0.7, 1.0]
    assert math.isnan(scores[2, 0])
    assert scores[3, 0] == 1.0
    assert "0 (worthless) to 10" in asked[0][0]["content"]
    assert "A reference answer:\nok" in asked[0][1]["content"]
    assert asked[-1] == "closed"
    with pytest.raises(UserError, match="which model"):
        RewardSet(["judge"])


# ---- one's own -------------------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_with_columns_and_weights(mine: str) -> None:
    with RewardSet([f"{mine}:good", "exact_answer", f"{mine}:nothing"], [0.5, 2.0, 1.0]) as rewards:
        assert rewards.names == ["good", "exact_answer", "nothing"]
        scores = call(rewards, ["42", "seven"], score=[1, 2], answer=["42", None])
        assert scores[:, :2].tolist()[0] == [12.0, 1.0]
        assert scores[1, 0] == 25.0
        assert np.isnan(scores[:, 2]).all()
        assert rewards.total(scores).tolist() == [8.0, 12.5]
        assert np.isnan(rewards.total(np.full((1, 3), np.nan))).all()
        assert rewards.take_errors() == {}


@pytest.mark.parametrize(
    ("name", "told", "left"),
    [
        ("one_bad", "ValueError: could not convert string to float: 'x' (mine.py, line 10)", [3.0, None, 5.0]),
        ("few", "gave 1 rewards for 3 completions", [1.0, 1.0, 1.0]),  # asked one by one it is right
        ("words", "could not convert string to float: 'much'", [None] * 3),
        ("infinite", "gave inf; a reward is a finite number", [None] * 3),
        ("dies", "its process ended (exit status 3)", [None] * 3),
    ],
)
def test_one_that_fails_is_named_and_the_rest_goes_on(
    mine: str, name: str, told: str, left: list[float | None], capsys: pytest.CaptureFixture[str]
) -> None:
    with RewardSet([f"{mine}:{name}", "format"]) as rewards:
        scores = call(rewards, ["3", "x", "5"])
        assert [None if np.isnan(s) else s for s in scores[:, 0]] == left
        assert scores[:, 1].tolist() == [0.0, 0.0, 0.0]
        said = capsys.readouterr().err
        if None in left:
            assert f"warning: reward {name}: " in said
            assert told in said
            assert rewards.take_errors() == {name: left.count(None)}
        call(rewards, ["3", "x", "5"])
        assert told not in capsys.readouterr().err  # once is enough
    with RewardSet([f"{mine}:{name}"], on_error="stop") as rewards, pytest.raises(UserError, match=f"reward {name}: "):
        call(rewards, ["3", "x", "5"])


def test_one_that_hangs_is_ended_and_begun_anew(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with RewardSet([f"{mine}:hangs", f"{mine}:good"], seconds=1.0) as rewards:
        started = time.monotonic()
        scores = call(rewards, ["3", "x"], score=[0, 0])
        assert time.monotonic() - started < 20
        assert np.isnan(scores[:, 0]).all()
        assert scores[:, 1].tolist() == [1.0, 1.0]
        assert "reward hangs: took longer than 1 s" in capsys.readouterr().err
        assert np.isnan(call(rewards, ["3"], score=[0])[0, 0])  # a new process hangs anew
    with RewardSet([f"{mine}:hangs"], seconds=1.0, on_error="stop") as rewards, pytest.raises(UserError, match="1 s"):
        call(rewards, ["3"])


def test_what_is_not_there_is_told_before_anything_runs(mine: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import torchh\n")
    for name, told in {
        "exact_anser": 'did you mean "exact_answer"',
        f"{mine}:goood": r'no function "goood"; there are: good, one_bad',
        f"{tmp_path}/none.py:f": "no such file",
        f"{tmp_path}/broken.py:f": r"broken.py: ModuleNotFoundError: No module named 'torchh' \(broken.py, line 1\)",
    }.items():
        with pytest.raises(UserError, match=told):
            RewardSet([name])
    with pytest.raises(UserError, match='has no argument "limits"; did you mean "limit"'):
        RewardSet(["length"], args=[{"limits": 3}])
    with pytest.raises(UserError, match="2 rewards and 1 weights"):
        RewardSet(["format", "length"], [1.0])
    with RewardSet([f"{mine}:wants", "exact_answer", f"{mine}:good"]) as rewards:
        with pytest.raises(UserError, match='reward wants: wants the column "grade", which the prompts do not have'):
            rewards.check(["answer", "score"])
        rewards.check(["answer", "score", "grade"])
