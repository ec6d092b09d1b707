"""How settings are written: one pydantic model a stage, from which YAML, `key=value`, --help and web forms all come.

A field states its unit and bounds where it is defined; an unknown key is an error that suggests the nearest known one.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tinyseek.errors import UserError


class Settings(BaseModel):
    """The base of every stage's settings: frozen, unknown keys forbidden, plain JSON both ways."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def read(cls, values: Mapping[str, Any], where: str = "settings") -> Self:
        """Check `values` and build the settings.

        Args:
            values: plain nested mappings, as YAML gives them.
            where: what to name in an error: a file, a stage.
        Raises:
            UserError: for the first few wrong values, each with its key, and "did you mean" for an unknown key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_explain(cls, error, where)) from None

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, every default written out: what a manifest records and a hash is taken of."""
        return self.model_dump(mode="json")


def taken_from(default: Any, description: str) -> Any:
    """A field that names what a stage is made from: an earlier stage of the recipe, or a path (or a list of them)."""
    return Field(default, description=description, json_schema_extra={"input": True})


def no_effect(default: Any, description: str, **bounds: Any) -> Any:
    """A field that changes how a stage runs or shows itself, not what it makes, and so stays out of the key."""
    return Field(default, description=description, json_schema_extra={"no_effect": True}, **bounds)


class StageSettings(Settings):
    """The settings of one stage. The stage's module has `build(settings, folder)`, which writes one artefact."""

    @classmethod
    def _marked(cls, mark: str) -> list[str]:
        extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return [name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(mark)]

    def taken(self) -> dict[str, str]:
        """Role -> stage name or path of everything that the stage is made from; a list gives `role.0`, `role.1`, ..."""
        roles: dict[str, str] = {}
        for name in self._marked("input"):
            value = getattr(self, name)
            if isinstance(value, str):
                roles[name] = value
            elif value is not None:
                roles |= {f"{name}.{index}": entry for index, entry in enumerate(value)}
        return roles

    def essence(self) -> dict[str, Any]:
        """The plain settings that decide what is made: without the inputs' names and without what has no effect on it."""
        left_out = {*self._marked("input"), *self._marked("no_effect")}
        return {key: value for key, value in self.plain().items() if key not in left_out}


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    lines = []
    for item in error.errors()[:3]:
        path = [str(part) for part in item["loc"]]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            known = list(_fields_at(cls, path[:-1]))
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
            lines.append(f'{where}: unknown setting "{key}"; {hint}')
        else:
            given = item.get("input")
            shown = "" if item["type"] == "missing" or isinstance(given, Mapping) else f" (got {given!r:.80})"
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: {key + ': ' if key else ''}{message[:1].lower() + message[1:]}{shown}")
    more = error.error_count() - len(lines)
    if more > 0:
        lines.append(f"... and {more} more")
    return "\n".join(lines)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every settings class that an annotation mentions, through Optional, unions, lists and dicts."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _fields_at(cls: type[BaseModel], path: list[str]) -> dict[str, FieldInfo]:
    """The fields known below `path` of `cls`, for a suggestion; parts that are no field (a union's tag) are stepped over."""
    models = [cls]
    for part in path:
        inner = [
            m for model in models if part in model.model_fields for m in _models_in(model.model_fields[part].annotation)
        ]
        tagged = [m for m in models if m.__name__ == part]
        models = inner or tagged or models
    return {name: info for model in models for name, info in model.model_fields.items()}


def nested(overrides: Iterable[str]) -> dict[str, Any]:
    """`["pretrain.steps=100", "corpus=my.txt"]` to `{"pretrain": {"steps": 100}, "corpus": "my.txt"}`.

    Values are YAML, so numbers, true, null and [lists] come out typed.

    Raises:
        UserError: for an item that is no `key=value`.
    """
    tree: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f'"{item}" is no setting; write key=value, for example pretrain.steps=200')
        try:
            parsed = yaml.safe_load(value) if value.strip() else ""
        except yaml.YAMLError:
            parsed = value
        branch = tree
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise UserError(f'"{item}": "{part}" was already given as a plain value')
        branch[parts[-1]] = parsed
    return tree


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping.

    Raises:
        UserError: missing, unreadable, no YAML (with the line), or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a mapping of settings is expected, not {type(values).__name__}")
    return values


def describe(cls: type[Settings]) -> list[tuple[str, str, str, str]]:
    """Rows (key, type, default, meaning) of a stage's settings, for --help and documentation."""
    rows = []
    for name, info in cls.model_fields.items():
        default = "required" if info.is_required() else _short(info.get_default(call_default_factory=True))
        rows.append((name, _type_name(info.annotation, info), default, info.description or ""))
    return rows


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{...}"
    return "none" if value is None else str(value)


def _type_name(annotation: Any, info: FieldInfo | None = None) -> str:
    bounds = ""
    for rule in info.metadata if info else ():
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            bound = getattr(rule, attribute, None)
            if bound is not None:
                bounds += f" {sign}{bound}"
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return "|".join("none" if a is type(None) else _type_name(a) for a in arguments) + bounds
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0])}"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    return getattr(annotation, "__name__", str(annotation)) + bounds
