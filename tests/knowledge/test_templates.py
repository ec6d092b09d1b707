"""Prompt templates: what goes in is put in once, as it is, and what is wrong is a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseek.errors import UserError
from tinyseek.knowledge.templates import SHIPPED, Template, Templates


def letter(**more: object) -> Template:
    return Template.read(
        {
            "background": "A shop. Customers write in {language}.",
            "need": "Answer: {letter}",
            "output": "At most {words} words as {{json}}.",
            "variables": {"letter": {"about": "the letter", "longest": 50}, "words": {"default": "120"}},
            **more,
        }
    )


def test_the_three_parts_are_filled_in() -> None:
    template = letter()
    assert template.names == ["language", "letter", "words"]
    assert template.required == ["language", "letter"]
    system, user = template.messages({"language": "中文", "letter": "Where is {words} {{my}} order?"})
    assert system == {"role": "system", "content": "A shop. Customers write in 中文."}
    assert user["content"] == (
        "What is needed:\nAnswer: Where is {words} {{my}} order?\n\nRequired output:\nAt most 120 words as {json}."
    )
    (alone,) = Template.read({"need": "Say {x}"}).messages({"x": 3})
    assert alone == {"role": "user", "content": "Say 3"}
    assert "需求:" in Template.read({"need": "回答{x}", "output": "一句话"}).messages({"x": "这个"})[0]["content"]


@given(st.text(max_size=80), st.text(max_size=80))
def test_nothing_that_comes_in_is_read_for_variables(one: str, two: str) -> None:
    template = Template.read({"need": "<{a}|{b}>"})
    assert template.messages({"a": one, "b": two})[0]["content"] == f"<{one}|{two}>"


def test_what_is_missing_unknown_or_too_long_is_told() -> None:
    template = letter()
    with pytest.raises(UserError, match=r"wants 2 more: language, letter \(the letter\)"):
        template.messages({})
    with pytest.raises(UserError, match='no variable "leter"; did you mean "letter"'):
        template.messages({"language": "en", "leter": "x"})
    with pytest.raises(UserError, match='"letter" has 51 characters; at most 50'):
        template.messages({"language": "en", "letter": "x" * 51})
    with pytest.raises(UserError, match="the template allows 30"):
        letter(longest=30).messages({"language": "en", "letter": "x"})


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"need": "a { b"}, 'single "{"'),
        ({"need": "line\nb } c"}, "line 2"),
        ({"need": "{a b}"}, "no variable"),
        ({"need": "{}"}, "no variable"),
        ({"need": "{a.__class__}"}, "no variable"),
        ({"need": "{0}"}, "no variable"),
        ({"need": "{x!r}"}, "no variable"),
        ({"need": ""}, "at least 1"),
        ({"background": "x"}, "need"),
        ({"need": "x", "variables": {"y": {}}}, "stands nowhere"),
        ({"need": "x", "outptu": "y"}, "output"),
        ({"need": "x" * 20_001}, "20000"),
        ({"need": " ".join(f"{{v{at}}}" for at in range(60))}, "at most 50"),
    ],
)
def test_a_wrong_template_says_what_is_wrong(values: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Template.read(values, "my.yaml")


def test_templates_are_files_and_the_users_stand_before_ours(tmp_path: Path) -> None:
    templates = Templates(tmp_path / "templates")
    assert templates.names() == sorted(SHIPPED)
    templates.write("周报", letter(about="每周"))
    assert templates.read("周报") == letter(about="每周")
    assert "周报" in templates.names()
    templates.write("summary", Template.read({"need": "{text}"}))
    assert templates.read("summary").need == "{text}"
    templates.delete("summary")
    assert templates.read("summary") == SHIPPED["summary"]
    with pytest.raises(UserError, match="stays"):
        templates.delete("summary")
    with pytest.raises(UserError, match="did you mean"):
        templates.read("sumary")
    for name in ("../evil", "a/b", "", ".hidden", "x" * 65):
        with pytest.raises(UserError, match="no name"):
            templates.read(name)
    (tmp_path / "templates" / "bad.yaml").write_text("need: '{x'\n")
    with pytest.raises(UserError, match=r"bad\.yaml"):
        templates.read("bad")


@pytest.mark.parametrize("name", SHIPPED)
def test_those_that_come_along_work(name: str) -> None:
    template = SHIPPED[name]
    messages = template.messages(dict.fromkeys(template.required, "值"))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "{" not in str(messages[0]["content"]) + str(messages[1]["content"])
    assert Template.read(template.plain()) == template
