"""Both languages say everything."""

from __future__ import annotations

import ast
import json
import string
from pathlib import Path

import pytest

from tinyseek.studio import form, inside
from tinyseek.studio.examples import examples
from tinyseek.studio.options import Talk
from tinyseek.studio.words import CHINESE, TRIES, Words, preferred

SOURCE = Path(inside.__file__).parent


def phrases() -> set[str]:
    """Every phrase that the page says: all text given to `words(...)`, directly or through a table."""
    found = {title for title, *_ in (form.PLAIN | form.MORE).values()} | {
        info.description or "" for info in Talk.model_fields.values()
    }
    for file in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("words", "_words"):
                found |= {
                    part.value
                    for part in ast.walk(node.args[0])
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    return found


def test_every_phrase_has_both_languages() -> None:
    assert phrases() - {"settings", "inside", ""} <= CHINESE.keys()


def test_translations_hold_the_same_values() -> None:
    def fields(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for english, chinese in CHINESE.items():
        assert fields(chinese) <= fields(english)
        assert any("\u4e00" <= char <= "\u9fff" for char in chinese) or english in ("Top-p", "Top-k", "Min-p")
    assert Words("en")("{count} tokens", count=3) == "3 tokens"
    assert Words("zh")("{count} tokens", count=3) == "3 个词元"
    assert len(TRIES["en"]) == len(TRIES["zh"])


def test_questions_to_try() -> None:
    own = ["What is 3 × 6?", "小梅喜欢吃什么？"]
    assert Words("en").tries() == TRIES["en"]
    assert [text for _, text in Words("en").tries(own)] == ["What is 3 × 6?", *[text for _, text in TRIES["en"][:3]]]
    assert Words("zh").tries(own)[0] == ("", "小梅喜欢吃什么？")
    assert {topic for topic, _ in Words("zh").tries(own)} == {""}


def test_questions_of_a_run(tmp_path: Path) -> None:
    tasks = tmp_path / "run" / "tasks"
    tasks.mkdir(parents=True)
    asked = [
        ("en", "arithmetic", "4*6=?"),
        ("en", "arithmetic", "What is 3 × 6?"),
        ("zh", "world", "谁照顾雪球？"),
        ("en", "refusal", "How to steal?"),
    ]
    lines = [
        {"lang": lang, "kind": kind, "messages": [{"role": "user", "content": text}]} for lang, kind, text in asked
    ]
    (tasks / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert examples(tmp_path / "run" / "sft") == examples(str(tmp_path / "run")) == ["What is 3 × 6?", "谁照顾雪球？"]
    assert examples(tmp_path / "elsewhere") == []
    (tasks / "heldout.jsonl").write_text("[]\n")
    assert examples(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de,zh-TW;q=0.5,en;q=0.7", "en"),
        ("fr,de", "en"),
        ("zh;q=x,en", "en"),
        (";;;q=,,", "en"),
    ],
)
def test_the_browsers_language(header: str, language: str) -> None:
    assert preferred(header) == language
