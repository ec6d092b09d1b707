"""Both languages say everything."""

from __future__ import annotations

import ast
import string
from pathlib import Path

import pytest

from tinyseek.studio import form, inside
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
