"""Batches: a file of prompts in, a file of answers out, in the same order, several asked at once.

    prompts.jsonl   {"prompt": ...} or {"messages": [...]} or a template's variables, a line each; "id" and other keys go along
    prompts.txt     a prompt a line
    prompts.csv     a column "prompt" (question, 问题, 提示词), or a template's variables

What has come is in `ANSWERS.work` as it comes, so that a batch that was killed goes on from there; the answers' file appears when
all are there, and never half. An answer belongs to its prompt by the hash of all that decides it: a prompt that was changed is
asked anew, and the others are not. Where some could not be had the work stays, and the same command asks for those alone.
"""

from __future__ import annotations

import csv
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.knowledge.cache import identity_of, key_of
from tinyseek.knowledge.templates import Template
from tinyseek.llm.base import DEFAULT, ChatError, ChatModel, ChatOptions, ContextError, Message

MOST_PROMPTS = 200_000
MOST_BYTES = 1 << 30
LONGEST_PROMPT = 1_000_000  # characters
PROMPT_COLUMNS = ("prompt", "question", "text", "input", "instruction", "提示词", "问题", "提问", "文本", "指令")
GIVE_UP_AFTER = 5  # failures in a row that had nothing to do with their prompts
_ONE_PROMPT = {400, 413, 422, 451}  # statuses by which servers refuse one request and not all
_SYNC = 1.0  # seconds between two times that all is forced onto the disk
_FORMATS = (".jsonl", ".ndjson", ".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what goes along with it to the answers' file."""

    messages: list[Message]
    row: dict[str, Any] = field(default_factory=dict)  # as it stood in the file
    line: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of one prompt."""

    text: str = ""
    error: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # citations, say: plain JSON


@dataclass(frozen=True)
class Progress:
    """How far a batch is."""

    done: int
    total: int
    failed: int
    kept: int  # of the done: from an earlier run
    seconds_left: float | None  # as far as can be said

    def told(self) -> str:
        """In a line."""
        parts = [f"{self.done:,} of {self.total:,}"]
        parts += [f"{self.kept:,} from before"] if self.kept else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        if self.seconds_left is not None and self.done < self.total:
            minutes, seconds = divmod(round(self.seconds_left), 60)
            parts.append(
                f"{minutes}:{seconds:02} left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"
            )
        return ", ".join(parts)


Ask = Callable[[Prompt], Outcome]


def by_model(model: ChatModel, options: ChatOptions = DEFAULT) -> Ask:
    """Asks a model; a knowledge base is asked by a function of the caller's own."""

    def ask(prompt: Prompt) -> Outcome:
        answer = model.complete(prompt.messages, options)
        usage = asdict(answer.usage) if answer.usage else {}
        return Outcome(answer.content, "", answer.finish, usage)

    return ask


def run_batch(
    prompts: Path,
    answers: Path,
    ask: Ask,
    identity: Sequence[Any],
    template: Template | None = None,
    at_once: int = 4,
    again: bool = True,
) -> Iterator[Progress]:
    """Answer a file of prompts.

    Args:
        prompts: .jsonl, .txt, .csv or .tsv.
        answers: likewise; .txt has an answer a line, its line ends as \\n.
        identity: what beside a prompt decides its answer: `identity_of(model)`, options, a collection's revision.
        template: that the rows of the file fill in.
        at_once: prompts under way at the same time.
        again: ask again for what failed in an earlier run.
    Yields:
        Progress: after what is there from before, and after each answer.
    Raises:
        UserError: a file that cannot be read or written; what concerns all prompts: no key, no server. What came is kept.
    """
    if answers.suffix.lower() not in _FORMATS:
        raise UserError(f"{answers}: answers are written as one of {', '.join(_FORMATS)}")
    if prompts.resolve() == answers.resolve():
        raise UserError(f"{answers}: are the prompts; choose another name for the answers")
    read = read_prompts(prompts, template)
    keys = _keys(read, identity)
    work = answers.with_name(answers.name + ".work")
    with _Journal(work) as journal:
        known = {key: entry for key, entry in journal.read().items() if not (again and entry["error"])}
        yield from _asked(read, keys, known, journal, ask, at_once)
        _write(answers, read, [known[key] for key in keys])
        whole = not any(known[key]["error"] for key in keys)
    if whole:
        work.unlink(missing_ok=True)


def _keys(prompts: Sequence[Prompt], identity: Sequence[Any]) -> list[str]:
    """Each prompt's key. The same prompt twice has two: answers are drawn."""
    seen: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        key = key_of(list(identity), prompt.messages)
        seen[key] = seen.get(key, 0) + 1
        keys.append(f"{key[:32]}-{seen[key]}")
    return keys


def _asked(
    prompts: Sequence[Prompt],
    keys: Sequence[str],
    known: dict[str, dict[str, Any]],
    journal: _Journal,
    ask: Ask,
    at_once: int,
) -> Iterator[Progress]:
    """Ask for what is missing, a few ahead, and note each answer as it comes."""
    todo = iter([at for at, key in enumerate(keys) if key not in known])
    kept = sum(key in known for key in keys)
    failed = sum(bool(known[key]["error"]) for key in keys if key in known)
    done, total, began, in_a_row = kept, len(keys), time.monotonic(), 0
    yield Progress(done, total, failed, kept, None)
    under_way: dict[Future[Outcome], int] = {}
    stopping = threading.Event()

    def one(prompt: Prompt) -> Outcome:
        if stopping.is_set():
            raise ChatError("stopped")
        return ask(prompt)

    pool = ThreadPoolExecutor(max(1, at_once), thread_name_prefix="batch")
    try:
        while True:
            while len(under_way) < max(1, at_once) and (at := next(todo, None)) is not None:
                under_way[pool.submit(one, prompts[at])] = at
            if not under_way:
                break
            ready, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ready:
                at = under_way.pop(future)
                outcome, fatal = _outcome(future)
                in_a_row = in_a_row + 1 if fatal is not None else 0
                if fatal is not None and (_concerns_all(fatal) or in_a_row >= GIVE_UP_AFTER):
                    raise UserError(
                        f"{fatal}; {done:,} of {total:,} answers are kept, the same command goes on from there"
                    )
                known[keys[at]] = journal.add(keys[at], outcome)
                done, failed = done + 1, failed + bool(outcome.error)
                left = (time.monotonic() - began) / (done - kept) * (total - done)
                yield Progress(done, total, failed, kept, left)
    finally:
        stopping.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _outcome(future: Future[Outcome]) -> tuple[Outcome, UserError | None]:
    """What came; and where it failed for a reason that is not the prompt's, that reason."""
    try:
        return future.result(), None
    except ContextError as error:
        return Outcome(error=str(error)), None
    except ChatError as error:
        return Outcome(error=str(error)), None if error.status in _ONE_PROMPT else error
    except UserError as error:
        return Outcome(error=str(error)), None


def _concerns_all(error: UserError) -> bool:
    return isinstance(error, ChatError) and error.status in (401, 402, 403, 404)


# ---- the journal -----------------------------------------------------------------------------------------------------------------


class _Journal:
    """An append-only file of outcomes, held by one process at a time; a last line that was cut short is taken away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._held = artifact.lock(path)
            if self._held is None:
                raise UserError(f"{path}: another process is at this batch; wait for it, or stop it")
            self._file = path.open("r+b")
            end = self._file.read().rfind(b"\n") + 1
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self._synced = time.monotonic()

    def read(self) -> dict[str, dict[str, Any]]:
        """The outcomes by key, the last of each."""
        found = {}
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                found[entry["key"]] = {"error": "", **entry}
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, key: str, outcome: Outcome) -> dict[str, Any]:
        """Note one outcome: handed to the system at once, forced onto the disk every second."""
        entry = {"key": key, "error": "", **{name: value for name, value in asdict(outcome).items() if value}}
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); what came before is kept. Make room and run again"
            ) from None
        return entry

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._held:
            os.close(self._held)


# ---- the files ------------------------------------------------------------------------------------------------------------------


def read_prompts(file: Path, template: Template | None = None) -> list[Prompt]:
    """The prompts of a file, in order.

    Raises:
        UserError: no such file or kind of file, a line that is none (which), no prompt in it, too many.
    """
    kind = file.suffix.lower()
    if kind not in _FORMATS:
        raise UserError(f"{file}: prompts are read from one of {', '.join(_FORMATS)}")
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: is larger than {MOST_BYTES >> 20:,} MB; split it")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 (byte {error.start:,}); save it as UTF-8") from None
    rows = (
        _lines(text) if kind == ".txt" else _table(file, text, kind) if kind in (".csv", ".tsv") else _json(file, text)
    )
    prompts = []
    for line, row in rows:
        prompts.append(_prompt(file, line, row, template))
        if len(prompts) > MOST_PROMPTS:
            raise UserError(f"{file}: holds more than {MOST_PROMPTS:,} prompts; split it")
    if not prompts:
        raise UserError(f"{file}: there is no prompt in it")
    return prompts


def _lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _json(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number:,}: not JSON ({error})") from None
        if isinstance(row, str):
            row = {"prompt": row}
        if not isinstance(row, dict):
            raise UserError(f'{file}, line {number:,}: an object is expected, {{"prompt": ...}}')
        yield number, row


def _table(file: Path, text: str, kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_PROMPT)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",")
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{file}, line {reader.line_num:,}: has more values than the first line has names")
            if any(row.values()):
                yield reader.line_num, {name: value or "" for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num:,}: not CSV ({error})") from None


def _prompt(file: Path, line: int, row: dict[str, Any], template: Template | None) -> Prompt:
    try:
        messages = _messages(row, template)
    except UserError as error:
        raise UserError(f"{file}, line {line:,}: {error}") from None
    if sum(len(str(message.get("content"))) for message in messages) > LONGEST_PROMPT:
        raise UserError(f"{file}, line {line:,}: has more than {LONGEST_PROMPT:,} characters")
    return Prompt(messages, row, line)


def _messages(row: Mapping[str, Any], template: Template | None) -> list[Message]:
    if template is not None:
        wanted = template.names
        if list(row) == ["prompt"] and "prompt" not in wanted and len(template.required) == 1:
            return template.messages({template.required[0]: row["prompt"]})  # a line of text for the one variable
        return template.messages({name: row[name] for name in wanted if row.get(name) not in (None, "")})
    if "messages" in row:
        messages = row["messages"]
        good = isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages)
        if not good:
            raise UserError('"messages" is a list of {"role": ..., "content": ...}')
        return list(messages)
    name = next((name for name in PROMPT_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    if name is None:
        raise UserError(f"there is no prompt in it; one of these is expected: messages, {', '.join(PROMPT_COLUMNS)}")
    system = row.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*before, {"role": "user", "content": row[name].strip()}]


def _write(file: Path, prompts: Sequence[Prompt], entries: Sequence[Mapping[str, Any]]) -> None:
    """The answers' file, aside and renamed."""
    kind = file.suffix.lower()
    told = io.StringIO(newline="")
    if kind == ".txt":
        for entry in entries:
            told.write(entry.get("text", "").replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") + "\n")
    elif kind in (".csv", ".tsv"):
        names = list(
            dict.fromkeys(name for prompt in prompts for name in prompt.row if name not in ("answer", "error"))
        )
        writer = csv.DictWriter(
            told, [*names, "answer", "error"], delimiter="\t" if kind == ".tsv" else ",", lineterminator="\n"
        )
        writer.writeheader()
        for prompt, entry in zip(prompts, entries, strict=True):
            row = {name: _cell(value) for name, value in prompt.row.items() if name in names}
            writer.writerow(row | {"answer": entry.get("text", ""), "error": entry["error"]})
    else:
        for prompt, entry in zip(prompts, entries, strict=True):
            answer: dict[str, Any] = {**prompt.row, "answer": entry.get("text", "")}
            answer |= {name: entry[name] for name in ("finish", "usage", "details", "error") if entry.get(name)}
            told.write(json.dumps(answer, ensure_ascii=False) + "\n")
    try:
        artifact.write_text(file, told.getvalue().encode("utf-8", "replace").decode())
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); the answers are kept. Make room and run again"
        ) from None


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def identity(model: ChatModel, options: ChatOptions = DEFAULT, state: str = "") -> list[Any]:
    """What beside a prompt decides its answer."""
    return [*identity_of(model), asdict(options), state]
