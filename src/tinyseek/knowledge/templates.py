"""Prompt templates: background, need, required output, with named variables.

    background: You help a shop. Its customers write in {language}.
    need: Answer this letter: {letter}
    output: At most {words} words, friendly, no promises.
    variables:
      letter: {about: what the customer wrote, longest: 8000}
      words: {about: length of the answer, default: "120"}

What comes in for a variable is put in as it is and never read for variables again. `{{` and `}}` are braces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, field_validator, model_validator

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.knowledge.stopwords import is_chinese
from tinyseek.llm.base import Message
from tinyseek.settings import Settings, read_yaml, suggestion

LONGEST_PART = 20_000  # characters of a part of a template
LONGEST_VALUE = 100_000  # of a variable's value, unless the template says less or more
MOST_VARIABLES = 50
MOST_TEMPLATES = 1_000
_NAME = re.compile(r"[^\W\d]\w{0,39}")
_FILE = re.compile(r"[^\W_](?:[\w-]{0,62}[^\W_])?")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")
_HEADS = {"en": ("Background", "What is needed", "Required output"), "zh": ("背景", "需求", "输出要求")}


class Variable(Settings):
    """What is put into a template under a name."""

    about: str = Field("", max_length=500, description="what it is, for whoever fills it in")
    default: str | None = Field(None, description="what it is where nothing is given; none if something must be")
    longest: int = Field(LONGEST_VALUE, ge=1, le=10_000_000, description="most characters")


class Template(Settings):
    """A prompt in three parts with named variables in braces. Every variable that a part names must be given, or have a default."""

    background: str = Field(
        "", max_length=LONGEST_PART, description="who asks, for whom, what is known: the system message"
    )
    need: str = Field(..., min_length=1, max_length=LONGEST_PART, description="what is to be done")
    output: str = Field(
        "", max_length=LONGEST_PART, description="what the answer must look like: form, length, language"
    )
    about: str = Field("", max_length=500, description="what it is for")
    variables: dict[str, Variable] = Field(default_factory=dict, description="what is known of the variables")
    longest: int = Field(400_000, ge=1, le=50_000_000, description="most characters of the whole prompt, filled in")

    @field_validator("background", "need", "output")
    @classmethod
    def _readable(cls, text: str) -> str:
        for found in _PIECE.finditer(text):
            if found[0] in ("{", "}"):
                line = text.count("\n", 0, found.start()) + 1
                raise ValueError(f'line {line}: a single "{found[0]}"; write it twice, or a variable like {{name}}')
            if found[1] is not None and not _NAME.fullmatch(found[1]):
                raise ValueError(f'"{found[0][:60]}" is no variable; a name has letters, digits and _: {{name}}')
        return text

    @model_validator(mode="after")
    def _known(self) -> Self:
        named = self.names
        unknown = [name for name in self.variables if name not in named]
        if unknown:
            raise ValueError(f'the variable "{unknown[0]}" stands nowhere in the text; {suggestion(unknown[0], named)}')
        if len(named) > MOST_VARIABLES:
            raise ValueError(f"{len(named)} variables; at most {MOST_VARIABLES}")
        return self

    @property
    def names(self) -> list[str]:
        """The variables, in the order in which they come."""
        parts = "\n".join((self.background, self.need, self.output))
        return list(dict.fromkeys(found[1] for found in _PIECE.finditer(parts) if found[1] is not None))

    @property
    def required(self) -> list[str]:
        """Those that must be given."""
        return [name for name in self.names if self._about(name).default is None]

    def _about(self, name: str) -> Variable:
        return self.variables.get(name) or Variable()

    def messages(self, values: Mapping[str, Any]) -> list[Message]:
        """The conversation that the template makes of values.

        Raises:
            UserError: a variable is missing, unknown or too long, or the whole is.
        """
        filled = self._checked(values)
        background, need, output = (_filled(part, filled) for part in (self.background, self.need, self.output))
        heads = _HEADS["zh" if is_chinese(_PIECE.sub(" ", self.need)) else "en"]
        asked = f"{heads[1]}:\n{need}\n\n{heads[2]}:\n{output}" if output else need
        length = len(background) + len(asked)
        if length > self.longest:
            raise UserError(f"the prompt has {length:,} characters; the template allows {self.longest:,} (longest)")
        system: list[Message] = [{"role": "system", "content": background}] if background else []
        return [*system, {"role": "user", "content": asked}]

    def _checked(self, values: Mapping[str, Any]) -> dict[str, str]:
        names = self.names
        for name in values:
            if name not in names:
                raise UserError(f'the template has no variable "{name}"; {suggestion(str(name), names)}')
        filled = {}
        missing = []
        for name in names:
            about = self._about(name)
            value = values.get(name)
            text = about.default if value is None else value if isinstance(value, str) else str(value)
            if text is None:
                missing.append(f"{name} ({about.about})" if about.about else name)
                continue
            if len(text) > about.longest:
                raise UserError(f'the variable "{name}" has {len(text):,} characters; at most {about.longest:,}')
            filled[name] = text
        if missing:
            raise UserError(f"the template wants {len(missing)} more: {', '.join(missing)}; give them as NAME=TEXT")
        return filled


def _filled(part: str, values: Mapping[str, str]) -> str:
    """One pass: what comes in is not looked at again."""

    def one(found: re.Match[str]) -> str:
        return found[0][0] if found[1] is None else values[found[1]]

    return _PIECE.sub(one, part).strip()


class Templates:
    """The user's templates: a YAML file each in one folder; and those that come with the package, which a file of the same name
    stands before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """What there is."""
        own = [file.stem for file in self.folder.glob("*.yaml")] if self.folder.is_dir() else []
        return sorted({*own, *SHIPPED})

    def read(self, name: str) -> Template:
        """One by its name.

        Raises:
            UserError: there is none, or its file is wrong, with the line.
        """
        file = self._file(name)
        if file.is_file():
            return Template.read(read_yaml(file), str(file))
        if name not in SHIPPED:
            raise UserError(f'there is no template "{name}"; {suggestion(name, self.names())}')
        return SHIPPED[name]

    def write(self, name: str, template: Template) -> Path:
        """Keep one. Returns its file.

        Raises:
            UserError: the name is none, there are too many, or it cannot be written.
        """
        file = self._file(name)
        if not file.is_file() and len(self.names()) >= MOST_TEMPLATES:
            raise UserError(f"there are {MOST_TEMPLATES:,} templates already; delete some first")
        plain = template.plain() | {"variables": {key: _short(v) for key, v in template.variables.items()}}
        text = yaml.safe_dump(
            {key: value for key, value in plain.items() if value not in ("", {}, None)},
            allow_unicode=True,
            sort_keys=False,
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            artifact.write_text(file, text)
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror})") from None
        return file

    def delete(self, name: str) -> None:
        """Delete one of the user's own.

        Raises:
            UserError: there is none.
        """
        file = self._file(name)
        if not file.is_file():
            why = (
                "comes with the package and stays" if name in SHIPPED else f"is none; {suggestion(name, self.names())}"
            )
            raise UserError(f'the template "{name}" {why}')
        file.unlink()

    def _file(self, name: str) -> Path:
        if not _FILE.fullmatch(name):
            raise UserError(
                f"{name[:80]!r}: is no name for a template; use letters, digits, - and _, at most 64 (weekly-report)"
            )
        return self.folder / f"{name}.yaml"


def _short(variable: Variable) -> dict[str, Any]:
    return {key: value for key, value in variable.plain().items() if value != getattr(Variable(), key)}


_TEXT = Variable(about="the text, or whole files")
_ZH_TEXT = Variable(about="原文")
SHIPPED = {
    "summary": Template(
        about="a text in a few points",
        background="You summarise faithfully. Nothing is in the summary that is not in the text.",
        need="Summarise this text for {reader}:\n\n{text}",
        output="At most {points} points, each one sentence, with the figures and names that matter. In {language}.",
        variables={
            "text": _TEXT,
            "reader": Variable(default="someone who has not read it"),
            "points": Variable(default="5"),
            "language": Variable(default="the language of the text"),
        },
    ),
    "translate": Template(
        about="a translation that reads as if written so",
        background="You translate. Names, numbers, code and formulas stay as they are.",
        need="Translate into {language}:\n\n{text}",
        output="The translation alone, with the same paragraphs.",
        variables={"text": _TEXT, "language": Variable(about="English, Chinese ...")},
    ),
    "extract": Template(
        about="facts out of a text as JSON",
        background="You read documents and note facts exactly as they stand there.",
        need="From the text below note: {fields}\n\nText:\n{text}",
        output="One JSON object with these keys; null where the text does not say it. Nothing else.",
        variables={"text": _TEXT, "fields": Variable(about="keys, with commas: name, date, amount")},
    ),
    "compare": Template(
        about="two texts against each other",
        background="You compare documents fairly.",
        need="Compare by these points: {points}\n\nFirst:\n{first}\n\nSecond:\n{second}",
        output="A Markdown table, a row for each point, then one sentence on what differs most.",
        variables={"points": Variable(default="what they say, for whom, with what evidence")},
    ),
    "摘要": Template(
        about="把一段文字概括成几点",
        background="你忠实地概括原文，不添加原文没有的内容。",
        need="为{读者}概括下面的文字：\n\n{原文}",
        output="最多{条数}条，每条一句话，保留重要的数字和名称。",
        variables={"原文": _ZH_TEXT, "读者": Variable(default="没有读过原文的人"), "条数": Variable(default="5")},
    ),
    "翻译": Template(
        about="通顺的译文",
        background="你是译者。名称、数字、代码和公式保持原样。",
        need="译成{语言}：\n\n{原文}",
        output="只写译文，段落与原文相同。",
        variables={"原文": _ZH_TEXT, "语言": Variable(default="中文")},
    ),
    "提取": Template(
        about="把文字里的事实整理成 JSON",
        background="你阅读文件，如实记下其中的事实。",
        need="从下面的文字中提取：{字段}\n\n文字：\n{原文}",
        output="一个 JSON 对象，键为上述字段；文字没有说的写 null。不要写别的。",
        variables={"原文": _ZH_TEXT, "字段": Variable(about="用逗号分开：姓名，日期，金额")},
    ),
}
