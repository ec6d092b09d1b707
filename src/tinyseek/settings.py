"""How settings are written: one pydantic model a stage, from which YAML, `key=value`, --help and web forms all come.

A field states its unit and bounds where it is defined; an unknown key is an error that suggests the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from tinyseek.errors import UserError

Where = str | Callable[[list[str]], str]


class Settings(BaseModel):
    """The base of every stage's settings: frozen, unknown keys forbidden, plain JSON both ways."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @classmethod
    def read(cls, values: Mapping[str, Any], where: Where = "settings", at: Sequence[str] = ()) -> Self:
        """Check `values` and build the settings.

        Args:
            values: plain nested mappings, as YAML gives them.
            where: what to name in an error: a file, a stage; or a function that tells the place of a key's path.
            at: the path of `values` in what the user wrote, put before every key that an error names.
        Raises:
            UserError: for the first few wrong values, each with its key, and "did you mean" for an unknown key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_explain(cls, error, where, list(at))) from None
        except UserError as error:  # from a check of the settings' own, which cannot know where they were written
            raise UserError(f"{where if isinstance(where, str) else where(list(at))}: {error}") from None

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

    def resolved(self, path_of: Callable[[str], str]) -> Self:
        """A copy whose inputs are real paths, by `path_of` from what the recipe calls them, or what `located` makes of a name."""

        def real(role: str, source: str) -> str:
            path = path_of(source)
            return path if Path(path).exists() else self.located(role, source) or path

        found: dict[str, Any] = {}
        for name in self._marked("input"):
            value = getattr(self, name)
            if value is not None:
                found[name] = real(name, value) if isinstance(value, str) else [real(name, entry) for entry in value]
        return self.model_copy(update=found)

    def located(self, role: str, source: str) -> str | None:  # noqa: ARG002
        """Where an input lies that is named, and is neither a stage nor a path: a pulled model, a data set. None: it is not there.

        Raises:
            UserError: the name could be known and is not, with what is.
        """
        return None

    def input_key(self, role: str, source: str) -> str | None:  # noqa: ARG002
        """The key of an input's content, where it is more than that of the file or folder `source`; else None."""
        return None

    def essence(self) -> dict[str, Any]:
        """The plain settings that decide what is made: without the inputs' names and without what has no effect on it."""
        left_out = {*self._marked("input"), *self._marked("no_effect")}
        return {key: value for key, value in self.plain().items() if key not in left_out}


def _explain(cls: type[BaseModel], error: ValidationError, where: Where, at: list[str]) -> str:
    """One line a wrong key; the branches of a union (`str | list[str]`) make one line together."""
    lines: dict[str, str] = {}
    for item in error.errors():
        path = _trimmed(cls, [str(part) for part in item["loc"]])
        key = ".".join([*at, *path])
        place = where if isinstance(where, str) else where([*at, *path])
        if item["type"] == "extra_forbidden":
            known = list(_fields_at(cls, path[:-1]))
            lines[key] = f'{place}: unknown setting "{key}"; {suggestion(path[-1], known)}'
        else:
            given = item.get("input")
            shown = "" if item["type"] == "missing" or isinstance(given, Mapping) else f" (got {given!r:.80})"
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            message = "should be a mapping of settings" if item["type"] == "model_type" else message
            message = message if message[1:2].isupper() else message[:1].lower() + message[1:]
            if key in lines:
                lines[key] = lines[key].removesuffix(shown) + f", or: {message}{shown}"
            else:
                lines[key] = f"{place}: {key + ': ' if key else ''}{message}{shown}"
    most = list(lines.values())[:3]
    if len(lines) > len(most):
        most.append(f"... and {len(lines) - len(most)} more")
    return "\n".join(most)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean "steps"?`, or what there is when nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(known) or 'none'}"


def _trimmed(cls: type[BaseModel], path: list[str]) -> list[str]:
    """An error's path without what is no key of the user's: the tags of a union's branches."""
    for end in range(len(path)):
        above = _fields_at(cls, path[:end])
        if path[end] in above and not _models_in(above[path[end]].annotation):
            keys = [part for part in path[end + 1 :] if part.isdigit()]
            return [*path[: end + 1], *keys]
    return path


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


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `3e-4` is a number, a date is text, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f'"{key.value}" is given twice', problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:timestamp", _INT, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


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
        branch = tree
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise UserError(f'"{item}": "{part}" was already given as a plain value')
        branch[parts[-1]] = _value(value)
    return tree


def _value(text: str) -> Any:
    """A value of the command line: YAML where that gives a number, a truth, null, a list or a {mapping}; else the text itself."""
    try:
        parsed = yaml.load(text, _Loader)  # a SafeLoader: plain data only
    except yaml.YAMLError:
        return text
    if parsed is None and text.strip() not in ("null", "~"):
        return text
    return text if isinstance(parsed, dict) and not text.lstrip().startswith("{") else parsed


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
        values = yaml.load(text, _Loader)  # a SafeLoader: plain data only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a mapping of settings is expected, not {type(values).__name__}")
    return values


def line_of(path: Path, keys: Sequence[str]) -> int | None:
    """The line of a YAML file in which the key with this path stands, or its nearest parent; counted from 1."""
    node = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
    line = None
    for part in keys:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in entries if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def describe(cls: type[Settings], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (key, type, default, meaning) of a stage's settings, for --help and documentation.

    What a stage is made from comes first; the settings of a nested model are `model.preset`.
    """
    rows = []
    inputs = cls._marked("input") if issubclass(cls, StageSettings) else []
    for name, info in sorted(cls.model_fields.items(), key=lambda item: item[0] not in inputs):
        inner = [m for m in _models_in(info.annotation) if issubclass(m, Settings)]
        if len(inner) == 1:
            rows += describe(inner[0], f"{prefix}{name}.")
            continue
        default = "required" if info.is_required() else _short(info.get_default(call_default_factory=True))
        rows.append((prefix + name, _type_name(info.annotation, info), default, info.description or ""))
    return rows


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{...}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
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
    if origin is dict:
        return "mapping"
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    name = getattr(annotation, "__name__", str(annotation))
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true|false"}.get(name, name) + bounds
