"""Collecting from a teacher that misbehaves in every known way, and never losing or repeating an answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tune.distill.fake_teacher import Reply, fake_teacher, said, trouble
from tune.distill.toys import save_model, save_talks, tokenizer_of

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.run import input_keys, why_build
from tinyseek.text.datasets import find_data
from tinyseek.train import StoppedError
from tinyseek.tune.distill import collect
from tinyseek.tune.distill.journal import Journal, records
from tinyseek.tune.distill.options import CollectSettings

PRICES = {"prices": {"prompt": 1000.0, "completion": 10_000.0, "note": "euros"}, "backoff_seconds": 0.01}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYSEEK_API_KEY", raising=False)


def prompts(tmp_path: Path, questions: list[str], answer: str = "7") -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "answer": answer}) + "\n" for q in questions))
    return file


def settings_of(url: str, data: Path, **changes: Any) -> CollectSettings:
    base: dict[str, Any] = {"teacher": url, "data": [str(data)], "n": 1, "model": "wise", "at_once": 16}
    return CollectSettings.read(base | {"server": {"backoff_seconds": 0.01}} | changes)


def samples(folder: Path) -> list[dict[str, Any]]:
    return list(records(folder / "samples.jsonl"))


def misbehaving(body: dict[str, Any], before: int) -> Reply:
    """By the question's first word."""
    word = body["messages"][-1]["content"].split()[0]
    replies = {
        "right": said("7", reasoning="3+4"),
        "wrong": said("8"),
        "blank": said("  "),
        "late": said("7") if before == 2 else said(""),
        "cut": said("It is about", "length"),
        "refuse": said("I'm sorry, but I can't help with that."),
        "filter": said("", "content_filter"),
        "busy": said("7") if before >= 3 else trouble(429, "slow down", retry_after="0"),
        "broken": said("7") if before >= 2 else trouble(500, "oops"),
        "forbidden": trouble(400, "this prompt is too long"),
        "tags": said("7 <|im_end|>"),
        "long": said("7", tokens=200),
    }
    return replies[word]


def test_what_goes_wrong_is_told_apart_counted_and_asked_again_within_limits(tmp_path: Path) -> None:
    words = [
        "right",
        "wrong",
        "blank",
        "late",
        "cut",
        "refuse",
        "filter",
        "busy",
        "broken",
        "forbidden",
        "tags",
        "long",
    ]
    with fake_teacher(misbehaving) as teacher:
        data = prompts(tmp_path, [f"{word} question" for word in words])
        collect.build(settings_of(teacher.url, data, longest=100), tmp_path / "out")
        came = Counter(one.question.split()[0] for one in teacher.asked)
    dropped = {line["prompt"][0]["content"].split()[0]: line["dropped"] for line in samples(tmp_path / "out")}
    assert dropped == {
        "right": None,
        "wrong": "wrong",
        "blank": "blank",
        "late": None,
        "cut": "truncated",
        "refuse": "refused",
        "filter": "refused",
        "busy": None,
        "broken": None,
        "forbidden": "rejected",
        "tags": "malformed",
        "long": "too_long",
    }
    again = {"blank": 3, "late": 3, "cut": 3, "refuse": 3, "filter": 3, "busy": 4, "broken": 3}
    assert came == {word: again.get(word, 1) for word in words}
    figures = artifact.read(tmp_path / "out").figures
    assert (figures["answers"], figures["kept"], figures["asked_again"]) == (12, 4, 10)
    assert figures["dropped"] == dict(sorted(Counter(why for why in dropped.values() if why).items()))
    assert figures["tokens"]["completion"] == 10 * (10 + 10) + 200  # each answer that came, the discarded ones too
    conversations = list(find_data(tmp_path / "out").examples("chat"))
    assert [message[0]["content"].split()[0] for message in conversations] == ["right", "late", "busy", "broken"]
    assert conversations[0][1] == {"role": "assistant", "content": "7", "reasoning_content": "3+4"}
    # Each try draws by a seed of its own.
    seeds = [one.body["seed"] for one in teacher.asked]
    assert len(set(seeds)) == len(seeds) - 3 - 2  # what failed was never drawn, so it is asked by the same seed


def test_a_pause_that_the_server_asks_for_holds_for_all_requests(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], before: int) -> Reply:
        if len(teacher.asked) == 3:
            return trouble(429, retry_after="1")
        return said("7", seconds=0.02)

    with fake_teacher(answer) as teacher:
        data = prompts(tmp_path, [f"question {n}" for n in range(30)])
        collect.build(settings_of(teacher.url, data, at_once=8), tmp_path / "out")
        refused = next(one.at for one in teacher.asked if one.status == 429)
        # The other one under way may still have sent its next; after that there is a pause.
        gaps = [one.at - refused for one in teacher.asked if one.at > refused]
    assert teacher.most_under_way == 2
    assert sum(gap < 0.9 for gap in gaps) <= 2
    assert len(teacher.given()) == 30


def test_a_bad_key_ends_it_at_once_without_showing_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYSEEK_API_KEY", "sk-secret-secret")

    def answer(body: dict[str, Any], before: int) -> Reply:
        return said("7") if len(teacher.asked) <= 20 else trouble(401, "bad key sk-secret-secret")

    with fake_teacher(lambda *_: trouble(401, "bad key sk-secret-secret")) as teacher:
        data = prompts(tmp_path, [f"question {n}" for n in range(200)])
        with pytest.raises(UserError, match=r"401.*set TINYSEEK_API_KEY to a valid key") as told:
            collect.build(settings_of(teacher.url, data), tmp_path / "out")
        assert len(teacher.asked) <= 4
        assert teacher.asked[0].key == "sk-secret-secret"
        teacher.asked.clear()
        teacher.answer = answer  # a key that is taken back on the way: what came is kept
        with pytest.raises(UserError, match=r"401.* of 200 answers are kept"):
            collect.build(settings_of(teacher.url, data), tmp_path / "out")
        before = len(teacher.given())
        assert before >= 20
        teacher.answer = lambda *_: said("7")
        collect.build(settings_of(teacher.url, data), tmp_path / "out")
        assert len(teacher.given()) == 200
    everything = str(told.value) + capsys.readouterr().err
    assert "sk-secret" not in everything
    assert not any("sk-secret" in path.read_text() for path in tmp_path.rglob("*.json*"))


def test_a_server_that_is_gone_or_rejects_everything_is_given_up(tmp_path: Path) -> None:
    data = prompts(tmp_path, [f"question {n}" for n in range(50)])
    quick = {"server": {"backoff_seconds": 0.01, "retries": 1}}
    with pytest.raises(StoppedError, match=r"5 requests in a row failed: .*is it running"):
        collect.build(settings_of("http://127.0.0.1:9/v1", data, **quick), tmp_path / "out")
    with fake_teacher(lambda *_: trouble(400, "no such parameter: seed")) as teacher:
        with pytest.raises(UserError, match="no such parameter: seed"):
            collect.build(settings_of(teacher.url, data, **quick), tmp_path / "out")
        assert len(teacher.asked) < 12
        teacher.answer = lambda *_: said("7")  # nothing was taken for an answer
        collect.build(settings_of(teacher.url, data, **quick), tmp_path / "out")
    assert artifact.read(tmp_path / "out").figures["kept"] == 50


def test_the_budget_is_never_passed_and_more_money_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """An answer costs 20 x 0.001 + 10 x 0.01 = 0.12, and could cost up to 0.55 or so."""
    with fake_teacher(lambda *_: said("7", seconds=0.005)) as teacher:
        data = prompts(tmp_path, [f"question {n}" for n in range(40)])
        money = {"server": PRICES, "max_tokens": 50}
        with pytest.raises(
            StoppedError, match=r"budget of 2 would be passed .*13 of 40 answers are kept: raise budget"
        ):
            collect.build(settings_of(teacher.url, data, budget=2, **money), tmp_path / "out")
        assert len(teacher.given()) == 13  # a fourteenth might have cost 0.55
        collect.build(settings_of(teacher.url, data, budget=3, unfinished="accept", **money), tmp_path / "out")
        few = len(teacher.given())
        figures = artifact.read(tmp_path / "out").figures
        assert (figures["answers"], figures["currency"]) == (few, "euros")
        assert figures["cost"] == pytest.approx(0.12 * few)
        assert figures["cost"] <= 3
        assert len({json.dumps(one.body["messages"]) for one in teacher.asked}) == few
        assert "unfinished was accept" in why_build(settings_of(teacher.url, data, **money), tmp_path / "out")
        collect.build(
            settings_of(teacher.url, data, **money), tmp_path / "out"
        )  # the folder's answers are taken as they are
        assert len(teacher.given()) == 40
    with pytest.raises(UserError, match="a budget needs prices"):
        settings_of("http://x/v1", data, budget=1)


def test_other_judging_asks_nothing_and_more_answers_ask_for_those_alone(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], before: int) -> Reply:
        return said("7" if body["seed"] % 3 else "8", reasoning=f"by {body['seed']}")

    with fake_teacher(answer) as teacher:
        data = prompts(tmp_path, [f"question {n}" for n in range(10)])
        out = tmp_path / "out"
        collect.build(settings_of(teacher.url, data, n=2), out)
        kept = artifact.read(out).figures["kept"]
        assert 0 < kept < 20
        assert len(teacher.asked) == 20
        every = settings_of(teacher.url, data, n=2, keep="all")
        assert "keep was correct, is all" in why_build(every, out)
        collect.build(every, out)
        assert len(teacher.asked) == 20
        assert artifact.read(out).figures["kept"] == 20
        collect.build(settings_of(teacher.url, data, n=5), out)
        assert len(teacher.asked) == 50
        assert not why_build(settings_of(teacher.url, data, n=5), out)
        collect.build(settings_of(teacher.url, data, n=5, temperature=0.5), out)
        assert len(teacher.asked) == 100  # drawn in another way, so they are other answers
        assert len({one.body["seed"] for one in teacher.asked}) == 100
        assert input_keys(every)["teacher"] != input_keys(settings_of(teacher.url, data, model="other"))["teacher"]


def test_a_stage_that_is_given_nothing_says_who_kept_nothing_and_why(tmp_path: Path) -> None:
    with fake_teacher(misbehaving) as teacher:
        data = prompts(tmp_path, ["wrong 1", "wrong 2", "cut 1"])
        collect.build(settings_of(teacher.url, data, ask_again=0), tmp_path / "answers")
    for kind in ("chat", "prompt"):
        with pytest.raises(UserError) as told:
            list(find_data(tmp_path / "answers").examples(kind))  # type: ignore[arg-type]
        assert "answers (collect) kept none of its 3 answers: 2 wrong, 1 truncated" in str(told.value)
    (tmp_path / "answers" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"train\.jsonl: empty; conversations are expected"):
        list(find_data(tmp_path / "answers").examples("chat"))


def test_a_system_message_is_the_teachers_alone_and_tools_are_passed_on(tmp_path: Path) -> None:
    tool = {"name": "look", "parameters": {"type": "object"}}
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

    def answer(body: dict[str, Any], before: int) -> Reply:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}, {}

    data = tmp_path / "tools.jsonl"
    data.write_text(
        json.dumps({"prompt": "look there", "tools": [tool], "tool_calls": [{"name": "look", "arguments": {}}]})
    )
    with fake_teacher(answer) as teacher:
        settings = settings_of(teacher.url, data, system="Be brief.", rewards={"tool_calls": 1}, thinking=None)
        collect.build(settings, tmp_path / "out")
        body = teacher.asked[0].body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "look there"}]
    assert body["tools"][0]["function"]["name"] == "look"
    (conversation,) = find_data(tmp_path / "out").examples("chat")
    assert [m["role"] for m in conversation] == ["system", "user", "assistant"]
    assert (conversation[0]["content"], conversation[0]["tools"]) == ("", [tool])
    assert conversation[2]["tool_calls"] == [call]


def test_what_cannot_be_judged_or_read_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_teacher(lambda *_: said("7")) as teacher:
        data = tmp_path / "prompts.jsonl"
        data.write_text('{"prompt": "a"}\n{"prompt": "a"}\n{"prompt": ""}\n')
        with pytest.raises(UserError, match='exact_answer: wants the column "answer"'):
            collect.build(settings_of(teacher.url, data), tmp_path / "out")
        with pytest.raises(UserError, match='no reward "exact_anser"; did you mean "exact_answer"'):
            collect.build(settings_of(teacher.url, data, rewards={"exact_anser": 1}), tmp_path / "out")
        assert not teacher.asked
        collect.build(settings_of(teacher.url, data, rewards={}, keep="all"), tmp_path / "out")
        assert len(teacher.asked) == 1
    said_so = capsys.readouterr().err
    assert "1 prompts are in the data more than once" in said_so
    assert re.search(r"1 records could not be read.*line 3", said_so)
    with pytest.raises(UserError, match="keep=correct needs rewards"):
        settings_of("http://x/v1", data, rewards={})


def test_a_line_cut_short_is_taken_away_before_more_is_written(tmp_path: Path) -> None:
    path = tmp_path / "work" / "journal.jsonl"
    with Journal(path) as journal:
        journal.add({"key": "a"})
        journal.add({"key": "é" * 70_000})
    whole = path.read_bytes()
    for cut in (1, 5, 100, 80_000, len(whole) - 13):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            journal.add({"key": "c"})
        assert [record["key"] for record in records(path)] == ["a", "c"]


def test_killed_in_the_middle_it_loses_and_repeats_no_answer(tmp_path: Path) -> None:
    """kill -9, and a cut line besides: each answer that was given is asked for once, and the folder is that of a run
    which was never stopped."""

    def answer(body: dict[str, Any], before: int) -> Reply:
        return said(str(6 + body["seed"] % 3), reasoning=f"by {body['seed']}", seconds=0.02)

    with fake_teacher(answer) as teacher:
        data = prompts(tmp_path, [f"question {n}" for n in range(60)])
        word = [f"teacher={teacher.url}", "model=wise", f"data=[{data}]", "n=3", "at_once=8", "keep=all"]
        command = [sys.executable, "-m", "tinyseek", "collect", str(tmp_path / "out"), *word]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TINYSEEK_API_KEY": ""}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while len(teacher.given()) < 70 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        journal = tmp_path / "out.work" / "answers.jsonl"
        kept = len(list(records(journal)))
        assert 68 <= kept < 170  # all but what was under way: two requests
        with journal.open("ab") as stream:
            stream.write(b'{"key": "half')
        settings = settings_of(teacher.url, data, n=3, at_once=8, keep="all")
        collect.build(settings, tmp_path / "out")
        given = Counter(one.body["seed"] for one in teacher.given())
        assert len(given) == 180
        assert sum(given.values()) - 180 <= 2  # on their way to a process that was dead
        collect.build(settings, tmp_path / "other")
    for name in ("samples.jsonl", "train.jsonl"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "other" / name).read_text()
    assert not (tmp_path / "out.work").exists()


# ---- a model here ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collect")
    save_model(folder / "teacher", tokenizer_of())
    save_talks(folder / "talks.jsonl")
    return folder


def local_settings(small: Path, **changes: Any) -> CollectSettings:
    base = {"teacher": str(small / "teacher"), "data": [str(small / "talks.jsonl")], "n": 3, "max_tokens": 12}
    return CollectSettings.read(base | {"rewards": {"format": 1.0}, "keep": "all", "at_once": 5} | changes)


def test_a_model_here_says_the_same_whatever_is_written_beside_it_and_wherever_it_was_stopped(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect.build(local_settings(small), tmp_path / "whole")
    lines = samples(tmp_path / "whole")
    assert len(lines) == 72
    kinds = Counter(line["outcome"] for line in lines)
    assert kinds["truncated"] > 20
    assert kinds["answered"] > 0
    assert len({json.dumps(line["completion"]) for line in lines}) > 60
    assert not any(
        line["dropped"] for line in lines if line["outcome"] == "answered" and "�" not in line["completion"]["content"]
    )

    written = 0
    add = Journal.add

    def killed(self: Journal, record: dict[str, Any]) -> None:
        nonlocal written
        if written == 20:
            raise KeyboardInterrupt
        written += 1
        add(self, record)

    monkeypatch.setattr(Journal, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        collect.build(local_settings(small, at_once=17), tmp_path / "again")
    monkeypatch.setattr(Journal, "add", add)
    assert len(list(records(tmp_path / "again.work" / "answers.jsonl"))) == 20
    collect.build(local_settings(small, at_once=2), tmp_path / "again")
    cached = {"cached_tokens": 0}  # of the prompts: the only thing that hangs on what was there before
    assert [line | cached for line in samples(tmp_path / "again")] == [line | cached for line in lines]


def test_what_a_model_here_cut_short_is_asked_again_if_so_wished(small: Path, tmp_path: Path) -> None:
    collect.build(local_settings(small, ask_again=2, n=1), tmp_path / "out")
    collect.build(local_settings(small, n=1), tmp_path / "once")
    twice, once = samples(tmp_path / "out"), samples(tmp_path / "once")
    figures = artifact.read(tmp_path / "out").figures
    cut = [line["outcome"] in ("truncated", "blank", "refused") for line in once]
    assert sum(cut) <= figures["asked_again"] <= 2 * sum(cut)
    for first, line, was_cut in zip(once, twice, cut, strict=True):
        assert (first["completion"] == line["completion"]) == (not was_cut)
    collect.build(local_settings(small, ask_again=2, n=1, temperature=0), tmp_path / "greedy")
    assert artifact.read(tmp_path / "greedy").figures["asked_again"] == 0  # it would only say the same


def test_a_prompt_beyond_the_context_is_that_prompts_trouble(small: Path, tmp_path: Path) -> None:
    data = prompts(tmp_path, ["seven " * 400, "how many"])
    collect.build(local_settings(small, data=[str(data)], n=1), tmp_path / "out")
    long, short = samples(tmp_path / "out")
    assert (long["dropped"], long["completion"]) == ("rejected", None)
    assert "context is 128" in long["error"]
    assert short["outcome"] != "rejected"
    with pytest.raises(UserError, match="only a server has several models"):
        collect.build(local_settings(small, model="wise"), tmp_path / "other")
