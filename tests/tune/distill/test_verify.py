"""Which answers are kept, and pairs of them, against plain restatements of the rules."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.llm.base import Answer
from tinyseek.text.datasets import find_data
from tinyseek.tune.distill import pairs
from tinyseek.tune.distill.options import CollectSettings, PairsSettings
from tinyseek.tune.distill.verify import Sample, choose, is_malformed, is_refusal, judge, kind_of, overlap, runs_of
from tinyseek.tune.rl.rewards import RewardSet


def sample(row: int, content: str, reasoning: str = "", answer: str = "7", tokens: int = 5, **record: Any) -> Sample:
    message = {"role": "assistant", "content": content} | ({"reasoning_content": reasoning} if reasoning else {})
    asked = [{"role": "user", "content": f"question {row}"}]
    return Sample(row, asked, {"answer": answer}, message, "answered", tokens, {"finish": "stop", **record})


def judged(samples: list[Sample], **changes: Any) -> tuple[list[str | None], Counter[str]]:
    settings = CollectSettings.read({"rewards": {"exact_answer": 1.0, "format": 0.1}, **changes})
    judge(samples, RewardSet.of(settings.reward_options()))
    counts = choose(samples, settings)
    return [one.dropped for one in samples], counts


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "Sorry, I am not able to provide that information.",
        "I’m unable to answer.",
        "As an AI language model, I can't do that.",
        "抱歉，我无法回答这个问题。",
        "很抱歉，作为一个人工智能，我不能提供帮助。",
        "我无法协助您完成此请求。",
    ],
)
def test_refusals_are_known(text: str) -> None:
    assert is_refusal(text)
    assert kind_of(Answer({"role": "assistant", "content": text}, "stop")) == "refused"


@pytest.mark.parametrize(
    "text",
    [
        "I can't believe how simple it is: 7.",
        "Sorry for the long explanation. The answer is 7.",
        "You cannot divide by zero, so there is no answer.",
        "I cannot tell a lie, said George.",
        "抱歉让你久等了，答案是七。",
        "我不能同意更多！",
        "I can't help with that. " + "Well, let me see what I can do after all, step by step. " * 20,
    ],
)
def test_answers_are_not_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_kinds_of_answers() -> None:
    def of(content: str, finish: str, **message: Any) -> str:
        return kind_of(Answer({"role": "assistant", "content": content, **message}, finish), ["^No comment"])

    assert of("7", "stop") == "answered"
    assert of("7", "length") == "truncated"
    assert of("", "length", reasoning_content="so") == "truncated"
    assert of(" \n", "stop", reasoning_content="so it is 7") == "blank"
    assert of("", "tool_calls", tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]) == "answered"
    assert of("", "content_filter") == "refused"
    assert of("No comment.", "stop") == "refused"


def test_marks_inside_broken_characters_and_calls_are_malformed() -> None:
    good: list[dict[str, Any]] = [
        {"content": "7", "reasoning_content": "3+4 <7.5"},
        {"content": "a <b> c | d"},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
    ]
    bad: list[dict[str, Any]] = [
        {"content": "</think>7"},
        {"content": "7", "reasoning_content": "so <think> again"},
        {"content": "7<｜end▁of▁sentence｜>"},
        {"content": "7<|im_end|>"},
        {"content": "小\ufffd生"},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
    ]
    assert [is_malformed(message) for message in good] == [False] * 3
    assert [is_malformed(message) for message in bad] == [True] * 7


def test_the_right_ones_once_each_the_shortest_first() -> None:
    samples = [
        sample(0, "7", "3+4", tokens=9),
        sample(0, "8", "4+4"),
        sample(0, " 7 ", "3+4", tokens=8),  # the same words, shorter
        sample(0, "7", "10-3", tokens=7),
        sample(0, "7", tokens=2),
        sample(1, "none", answer="never"),
    ]
    assert judged(samples)[0] == ["duplicate", "wrong", None, None, None, "wrong"]
    dropped, counts = judged(samples, most=2)
    assert dropped == [
        "duplicate",
        "wrong",
        None,
        None,
        "surplus",
        "wrong",
    ]  # by the sum, in which the format counts, too
    assert counts == {"duplicate": 1, "wrong": 2, "surplus": 1}
    assert judged(samples, keep="best")[0] == ["duplicate", "surplus", "surplus", None, "surplus", None]
    assert judged(samples, keep="all", duplicates="keep")[0] == [None] * 6
    assert judged(samples, reasoning="required")[0] == ["duplicate", "wrong", None, None, "reasoning", "reasoning"]
    assert judged(samples, longest=7)[0] == ["too_long", "wrong", "too_long", None, None, "wrong"]


def test_a_refusal_that_was_to_be_said_is_right_and_what_is_cut_is_not() -> None:
    refusal = "Sorry, I can't help with that."
    one, other, cut = sample(0, refusal, answer=refusal), sample(0, refusal, answer="7"), sample(1, "7")
    one.kind = other.kind = "refused"
    cut.kind = "truncated"
    assert judged([one, other, cut])[0] == [None, "refused", "truncated"]


def test_near_duplicates_go_by_runs_of_words() -> None:
    words = [f"word{n}" for n in range(40)]
    changed = [*words[:20], "other", *words[21:]]  # five of 36 runs
    alike = (36 - 5) / (36 + 5)
    assert overlap(runs_of(" ".join(words)), runs_of(" ".join(changed))) == pytest.approx(alike)
    samples = [
        sample(0, "7", " ".join(words), tokens=3),
        sample(0, "7", " ".join(changed)),
        sample(1, "7", " ".join(words)),
    ]
    assert judged(samples, duplicates="near", near=alike - 0.05)[0] == [None, "near_duplicate", None]
    assert judged(samples, duplicates="near", near=alike + 0.05)[0] == [None, None, None]
    assert judged(samples)[0] == [None, None, None]


# ---- pairs -----------------------------------------------------------------------------------------------------------------------


def collect_folder(folder: Path, seed: int = 3) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for row in range(30):
        for number in range(6):
            right, form = rng.random() < 0.5, rng.random() < 0.7
            message = {"role": "assistant", "content": "7" if right else str(rng.randint(8, 9))}
            message |= {"reasoning_content": "x" * rng.randint(1, 3)} if form else {}
            outcome = rng.choice(["answered"] * 8 + ["truncated", "blank"])
            line = {"prompt": [{"role": "user", "content": f"question {row}"}], "completion": message, "row": row}
            line |= {"rewards": {"exact_answer": float(right), "format": float(form)}, "tokens": rng.randint(5, 20)}
            line |= {
                "total": right + 0.2 * form,
                "outcome": outcome,
                "finish": "stop",
                "dropped": None,
                "key": str(number),
            }
            lines.append(line)
    with artifact.writing(folder, "collect", {"right_from": 1.0}) as (partial, _):
        (partial / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def holds(rule: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    right, theirs = one["rewards"]["exact_answer"], other["rewards"]["exact_answer"]
    if rule == "right_over_wrong":
        return right > theirs
    if rule == "shorter_over_longer":
        return right == theirs == 1 and one["tokens"] <= 0.8 * other["tokens"]
    if rule == "reward_margin":
        return one["total"] - other["total"] >= 0.5
    return one["rewards"]["format"] > other["rewards"]["format"] and right == theirs


@pytest.mark.parametrize("rule", ["right_over_wrong", "shorter_over_longer", "reward_margin", "format"])
def test_pairs_are_those_of_the_rule_and_of_whole_answers(tmp_path: Path, rule: str) -> None:
    lines = collect_folder(tmp_path / "collect")
    settings = PairsSettings.read({"answers": [str(tmp_path / "collect")], "rules": [rule], "per_prompt": 3})
    pairs.build(settings, tmp_path / "pairs")

    allowed: dict[str, set[tuple[str, str]]] = {}
    for row in range(30):
        whole = [line for line in lines if line["row"] == row and line["outcome"] == "answered"]
        unlike = {
            json.dumps(line["completion"]): line for line in whole
        }.values()  # of equal ones the last stands for all
        made = {
            (json.dumps(a["completion"]), json.dumps(b["completion"]))
            for a, b in permutations(unlike, 2)
            if holds(rule, a, b)
        }
        allowed[f"question {row}"] = made
    found = Counter()
    for pair in find_data(tmp_path / "pairs").examples("preference"):
        question = pair.prompt[0]["content"]
        assert (json.dumps(pair.chosen[0]), json.dumps(pair.rejected[0])) in allowed[question]
        found[question] += 1
    assert found == {question: min(3, len(made)) for question, made in allowed.items() if made}
    figures = artifact.read(tmp_path / "pairs").figures
    assert figures["rules"][rule] == {
        "pairs": found.total(),
        "possible": sum(map(len, allowed.values())),
        "prompts": len(found),
    }


def test_pairs_are_drawn_again_alike_limited_and_not_twice(tmp_path: Path) -> None:
    collect_folder(tmp_path / "collect")
    base = {"answers": [str(tmp_path / "collect")], "rules": ["right_over_wrong", "reward_margin"], "per_prompt": 9}
    for name in ("one", "other"):
        pairs.build(PairsSettings.read(base), tmp_path / name)
    text = (tmp_path / "one" / "train.jsonl").read_text()
    assert text == (tmp_path / "other" / "train.jsonl").read_text()
    without_rule = [
        json.dumps({k: v for k, v in json.loads(line).items() if k != "rule"}) for line in text.splitlines()
    ]
    assert len(set(without_rule)) == len(without_rule)
    pairs.build(PairsSettings.read(base | {"most": 11}), tmp_path / "few")
    few = (tmp_path / "few" / "train.jsonl").read_text().splitlines()
    assert len(few) == 11
    assert set(few) <= set(text.splitlines())


def test_what_no_pairs_can_come_of_is_told(tmp_path: Path) -> None:
    lines = collect_folder(tmp_path / "collect")
    file = tmp_path / "samples.jsonl"

    def build(**changes: Any) -> None:
        pairs.build(PairsSettings.read({"answers": [str(file)], **changes}), tmp_path / "out")

    file.write_text("".join(json.dumps(line | {"rewards": {"exact_answer": 1.0}}) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"no pair by right_over_wrong among \d+ whole answers to 30 prompts"):
        build()
    with pytest.raises(UserError, match=r"has no reward format \(found exact_answer\)"):
        build(rules=["format"])
    file.write_text("".join(json.dumps(line | {"rewards": {}}) + "\n" for line in lines))
    with pytest.raises(UserError, match="collected without rewards"):
        build()
    file.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="is no file of collected answers"):
        build()
    with pytest.raises(UserError, match=r"no samples.jsonl in it"):
        pairs.build(
            PairsSettings.read({"answers": [str(tmp_path)]}), tmp_path / "out"
        ) if file.unlink() is None else None
