"""What form an answer must have: JSON, an expression, a choice, calls of certain tools; as a constraint for the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tinyseek.engine.grammar import WHITE_SPACE, Constraint, Matcher
from tinyseek.errors import UserError
from tinyseek.llm.answer import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, HERMES_BEGIN, HERMES_END, SEP
from tinyseek.llm.base import ChatOptions

if TYPE_CHECKING:
    from tinyseek.text.tokenizer import Tokenizer

CallFormat = Literal["deepseek", "fenced", "hermes"]  # see answer.py


def content_form(options: ChatOptions) -> tuple[Literal["json_schema", "json_object", "regex", "choice"], Any] | None:
    """What the content must be: a constraint's kind and value; None for free text.

    Raises:
        UserError: two forms at once, or an unknown `response_format`.
    """
    forms: list[tuple[Any, Any]] = []
    wanted = options.response_format
    if wanted is not None:
        kind = wanted.get("type") if isinstance(wanted, Mapping) else None
        if kind == "json_schema":
            inner = wanted.get("json_schema")
            schema = inner.get("schema", {}) if isinstance(inner, Mapping) else None
            if not isinstance(schema, Mapping | bool):
                raise UserError('response_format needs "json_schema": {"name": ..., "schema": {...}}')
            forms.append(("json_schema", schema))
        elif kind == "json_object":
            forms.append(("json_object", None))
        elif kind != "text":
            raise UserError(f"response_format.type is text, json_object or json_schema, not {kind!r:.40}")
    if options.regex is not None:
        forms.append(("regex", options.regex))
    if options.choice is not None:
        forms.append(("choice", list(options.choice)))
    if len(forms) > 1:
        raise UserError("only one of response_format, regex and choice can be asked for at once")
    return forms[0] if forms else None


def answer_form(
    tokenizer: Tokenizer,
    options: ChatOptions,
    functions: Sequence[Mapping[str, Any]],
    choice: str,
    calls: CallFormat,
    after: int | None,
    opener: int | None,
) -> Constraint | None:
    """The constraint on an answer, None if it is free.

    Args:
        tokenizer: the model's.
        options: of the request.
        functions: the tools that the model was told.
        choice: "auto", "none", "required" or "name:NAME" (`messages.chosen_tool`).
        calls: how the model writes calls.
        after: the token that ends the reasoning, if it is open or may be opened.
        opener: the token that may open it.
    Raises:
        UserError: a form that cannot be read or met.
    """
    form = content_form(options)
    forced = choice == "required" or choice.startswith("name:")
    callable_ = [function for function in functions if choice in ("auto", "required", f"name:{function['name']}")]
    if not callable_ or not (forced or form or any(function.get("strict") for function in callable_)):
        return Constraint(*form, after=after, opener=opener) if form else None
    several = options.parallel_tool_calls is not False and not choice.startswith("name:")
    rules = _Calls(tokenizer, calls, callable_, several)
    if forced:
        grammar = rules.alone()
    elif form:
        grammar = rules.or_content(_content_rule(*form))
    else:
        grammar = rules.in_text()
    return Constraint("lark", grammar, after=after, opener=opener)


def _content_rule(kind: str, value: Any) -> str:
    if kind in ("json_schema", "json_object"):
        return _json_rule({"type": "object"} if kind == "json_object" else value)
    if kind == "regex":
        from llguidance import regex_to_lark

        return f"/{regex_to_lark(value, 'd')}/"
    return " | ".join(map(_quoted, value))


def _json_rule(schema: Mapping[str, Any] | bool) -> str:
    whole: dict[str, Any] = {"anyOf": [schema]} if isinstance(schema, bool) else dict(schema)
    whole["x-guidance"] = {"whitespace_pattern": WHITE_SPACE}
    try:
        return "%json " + json.dumps(whole, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the JSON schema cannot be read: {error}") from None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class _Calls:
    """The rules of a grammar in which tools are called."""

    def __init__(
        self, tokenizer: Tokenizer, calls: CallFormat, functions: Sequence[Mapping[str, Any]], several: bool
    ) -> None:
        self._tokenizer, self._format, self._several = tokenizer, calls, several
        self._rules = [f"args_{number}: {_json_rule(self._arguments(f))}" for number, f in enumerate(functions)]
        bodies = [self._body(function["name"], number) for number, function in enumerate(functions)]
        self._rules.append("body: " + " | ".join(bodies))

    def _mark(self, mark: str) -> str:
        """A mark as one of the vocabulary's tokens, or as text."""
        index = self._tokenizer.controls.get(mark)
        return _quoted(mark) if index is None else f"<[{index}]>"

    def _arguments(self, function: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of a function's arguments; any object for one that is not strict and that the library cannot enforce."""
        schema = function.get("parameters")
        if not schema:
            return {"type": "object", "additionalProperties": False}
        schema = {"type": "object", **schema}
        try:
            Matcher(Constraint("json_schema", schema), self._tokenizer)
        except UserError as error:
            if function.get("strict"):
                raise UserError(f"tool {function['name']!r}: {error}") from None
            return {"type": "object"}
        return schema

    def _body(self, name: str, number: int) -> str:
        if self._format == "deepseek":
            return f"{_quoted(name)} {self._mark(SEP)} args_{number}"
        if self._format == "fenced":
            opening, closing = _quoted(f"{name}\n```json\n"), _quoted("\n```")
            return f'"function" {self._mark(SEP)} {opening} args_{number} {closing}'
        opening = _quoted(f'{{"name": {_quoted(name)}, "arguments": ')
        return f'{opening} args_{number} "}}"'

    def alone(self) -> str:
        """Calls and nothing else."""
        return self._grammar("start: calls", *self._calls())

    def or_content(self, rule: str) -> str:
        """Calls, or content of a form."""
        return self._grammar("start: content | calls", f"content: {rule}", *self._calls())

    def in_text(self) -> str:
        """Free text, and calls after it."""
        text = "TEXT: /(?s:.*)/"
        if self._format != "hermes" or HERMES_BEGIN in self._tokenizer.controls:
            return self._grammar("start: TEXT calls?", text, *self._calls())
        times = "*" if self._several else "?"
        return self._grammar(
            f"start: call{times} TEXT",
            text,
            f"opening[lazy]: TEXT {_quoted(HERMES_BEGIN)}",
            f"call: opening SPACE body SPACE {_quoted(HERMES_END)}",
            "SPACE: /\\n?/",
        )

    def _calls(self) -> list[str]:
        more = "(between call)*" if self._several else ""
        if self._format == "hermes":
            line_end = _quoted("\n")
            return [
                f"calls: call {more}",
                f"between: {line_end}",
                f"call: {self._mark(HERMES_BEGIN)} {line_end} body {line_end} {self._mark(HERMES_END)}",
            ]
        between = _quoted("\n") if self._format == "fenced" else ""
        more = more.replace("between", between)
        return [
            f"calls: {self._mark(CALLS_BEGIN)} call {more} {self._mark(CALLS_END)}",
            f"call: {self._mark(CALL_BEGIN)} body {self._mark(CALL_END)}",
        ]

    def _grammar(self, *rules: str) -> str:
        return "\n".join(["%llguidance {}", *rules, *self._rules])
