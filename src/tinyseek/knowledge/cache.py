"""Answers kept: what was asked of a model once, exactly so, is not asked again.

An answer's key is the hash of all that decides it: the model and its content, the conversation, the options, the state of the
collection that it was drawn from. The cache is one SQLite file of bounded size; what was used longest ago goes first. It is never
worth an answer: where it cannot be read or written, the model is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tinyseek import artifact
from tinyseek.errors import UserError
from tinyseek.llm.base import (
    DEFAULT,
    Answer,
    ChatDelta,
    ChatModel,
    ChatOptions,
    Collector,
    Message,
    ToolCallDelta,
    Usage,
)

if TYPE_CHECKING:
    from tinyseek.llm.local import LocalChat

LARGEST = 8 << 20  # bytes of one entry
_TOUCH = 60.0  # seconds between two notes that an entry was used
_FULL, _EMPTIED = 1.0, 0.9  # of the bound: when old entries go, and how far
_SAMPLE = 4096  # numbers of each tensor of a local model, by which it is known
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key BLOB PRIMARY KEY, value BLOB NOT NULL, size INTEGER NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, size);
CREATE TABLE IF NOT EXISTS total (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL);
INSERT OR IGNORE INTO total VALUES (1, 0);
"""


def key_of(*parts: Any) -> str:
    """The hash of plain JSON values, 64 hexadecimal digits; what differs in any part has another key."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ResponseCache:
    """Plain JSON values by key, on disk. Safe to use from several threads and processes.

    Attributes:
        hits: how many were found here since it was opened. misses: how many were not.
    """

    def __init__(self, file: Path, most_mb: float = 256) -> None:
        """Open a cache, or begin one; one that is damaged is begun anew.

        Raises:
            UserError: it cannot be written there.
        """
        self.file, self._most = file, int(most_mb * 1e6)
        self.hits = self.misses = 0
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # answers are nobody else's
            try:
                self._db = self._opened()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                for part in ("", "-wal", "-shm"):
                    file.with_name(file.name + part).unlink(missing_ok=True)
                os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
                self._db = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{file}: the cache cannot be written ({error}); choose another place for it") from None

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.file, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000"):
                db.execute(f"PRAGMA {pragma}")
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        except BaseException:
            db.close()
            raise
        return db

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        found = None
        with self._lock, contextlib.suppress(sqlite3.Error, zlib.error, ValueError):
            row = self._db.execute("SELECT value, used FROM responses WHERE key = ?", (bytes.fromhex(key),)).fetchone()
            if row is not None:
                found = json.loads(zlib.decompress(row[0]))
                if time.time() - row[1] > _TOUCH:
                    self._db.execute("UPDATE responses SET used = ? WHERE key = ?", (time.time(), bytes.fromhex(key)))
        with self._lock:
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key: str, value: Any) -> bool:
        """Keep a value; the oldest make room. Returns whether it is kept: it is not where it is too large or the disk is full."""
        packed = zlib.compress(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), 3)
        if len(packed) > min(LARGEST, self._most // 4):
            return False
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._keep(bytes.fromhex(key), packed)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                return False
        return True

    def _keep(self, key: bytes, packed: bytes) -> None:
        size = len(packed) + 100  # with what a row takes beside it
        before = self._db.execute("SELECT size FROM responses WHERE key = ?", (key,)).fetchone()
        self._db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)", (key, packed, size, time.time()))
        self._db.execute("UPDATE total SET size = size + ?", (size - (before[0] if before else 0),))
        total = self._db.execute("SELECT size FROM total").fetchone()[0]
        if total <= self._most * _FULL:
            return
        gone, freed = [], 0
        for old, length in self._db.execute("SELECT key, size FROM responses ORDER BY used"):
            if total - freed <= self._most * _EMPTIED:
                break
            gone.append((old,))
            freed += length
        self._db.executemany("DELETE FROM responses WHERE key = ?", gone)
        self._db.execute("UPDATE total SET size = size - ?", (freed,))

    def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        with self._lock:
            count = self._db.execute("SELECT count(*) FROM responses").fetchone()[0]
            return count, self._db.execute("SELECT size FROM total").fetchone()[0]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._db.executescript("BEGIN IMMEDIATE; DELETE FROM responses; UPDATE total SET size = 0; COMMIT; VACUUM;")

    def close(self) -> None:
        """Fold the log into the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CachedChat(ChatModel):
    """A model whose answers are kept. Also those that were drawn by chance: the same question has the same answer then.

    Answers with log-probabilities are never kept, nor those that were broken off, are empty, or were not read to their end.
    """

    def __init__(self, model: ChatModel, cache: ResponseCache, state: Callable[[], str] | str = "") -> None:
        """A model and where its answers are kept.

        Args:
            state: what else decides an answer, asked for at every question: the revision of a collection, say.
        """
        self.name, self.context = model.name, model.context
        self._model, self._cache, self._state = model, cache, state
        self._identity = identity_of(model)

    def key(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> str:
        """Under which the answer to a conversation is kept."""
        state = self._state if isinstance(self._state, str) else self._state()
        return key_of("chat", self._identity, list(messages), asdict(options), state)

    def stream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> Iterator[ChatDelta]:
        """The answer, from here if it is here."""
        key = "" if options.logprobs else self.key(messages, options)
        kept = self._cache.get(key) if key else None
        if kept is not None:
            yield from _replayed(kept)
            return
        collector = Collector()
        for delta in self._model.stream(messages, options):
            collector.push(delta)
            yield delta
        self._keep(key, collector)

    async def astream(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> AsyncIterator[ChatDelta]:
        """`stream` for asyncio."""
        key = "" if options.logprobs else self.key(messages, options)
        kept = await asyncio.to_thread(self._cache.get, key) if key else None
        if kept is not None:
            for delta in _replayed(kept):
                yield delta
            return
        collector = Collector()
        async for delta in self._model.astream(messages, options):
            collector.push(delta)
            yield delta
        await asyncio.to_thread(self._keep, key, collector)

    def _keep(self, key: str, collector: Collector) -> None:
        answers = collector.answers()
        whole = all(a.finish in ("stop", "length", "tool_calls") and (a.content or a.tool_calls) for a in answers)
        if key and answers and whole:
            usage = asdict(collector.usage) if collector.usage else None
            self._cache.put(key, {"answers": [[a.message, a.finish] for a in answers], "usage": usage})

    def count_tokens(self, messages: Sequence[Message], options: ChatOptions = DEFAULT) -> int | None:
        """As the model counts."""
        return self._model.count_tokens(messages, options)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """As the model does; vectors are not kept."""
        return self._model.embed(texts)

    def close(self) -> None:
        """Close the model; the cache stays open."""
        self._model.close()


def _replayed(kept: dict[str, Any]) -> Iterator[ChatDelta]:
    """A kept answer as a stream; it cost nothing this time."""
    answers = [Answer(message, finish) for message, finish in kept["answers"]]
    usage = Usage(**kept["usage"]) if kept["usage"] else None
    usage = replace(usage, cost=0.0) if usage and usage.cost else usage
    for index, answer in enumerate(answers):
        if answer.reasoning:
            yield ChatDelta(index, reasoning=answer.reasoning)
        if answer.content:
            yield ChatDelta(index, content=answer.content)
        for at, call in enumerate(answer.tool_calls):
            function = call["function"]
            yield ChatDelta(index, tool_calls=(ToolCallDelta(at, call["id"], function["name"], function["arguments"]),))
        yield ChatDelta(index, finish=answer.finish, usage=usage if index == len(answers) - 1 else None)


def identity_of(model: ChatModel) -> list[str]:
    """Which model it is, so that another of the same name is another: a server and the name there, or a local model's content."""
    from tinyseek.llm.local import LocalChat
    from tinyseek.llm.remote import RemoteChat

    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if isinstance(model, CachedChat):
        return identity_of(model._model)
    if isinstance(model, RemoteChat):
        return [kind, model.url, model.model]
    if isinstance(model, LocalChat):
        return [kind, model.name, _content_of(model)]
    return [kind, model.name]


def _content_of(model: LocalChat) -> str:
    """The hash of a local model: of a sample of each of its tensors, of its adapter's files, of how it renders and counts a text.

    A sample will do: training changes nearly every weight. 4,096 numbers of each of the 272 tensors of a 135-million model: 0.1 s.
    """
    import torch

    digest = hashlib.sha256()
    network = model.engine.model
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    adapter = model.engine.adapter(model.adapter) if model.adapter else None
    if adapter is not None:
        digest.update(artifact.file_key(adapter.folder).encode())
    probe = model.prompt(
        [{"role": "system", "content": "Be brief. 简短。"}, {"role": "user", "content": "Hello, 世界 123!"}]
    )
    digest.update(json.dumps([list(probe.ids), asdict(model.defaults)], sort_keys=True, default=str).encode())
    return digest.hexdigest()
