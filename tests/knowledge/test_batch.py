"""Batches: every prompt answered once, in order, whatever happens in between."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from knowledge.scripted_model import ScriptedModel

from tinyseek.errors import UserError
from tinyseek.knowledge.batch import Outcome, Progress, Prompt, by_model, identity, read_prompts, run_batch
from tinyseek.knowledge.templates import Template
from tinyseek.llm.base import ChatError, ChatModel, ContextError, Message


def run(model: ChatModel, prompts: Path, answers: Path, **how: object) -> list[Progress]:
    return list(run_batch(prompts, answers, by_model(model), identity(model), **how))  # type: ignore[arg-type]


def echo(messages: Sequence[Message]) -> str:
    return f"答: {messages[-1]['content']}"


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_come_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    seed = 4
    print("seed", seed)
    chance = random.Random(seed)
    rows = [{"id": at, "prompt": f"question {at}", "note": "n"} for at in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))

    def slow(messages: Sequence[Message]) -> str:
        time.sleep(chance.random() / 100)
        return echo(messages)

    model = ScriptedModel(slow)
    told = run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl", at_once=8)
    answers = lines(tmp_path / "out.jsonl")
    assert [(a["id"], a["answer"], a["note"]) for a in answers] == [(r["id"], f"答: {r['prompt']}", "n") for r in rows]
    assert 2 <= model.most_at_once <= 8
    assert [progress.done for progress in told] == list(range(41))
    assert told[-1].told() == "40 of 40"
    assert "left" in told[20].told()
    assert not (tmp_path / "out.jsonl.work").exists()


def test_every_form_of_prompts_and_of_answers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n二\\n\n")
    (tmp_path / "b.csv").write_text('id,问题,x\n1,"a ""b"", c\nd",y\n2,二,\n', encoding="utf-8-sig")
    (tmp_path / "c.jsonl").write_text(
        '"plain"\n{"question": "q", "system": "be brief"}\n{"messages": [{"role": "user", "content": "m"}]}\n'
    )
    asked = lambda name: [p.messages for p in read_prompts(tmp_path / name)]  # noqa: E731
    user = lambda text: {"role": "user", "content": text}  # noqa: E731
    assert asked("a.txt") == [[user("one")], [user("二\\n")]]
    assert asked("b.csv") == [[user('a "b", c\nd')], [user("二")]]
    assert asked("c.jsonl") == [[user("plain")], [{"role": "system", "content": "be brief"}, user("q")], [user("m")]]
    model = ScriptedModel(lambda m: f"{m[-1]['content']}\nsecond\\line")
    run(model, tmp_path / "b.csv", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["answer"] for row in rows] == ['a "b", c\nd\nsecond\\line', "二\nsecond\\line"]
    assert list(rows[0]) == ["id", "问题", "x", "answer", "error"]
    run(model, tmp_path / "a.txt", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "one\\nsecond\\\\line\n二\\\\n\\nsecond\\\\line\n"


def test_a_template_is_filled_by_the_rows(tmp_path: Path) -> None:
    template = Template.read({"need": "Translate {text} into {language}", "variables": {"language": {"default": "zh"}}})
    (tmp_path / "in.csv").write_text("text,language,id\nhello,fr,1\nbye,,2\n")
    (tmp_path / "in.txt").write_text("hello\n")
    model = ScriptedModel(echo)
    run(model, tmp_path / "in.csv", tmp_path / "out.jsonl", template=template)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [
        "答: Translate hello into fr",
        "答: Translate bye into zh",
    ]
    assert read_prompts(tmp_path / "in.txt", template)[0].messages[0]["content"] == "Translate hello into zh"
    (tmp_path / "bad.csv").write_text("txt\nhello\n")
    with pytest.raises(UserError, match=r"bad\.csv, line 2: the template wants 1 more: text"):
        read_prompts(tmp_path / "bad.csv", template)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{broken\n', "line 2: not JSON"),
        ("a.jsonl", '{"promt": "x"}\n', "line 1: there is no prompt"),
        ("a.jsonl", "[1]\n", "an object is expected"),
        ("a.jsonl", '{"messages": []}\n', '"messages" is a list'),
        ("a.jsonl", '{"prompt": "  "}\n', "no prompt in it"),
        ("a.jsonl", "[" * 100_000, "not JSON"),
        ("a.csv", "prompt\na,b\n", "more values"),
        ("a.csv", "x\ny\n", "there is no prompt"),
        ("a.txt", "\n \n", "there is no prompt in it"),
        ("a.pdf", "x", "prompts are read from"),
        ("a.txt", "x" * 1_000_001, "characters"),
    ],
)
def test_a_wrong_file_is_a_line_with_its_place(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=why) as error:
        read_prompts(tmp_path / name)
    assert len(str(error.value)) < 400


def test_files_that_cannot_be_are_lines(tmp_path: Path) -> None:
    model = ScriptedModel(echo)
    (tmp_path / "in.txt").write_text("x\n")
    (tmp_path / "gbk.txt").write_bytes("问题".encode("gbk"))
    with pytest.raises(UserError, match="not UTF-8"):
        run(model, tmp_path / "gbk.txt", tmp_path / "out.txt")
    with pytest.raises(UserError, match="cannot be read"):
        run(model, tmp_path / "gone.txt", tmp_path / "out.txt")
    with pytest.raises(UserError, match="are the prompts"):
        run(model, tmp_path / "in.txt", tmp_path / "in.txt")
    with pytest.raises(UserError, match="answers are written as"):
        run(model, tmp_path / "in.txt", tmp_path / "out.doc")
    assert model.asked == []


def test_a_prompt_that_fails_costs_its_own_answer_and_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("fine\nlong\nrefused\nfine too\n")
    heal: list[bool] = []

    def answer(messages: Sequence[Message]) -> str:
        text = messages[-1]["content"]
        if text == "long" and not heal:
            raise ContextError(9000, 4096)
        if text == "refused":
            raise ChatError("will not", 422)
        return echo(messages)

    model = ScriptedModel(answer)
    told = run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=1)
    assert told[-1].failed == 2
    first = lines(tmp_path / "out.jsonl")
    assert [bool(row.get("error")) for row in first] == [False, True, True, False]
    heal.append(True)
    model.asked.clear()
    told = run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=1)
    assert [m[-1]["content"] for m, _ in model.asked] == ["long", "refused"]
    assert (told[0].kept, told[-1].failed) == (2, 1)
    assert lines(tmp_path / "out.jsonl")[1]["answer"] == "答: long"


def test_what_concerns_all_ends_the_batch_and_keeps_what_came(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"q{at}\n" for at in range(20)))
    broken = [True]

    def answer(messages: Sequence[Message]) -> str:
        if broken and messages[-1]["content"] == "q7":
            raise ChatError("wrong API key", 401)
        return echo(messages)

    model = ScriptedModel(answer)
    with pytest.raises(UserError, match=r"wrong API key; 7 of 20 answers are kept"):
        run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=1)
    assert not (tmp_path / "out.jsonl").exists()
    broken.clear()
    model.asked.clear()
    run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=1)
    assert len(model.asked) == 13
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [f"答: q{at}" for at in range(20)]


def test_a_server_that_is_down_is_given_up_soon(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"q{at}\n" for at in range(200)))

    def answer(_: Sequence[Message]) -> str:
        raise ChatError("no connection")

    model = ScriptedModel(answer)
    with pytest.raises(UserError, match="no connection"):
        run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=2)
    assert len(model.asked) < 12


def test_a_changed_prompt_alone_is_asked_anew_and_the_same_one_twice_has_two_answers(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\nb\n")
    numbers = iter(range(100))
    model = ScriptedModel(lambda m: f"{m[-1]['content']}{next(numbers)}" if m[-1]["content"] != "x" else 1 / 0)  # type: ignore[arg-type, return-value]
    work = tmp_path / "out.jsonl.work"
    steps = run_batch(tmp_path / "in.txt", tmp_path / "out.jsonl", by_model(model), identity(model), at_once=1)
    for progress in steps:
        if progress.done == 3:
            break
    steps.close()  # as if it had been stopped before the end
    assert work.exists()
    (tmp_path / "in.txt").write_text("b\nc\nb\na\n")
    model.asked.clear()
    run(model, tmp_path / "in.txt", tmp_path / "out.jsonl", at_once=1)
    assert [m[-1]["content"] for m, _ in model.asked] == ["c"]
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == ["b1", "c3", "b2", "a0"]


def test_two_at_one_batch_are_told(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb\n")
    model = ScriptedModel(echo)
    steps = run_batch(tmp_path / "in.txt", tmp_path / "out.jsonl", by_model(model), identity(model))
    next(steps)
    with pytest.raises(UserError, match="another process"):
        run(model, tmp_path / "in.txt", tmp_path / "out.jsonl")
    list(steps)
    assert len(lines(tmp_path / "out.jsonl")) == 2


def test_anything_may_answer(tmp_path: Path) -> None:
    """A knowledge base, say: its citations go along."""
    (tmp_path / "in.txt").write_text("a\n")

    def ask(prompt: Prompt) -> Outcome:
        return Outcome(prompt.messages[0]["content"].upper(), details={"citations": [{"page": 3}]})

    list(run_batch(tmp_path / "in.txt", tmp_path / "out.jsonl", ask, ["kb", 7]))
    assert lines(tmp_path / "out.jsonl") == [{"prompt": "a", "answer": "A", "details": {"citations": [{"page": 3}]}}]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from knowledge.scripted_model import ScriptedModel
from tinyseek.knowledge.batch import by_model, identity, run_batch
folder = Path(sys.argv[1])

def answer(messages):
    text = messages[-1]["content"]
    time.sleep(0.002)
    with (folder / "asked").open("a") as stream:
        stream.write(text + "\\n")
    return "answer to " + text

model = ScriptedModel(answer)
for progress in run_batch(folder / "in.txt", folder / "out.jsonl", by_model(model), identity(model), at_once=3):
    print(progress.done, flush=True)
"""


def test_a_killed_batch_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    count = 90
    (tmp_path / "in.txt").write_text("".join(f"q{at}\n" for at in range(count)))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parents[1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for stop in (10, 50):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        done = 0
        while done < stop:
            done = int(process.stdout.readline())
        process.kill()
        process.wait()
        assert not (tmp_path / "out.jsonl").exists()
        with (tmp_path / "out.jsonl.work").open("ab") as stream:
            stream.write(b'{"key": "cut sho')  # as a machine that loses power leaves it
    assert subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True).returncode == 0
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")] == [f"answer to q{at}" for at in range(count)]
    asked = Counter((tmp_path / "asked").read_text().split())
    assert (
        sum(times - 1 for times in asked.values()) <= 3 * 6
    )  # those under way when it was killed, and on their way back
