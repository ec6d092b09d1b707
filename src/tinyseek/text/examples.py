"""What fine-tuning learns from, out of files: conversations, preference pairs, thumbs, prompts for rewards, labelled text.

    chat         [{"role": ..., "content": ...}, ...]
    preference   Pair     a prompt and two answers, the first the better one
    thumbs       Thumb    a prompt, an answer, and whether it was liked (KTO)
    prompt       Prompt   a prompt, and the record's other columns for the rewards
    label        Labelled a text and its class

A record that cannot be used is counted and named by file and place, and the rest goes on; a file without any usable record, or a
column that is not there, is an error that says what was found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.settings import suggestion
from tinyseek.text.conversations import SHAREGPT, Message, Tags, place_system, question, spoken, to_messages, turns
from tinyseek.text.records import SUFFIXES, BadRecordError, read_records, suffix

Kind = Literal["chat", "preference", "thumbs", "prompt", "label"]
T = TypeVar("T")
_SHOWN = 20  # problems kept word for word; all are counted
EXPECTED: dict[Kind, str] = {
    "chat": "instruction and output (alpaca), conversations (sharegpt) or messages (OpenAI)",
    "preference": "chosen and rejected, beside prompt, instruction, messages or conversations",
    "thumbs": "label (true or false), beside prompt and completion, or messages",
    "prompt": "prompt, instruction or messages, and columns for the rewards",
    "label": "text and label",
}


@dataclass(frozen=True)
class Pair:
    """A prompt and two continuations of it, the first the better one."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float | None = None  # how much better the first is, where that was told


@dataclass(frozen=True)
class Thumb:
    """A prompt, a continuation, and whether it was liked."""

    prompt: list[Message]
    completion: list[Message]
    good: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer, and what the rewards may want to know besides."""

    messages: list[Message]
    columns: dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """A text and its class."""

    text: str
    label: str


@dataclass(frozen=True)
class Layout:
    """How a file's records are laid out, where it does not say so itself."""

    columns: Mapping[str, str] = field(default_factory=dict)  # our name of a column -> the file's
    tags: Tags = SHAREGPT
    header: bool = True
    names: Mapping[str, str] = field(default_factory=dict)  # a class as written -> what to call it
    fill: Mapping[str, str] = field(default_factory=dict)  # {{name}} -> what to put there


PLAIN = Layout()


def _kept_none(folder: Path) -> str:
    """Why a stage that chooses among a teacher's answers has left nothing in its folder; empty if it is no such folder."""
    try:
        made = artifact.read(folder)
    except UserError:
        return ""
    if made.figures.get("kept") != 0 or not isinstance(dropped := made.figures.get("dropped"), dict):
        return ""
    most = sorted(dropped.items(), key=lambda entry: -entry[1])
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in most)
    return (
        f"{folder} ({made.kind}) kept none of its {made.figures.get('answers', 0):,} answers: {why}. Each is in its samples.jsonl; "
        "change that stage: its teacher, n, max_tokens, or keep=best"
    )


class Examples(Iterator[T], Generic[T]):
    """The examples of files, one at a time; `good` and `bad` count those met so far, `problems` names the first bad ones."""

    def __init__(
        self,
        files: Sequence[Path],
        kind: Kind,
        parse: Callable[[dict[str, Any], Layout], T],
        layout: Layout = PLAIN,
        limit: int | None = None,
    ) -> None:
        """See `read_examples`."""
        self.good = 0
        self.bad = 0
        self.problems: list[str] = []
        self.reasons: Counter[str] = Counter()  # how often each thing was wrong
        self.unfilled = 0  # with a placeholder such as {{name}} in it
        self._kind, self._parse, self._layout, self._limit = kind, parse, layout, limit
        self._columns: dict[str, None] = {}
        self._found = self._read(files)

    def __next__(self) -> T:
        return next(self._found)

    def _read(self, files: Sequence[Path]) -> Iterator[T]:
        for file in files:
            before = self.good
            for where, record in read_records(file, self._layout.header):
                if self._limit is not None and self.good >= self._limit:
                    return
                try:
                    if isinstance(record, Exception):
                        raise record
                    if isinstance(record, dict):
                        self._columns.update(dict.fromkeys(map(str, record)))
                    example = self._parse(self._as_ours(record), self._layout)
                except BadRecordError as error:
                    self.bad += 1
                    if len(self.reasons) < 50 * _SHOWN:
                        self.reasons[str(error)] += 1
                    if len(self.problems) < _SHOWN:
                        self.problems.append(f"{file}, {where}: {error}")
                    continue
                self.good += 1
                yield example
            if self.good == before:
                raise UserError(self._nothing_usable(file))
            self._check_columns(file)

    def _as_ours(self, record: Any) -> Any:
        """The record with its columns by our names and its placeholders filled."""
        if not isinstance(record, dict):
            raise BadRecordError(f"an object is expected, not {type(record).__name__}")
        layout = self._layout
        if layout.columns:
            theirs = set(layout.columns.values())
            renamed = {ours: record[own] for ours, own in layout.columns.items() if record.get(own) is not None}
            record = renamed | {name: value for name, value in record.items() if name not in theirs | set(renamed)}
        if layout.fill:
            record = filled(record, layout.fill)
        if unfilled(record):
            self.unfilled += 1
        return record

    def _check_columns(self, file: Path) -> None:
        """Tell of a column that was named and is in no record."""
        for ours, own in self._layout.columns.items():
            if own not in self._columns:
                what = f" (for {ours})" if ours != own else ""
                raise UserError(f'{file}: has no column "{own}"{what}; {suggestion(own, self._columns)}')

    def _nothing_usable(self, file: Path) -> str:
        if not self.bad:
            if why := _kept_none(file.parent):
                return f"{file}: empty, since {why}"
            return f"{file}: empty; {_WANTED[self._kind]} are expected, as {', '.join(s[1:] for s in SUFFIXES)}"
        if self._columns:
            self._check_columns(file)
        columns = f"found the columns {shown(self._columns)}" if self._columns else "found no columns"
        hint = self._other_kind()
        return (
            f"{file}: no usable {_WANTED[self._kind].removesuffix('s')} among {self.bad:,} records; {columns}, but expected "
            f"{EXPECTED[self._kind]}{hint}. First problem: {self.problems[0] if self.problems else '-'}"
        )

    def _other_kind(self) -> str:
        kind = kind_of(dict.fromkeys(self._columns, ""))
        return f" (these look like {_WANTED[kind]})" if kind not in (None, self._kind) else ""


_WANTED: dict[Any, str] = {
    "chat": "conversations",
    "preference": "preference pairs",
    "thumbs": "answers with thumbs",
    "prompt": "prompts",
    "label": "labelled texts",
}


def shown(columns: Iterable[str]) -> str:
    """Columns for people: the first dozen, cut short."""
    return ", ".join(f"{column:.40}" for column in list(columns)[:12])


def kind_of(record: Mapping[str, Any]) -> Kind | None:
    """What a record is of, by its columns; none where they are not known. What is a conversation with more to it is that more."""
    if {"chosen", "rejected"} <= record.keys():
        return "preference"
    talks = {"messages", "conversations", "conversation"} & record.keys() or {"instruction", "output"} <= record.keys()
    answered = talks or {"prompt", "completion"} <= record.keys()
    if "label" in record:
        return "thumbs" if answered else "label" if "text" in record else None
    if answered:
        return "chat"
    return "prompt" if {"prompt", "instruction"} & record.keys() else None


# ---- records to examples ---------------------------------------------------------------------------------------------------------


def chat(record: dict[str, Any], layout: Layout) -> list[Message]:
    """A conversation."""
    return to_messages(record, layout.tags)


def pair(record: dict[str, Any], layout: Layout) -> Pair:
    """A prompt with a chosen and a rejected continuation, in TRL's forms or LLaMA-Factory's."""
    output = record.get("output")
    if isinstance(output, list) and len(output) == 2 and "chosen" not in record:  # LLaMA-Factory's first form
        record = {**record, "chosen": output[0], "rejected": output[1]}
    if "chosen" not in record or "rejected" not in record:
        raise BadRecordError(f"no chosen and rejected (found {', '.join(map(str, list(record)[:8]))})")
    chosen, rejected = (spoken(record[side], side, tags=layout.tags) for side in ("chosen", "rejected"))
    prompt = prompt_of({key: value for key, value in record.items() if key != "output"}, layout, or_none=True)
    if not prompt:  # the prompt is what both begin with
        same = next(
            (at for at, (one, two) in enumerate(zip(chosen, rejected, strict=False)) if one != two),
            min(len(chosen), len(rejected)),
        )
        if same == min(len(chosen), len(rejected)):
            raise BadRecordError("chosen and rejected are the same")
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        place_system(prompt, record)
    elif chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:  # both repeat it
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not any(message["role"] == "user" for message in prompt):
        raise BadRecordError("no prompt: the user says nothing before the answers differ")
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages or messages[-1]["role"] != "assistant":
            raise BadRecordError(f'"{side}" does not end with the assistant')
    if chosen == rejected:
        raise BadRecordError("chosen and rejected are the same")
    margin = record.get("margin")
    if margin is not None:
        try:
            margin = float(margin)
        except (TypeError, ValueError):
            raise BadRecordError(f'"margin" should be a number (found {margin!r:.40})') from None
        if not math.isfinite(margin):
            raise BadRecordError(f'"margin" should be a number (found {margin})')
    return Pair(prompt, chosen, rejected, margin)


_YES, _NO = ("true", "yes", "1", "up", "good"), ("false", "no", "0", "down", "bad")


def thumb(record: dict[str, Any], layout: Layout) -> Thumb:
    """An answer that was liked or not."""
    label = record.get("label")
    word = str(label).strip().lower()
    if "label" not in record or (word not in _YES and word not in _NO):
        found = f"{label!r:.40}" if "label" in record else f"the columns {', '.join(map(str, list(record)[:8]))}"
        raise BadRecordError(f'"label" should be true or false (found {found})')
    messages = turns(record, layout.tags)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise BadRecordError("does not end with what the assistant said")
    return Thumb(messages[:-1], messages[-1:], word in _YES)


def prompt(record: dict[str, Any], layout: Layout) -> Prompt:
    """A prompt to answer. An answer at its end is left out of it; the text of the last one is the column `reply`, for rewards."""
    messages = prompt_of(record, layout) or []
    left_out = []
    while messages and messages[-1]["role"] == "assistant":
        left_out.append(messages.pop())
    if not any(message["role"] == "user" for message in messages):
        raise BadRecordError("the user says nothing")
    used = {"messages", "conversations", "conversation", "instruction", "input", "history", "prompt", "system", "tools"}
    columns = {str(name): value for name, value in record.items() if name not in used}
    if left_out and isinstance(left_out[0].get("content"), str):
        columns.setdefault("reply", left_out[0]["content"])
    return Prompt(messages, columns)


def prompt_of(record: Mapping[str, Any], layout: Layout, or_none: bool = False) -> list[Message] | None:
    """The messages that a record's prompt is, however it is written; none, if that may be, where it has no column for it."""
    for name in ("prompt", "messages", "conversations", "conversation"):
        if record.get(name):
            messages = spoken(record[name], name, "user", layout.tags)
            break
    else:
        if record.get("instruction"):
            messages = question(record)
        elif or_none:
            return None
        else:
            raise BadRecordError(f"no prompt (found {', '.join(map(str, list(record)[:8])) or 'nothing'})")
    place_system(messages, record)
    return messages


def labelled(record: dict[str, Any], layout: Layout) -> Labelled:
    """A text and its class."""
    text, label = record.get("text"), record.get("label")
    if "text" not in record or "label" not in record:
        raise BadRecordError(f"no text and label (found {', '.join(map(str, list(record)[:8]))})")
    if not isinstance(text, str) or not text.strip():
        raise BadRecordError(
            '"text" is empty' if text in ("", None) or isinstance(text, str) else '"text" should be text'
        )
    if label is None or isinstance(label, list | dict | float) or not str(label).strip():
        raise BadRecordError(f'"label" should be a word or a whole number (found {label!r:.40})')
    name = str(label).strip()
    if layout.names and name not in layout.names:
        raise BadRecordError(f'the label "{name}" is none of {", ".join(layout.names)}')
    return Labelled(text, layout.names.get(name, name))


PARSERS: dict[Kind, Callable[[dict[str, Any], Layout], Any]] = {
    "chat": chat,
    "preference": pair,
    "thumbs": thumb,
    "prompt": prompt,
    "label": labelled,
}


# ---- placeholders ----------------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{\{\s*\w+\s*\}\}")


def filled(value: Any, fill: Mapping[str, str]) -> Any:
    """A record with `{{name}}` replaced wherever it stands."""
    if isinstance(value, str):
        return (
            re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: fill.get(match[1], match[0]), value)
            if "{{" in value
            else value
        )
    if isinstance(value, dict):
        return {key: filled(entry, fill) for key, entry in value.items()}
    return [filled(entry, fill) for entry in value] if isinstance(value, list) else value


def unfilled(value: Any) -> bool:
    """Whether a placeholder stands anywhere in a record."""
    if isinstance(value, str):
        return "{{" in value and _PLACEHOLDER.search(value) is not None
    parts: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(unfilled, parts))


# ---- files -----------------------------------------------------------------------------------------------------------------------


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The files of a path: itself, or a folder's train.jsonl (or another split's), or all that are in it.

    Raises:
        UserError: there is no such file, with what there is.
    """
    if path.is_file():
        if suffix(path) not in SUFFIXES:
            raise UserError(f"{path}: {path.suffix or 'such'} files are not read; make it one of {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file")
    there = sorted(file for file in path.iterdir() if file.is_file() and suffix(file) in SUFFIXES)
    there = [file for file in there if file.name not in ("manifest.json", "dataset_info.json", "report.json")]
    named = [file for file in there if file.name.split(".")[0] == (split or "train")]
    if named:
        return named
    if split:
        raise UserError(
            f'{path}: no file of the split "{split}" in it; there are: {", ".join(f.name for f in there) or "none"}'
        )
    if not there:
        raise UserError(f"{path}: no .json or .jsonl file in it, nor .csv, .tsv or .parquet")
    return there


def read_conversations(path: str | Path) -> Examples[list[Message]]:
    """Conversations out of a file, or a folder of ours with a train.jsonl. See `Examples`.

    Raises:
        UserError: at once for a missing file; while reading, for one without any usable record, saying what columns it has.
    """
    return Examples(data_files(Path(path)), "chat", chat)
