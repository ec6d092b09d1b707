"""Every kind of fine-tuning data out of every kind of file, and what is told of what cannot be used."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tinyseek.errors import UserError
from tinyseek.text.examples import (
    EXPECTED,
    PARSERS,
    PLAIN,
    Examples,
    Kind,
    Labelled,
    Layout,
    Pair,
    Prompt,
    Thumb,
    data_files,
    kind_of,
)

USER = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": word} for word in ("good", "bad"))
SYSTEM = {"role": "system", "content": "s"}
PAIR = Pair([USER], [GOOD], [BAD])


def read(tmp_path: Path, records: list[Any], kind: Kind, layout: Layout = PLAIN) -> list[Any]:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records))
    return list(Examples([file], kind, PARSERS[kind], layout))


# ---- kinds -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # both repeat the prompt
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},  # TRL's implicit prompt
        {"messages": [USER], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad", "output": "good"},
        {"instruction": "q", "output": ["good", "bad"]},
    ],
)
def test_preference_pairs_in_all_their_forms(tmp_path: Path, record: dict[str, Any]) -> None:
    assert read(tmp_path, [record], "preference") == [PAIR]
    assert kind_of(record) == "preference" or "chosen" not in record


def test_a_pairs_prompt_may_be_a_whole_conversation_with_a_system_text(tmp_path: Path) -> None:
    before = [SYSTEM, USER, GOOD, {"role": "user", "content": "and?"}]
    (pair,) = read(tmp_path, [{"chosen": [*before, GOOD], "rejected": [*before, BAD]}], "preference")
    assert pair == Pair(before, [GOOD], [BAD])
    (pair,) = read(tmp_path, [{"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"}], "preference")
    assert pair.prompt == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "chosen and rejected are the same"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "chosen and rejected are the same"),
        ({"prompt": "q", "chosen": "", "rejected": "bad"}, '"chosen" is empty'),
        ({"prompt": "q", "chosen": "good"}, "no chosen and rejected (found prompt, chosen)"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": [USER]}, '"rejected" does not end with the assistant'),
        ({"chosen": "good", "rejected": "bad"}, "no prompt"),
    ],
)
def test_pairs_that_teach_nothing_are_counted(tmp_path: Path, record: dict[str, Any], why: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}) + "\n" + json.dumps(record))
    found = Examples([file], "preference", PARSERS["preference"])
    assert list(found) == [PAIR]
    assert found.bad == 1
    assert found.problems[0].startswith(f"{file}, line 2: {why}")


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "completion": "good", "label": True},
        {"prompt": [USER], "completion": [GOOD], "label": 1},
        {"messages": [USER, GOOD], "label": "True"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], "label": "up"},
        {"instruction": "q", "output": "good", "label": "yes"},
    ],
)
def test_thumbs_in_all_their_forms(tmp_path: Path, record: dict[str, Any]) -> None:
    assert kind_of(record) == "thumbs"
    assert read(tmp_path, [record, record | {"label": False}], "thumbs") == [
        Thumb([USER], [GOOD], True),
        Thumb([USER], [GOOD], False),
    ]
    with pytest.raises(UserError, match=r'"label" should be true or false \(found 3\)'):
        read(tmp_path, [record | {"label": 3}], "thumbs")
    with pytest.raises(UserError, match=r"\"label\" should be true or false \(found the columns"):
        read(tmp_path, [{key: value for key, value in record.items() if key != "label"}], "thumbs")


def test_prompts_keep_their_other_columns_and_leave_answers_out(tmp_path: Path) -> None:
    records = [
        {"prompt": "q", "answer": 7, "kind": "sum"},
        {"messages": [SYSTEM, USER, GOOD], "answer": [1, 2]},
        {"instruction": "q", "output": "a", "system": "s"},
    ]
    assert read(tmp_path, records, "prompt") == [
        Prompt([USER], {"answer": 7, "kind": "sum"}),
        Prompt([SYSTEM, USER], {"answer": [1, 2], "reply": GOOD["content"]}),
        Prompt([SYSTEM, USER], {"output": "a"}),
    ]


def test_labels_are_words_or_whole_numbers_and_may_be_named(tmp_path: Path) -> None:
    records = [{"text": "x", "label": 0}, {"text": "y", "label": "1"}, {"text": "z", "label": True}]
    assert read(tmp_path, records, "label") == [Labelled("x", "0"), Labelled("y", "1"), Labelled("z", "True")]
    named = Layout(names={"0": "ham", "1": "spam"})
    assert read(tmp_path, records[:2], "label", named) == [Labelled("x", "ham"), Labelled("y", "spam")]
    with pytest.raises(UserError, match='the label "True" is none of 0, 1'):
        read(tmp_path, records[2:], "label", named)
    for broken, why in (
        ({"text": "", "label": 1}, '"text" is empty'),
        ({"text": "x", "label": None}, "a word or a whole number"),
    ):
        with pytest.raises(UserError, match=why):
            read(tmp_path, [broken], "label")


def test_kinds_are_told_by_columns() -> None:
    assert kind_of({"text": "", "label": ""}) == "label"
    assert kind_of({"prompt": "", "completion": ""}) == "chat"
    assert kind_of({"prompt": "", "answer": ""}) == "prompt"
    assert kind_of({"question": "", "answer": ""}) is None


@pytest.mark.parametrize(
    ("kind", "record"),
    [("chat", {"text": "x", "label": 1}), ("label", {"messages": []}), ("thumbs", {"chosen": "", "rejected": ""})],
)
def test_data_of_another_kind_is_named(tmp_path: Path, kind: Kind, record: dict[str, Any]) -> None:
    with pytest.raises(UserError) as told:
        read(tmp_path, [record] * 3, kind)
    assert EXPECTED[kind] in str(told.value)
    assert "these look like" in str(told.value)
    assert f"found the columns {', '.join(record)}" in str(told.value)


# ---- columns and placeholders ----------------------------------------------------------------------------------------------------


def test_columns_by_other_names(tmp_path: Path) -> None:
    layout = Layout(columns={"instruction": "question", "output": "answer", "input": "context"})
    records = [
        {"question": "q", "answer": "good"},
        {"question": "q", "context": "c", "answer": "good", "instruction": "other"},
    ]
    assert read(tmp_path, records, "chat", layout) == [
        [USER, GOOD],
        [{"role": "user", "content": "q\nc"}, GOOD],
    ]
    wrong = Layout(columns={"instruction": "questions", "output": "answer"})
    with pytest.raises(UserError, match=r'has no column "questions" \(for instruction\); did you mean "question"\?'):
        read(tmp_path, records, "chat", wrong)
    optional = Layout(columns={"instruction": "question", "output": "answer", "history": "histori"})
    with pytest.raises(UserError, match=r'has no column "histori" \(for history\)'):  # never silence
        read(tmp_path, records[:1], "chat", optional)


def test_placeholders_are_filled_or_counted(tmp_path: Path) -> None:
    record = {"instruction": "who?", "output": "I am {{name}}, by {{ author }}."}
    (said,) = read(tmp_path, [record], "chat", Layout(fill={"name": "Ada", "author": "me"}))
    assert said[-1]["content"] == "I am Ada, by me."
    found = Examples([tmp_path / "data.jsonl"], "chat", PARSERS["chat"], Layout(fill={"name": "Ada"}))
    assert next(found)[-1]["content"] == "I am Ada, by {{ author }}."
    assert found.unfilled == 1


# ---- files -----------------------------------------------------------------------------------------------------------------------

ROWS = [("a, b", "0"), ('say "hi"', "1"), ("好", "0")]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt", "x.jsonl", "x.jsonl.gz", "x.json", "x.parquet"])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    records = [{"text": text, "label": label} for text, label in ROWS]
    if name == "x.csv":
        file.write_text('text,label\n"a, b",0\n"say ""hi""",1\n好,0\n', encoding="utf-8-sig")
    elif name in ("x.tsv", "x.txt"):
        file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS), encoding="utf-8")
    elif name == "x.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        text = json.dumps(records) if name == "x.json" else "\n".join(map(json.dumps, records))
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert list(Examples(data_files(file), "label", PARSERS["label"])) == [
        Labelled(text, label) for text, label in ROWS
    ]


def test_a_table_without_a_header_and_one_with_crooked_rows(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_bytes("good\t1\nno label\nbad\xff\t0\nfine\t0\n".encode("latin-1"))
    layout = Layout(columns={"text": "0", "label": "1"}, header=False)
    found = Examples([file], "label", PARSERS["label"], layout)
    assert list(found) == [Labelled("good", "1"), Labelled("fine", "0")]
    assert [problem.removeprefix(f"{file}, ") for problem in found.problems] == [
        "line 2: 1 columns, and 2 before",
        "line 3: not UTF-8; convert the file",
    ]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    for name, content, why in (
        ("x.jsonl.gz", gzip.compress(b'{"text": "x", "label": 1}\n' * 99)[:-9], "damaged gzip"),
        ("x.parquet", b"PAR1 not really", "damaged, or no parquet file"),
        ("x.csv", b"", "empty"),
        ("y.csv", b"text,label\n", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=why):
            list(Examples(data_files(tmp_path / name), "label", PARSERS["label"]))
    (tmp_path / "x.docx").touch()
    with pytest.raises(UserError, match=r"\.docx files are not read"):
        data_files(tmp_path / "x.docx")


def test_a_folders_split(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.csv", "manifest.json"):
        (tmp_path / name).touch()
    assert data_files(tmp_path) == [tmp_path / "train.jsonl"]
    assert data_files(tmp_path, "test") == [tmp_path / "test.csv"]
    with pytest.raises(UserError, match=r'no file of the split "dev" in it; there are: test.csv, train.jsonl'):
        data_files(tmp_path, "dev")
