"""Conversations with tags, in one SQLite file beside the collections: each belongs to an owner, and none is shown to another."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from tinyseek.errors import UserError
from tinyseek.knowledge.memory import checked_tags
from tinyseek.knowledge.store import Store, like
from tinyseek.llm.base import Message

LONGEST_MESSAGE = 200_000  # characters
LONGEST_TITLE = 120
MOST_CONVERSATIONS = 10_000  # of one owner
MOST_MESSAGES = 2_000  # of one conversation

_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, collection TEXT NOT NULL, tags TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX conversations_by_owner ON conversations (owner, updated DESC);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    role TEXT NOT NULL, content TEXT NOT NULL, details TEXT NOT NULL, created REAL NOT NULL
);
CREATE INDEX messages_by_conversation ON messages (conversation, id);
"""
_VERSION = 1


@dataclass(frozen=True)
class Conversation:
    """One conversation, without its messages."""

    id: str
    title: str
    collection: str
    tags: tuple[str, ...]
    created: float  # seconds since 1970
    updated: float


@dataclass(frozen=True)
class Said:
    """One message of a conversation."""

    id: int
    role: Literal["user", "assistant"]
    content: str
    details: dict[str, Any] = field(default_factory=dict)  # citations, hits, the model's name: plain JSON
    created: float = 0.0

    @property
    def message(self) -> Message:
        """As a model reads it."""
        return {"role": self.role, "content": self.content}


class Conversations:
    """The store. Every method sees only what belongs to `owner`. Safe to use from several threads and processes."""

    def __init__(self, file: Path, owner: str = "") -> None:
        """Open the store, or make it.

        Raises:
            UserError: the file cannot be written, or is no such store.
        """
        self.owner = owner
        self._store = Store(file, _SCHEMA, _VERSION)
        self._read, self._write = self._store.read, self._store.write

    def close(self) -> None:
        """Fold the log into the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, title: str = "", collection: str = "default", tags: Sequence[str] = ()) -> Conversation:
        """A new, empty conversation.

        Raises:
            UserError: there are too many, or a tag is none.
        """
        tags = checked_tags(tags)
        if self._read("SELECT count(*) FROM conversations WHERE owner = ?", self.owner)[0][0] >= MOST_CONVERSATIONS:
            raise UserError(f"there are {MOST_CONVERSATIONS:,} conversations already; delete some first")
        now = time.time()
        made = Conversation(uuid.uuid4().hex, _line(title), collection, tags, now, now)
        values = (made.id, self.owner, made.title, collection, _tags(tags), now, now)
        with self._write() as db:
            db.execute("INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return made

    def get(self, conversation: str) -> Conversation:
        """One conversation.

        Raises:
            UserError: the owner has none of this id.
        """
        rows = self._read("SELECT * FROM conversations WHERE id = ? AND owner = ?", conversation, self.owner)
        if not rows:
            raise UserError(f"there is no conversation {conversation[:40]!r}")
        return _conversation(rows[0])

    def find(
        self, search: str = "", tags: Sequence[str] = (), collection: str | None = None, most: int = 200
    ) -> list[Conversation]:
        """Conversations, the one used last first: those with all words of `search` in title or messages, and with all tags."""
        query, values = "SELECT * FROM conversations AS c WHERE owner = ?", [self.owner]
        for word in search[:200].split()[:8]:
            query += (
                " AND (title LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM messages WHERE conversation = c.id"
                " AND content LIKE ? ESCAPE '\\'))"
            )
            values += [like(word)] * 2
        for tag in tags:
            query += " AND EXISTS (SELECT 1 FROM json_each(c.tags) WHERE value = ?)"
            values.append(tag)
        if collection is not None:
            query += " AND collection = ?"
            values.append(collection)
        return [
            _conversation(row)
            for row in self._read(f"{query} ORDER BY updated DESC, id LIMIT ?", *values, max(0, most))
        ]

    def tags(self) -> list[tuple[str, int]]:
        """The tags in use and how many conversations have each, the most used first."""
        query = (
            "SELECT value, count(*) AS n FROM conversations, json_each(tags) WHERE owner = ?"
            " GROUP BY value ORDER BY n DESC, value"
        )
        return [(row[0], row[1]) for row in self._read(query, self.owner)]

    def add(
        self,
        conversation: str,
        role: Literal["user", "assistant"],
        content: str,
        details: Mapping[str, Any] | None = None,
    ) -> Said:
        """Add a message; the first of the user's gives a conversation without a title its own.

        Raises:
            UserError: there is no such conversation, or the message or the conversation is too long.
        """
        content = content.encode("utf-8", "replace").decode()
        if len(content) > LONGEST_MESSAGE:
            raise UserError(f"the message has {len(content):,} characters; at most {LONGEST_MESSAGE:,}")
        now = time.time()
        plain = json.dumps(dict(details or {}), ensure_ascii=False)
        with self._write() as db:
            known = self.get(conversation)
            count = db.execute("SELECT count(*) FROM messages WHERE conversation = ?", (conversation,)).fetchone()[0]
            if count >= MOST_MESSAGES:
                raise UserError(f"the conversation has {count:,} messages; begin a new one")
            cursor = db.execute(
                "INSERT INTO messages (conversation, role, content, details, created) VALUES (?, ?, ?, ?, ?)",
                (conversation, role, content, plain, now),
            )
            title = known.title or (_line(content) if role == "user" else "")
            db.execute("UPDATE conversations SET updated = ?, title = ? WHERE id = ?", (now, title, conversation))
        return Said(cursor.lastrowid or 0, role, content, json.loads(plain), now)

    def messages(self, conversation: str) -> list[Said]:
        """What was said, in order.

        Raises:
            UserError: there is no such conversation.
        """
        self.get(conversation)
        rows = self._read("SELECT * FROM messages WHERE conversation = ? ORDER BY id", conversation)
        return [
            Said(row["id"], row["role"], row["content"], json.loads(row["details"]), row["created"]) for row in rows
        ]

    def history(self, conversation: str) -> list[Message]:
        """What was said, as a model reads it."""
        return [said.message for said in self.messages(conversation)]

    def rename(self, conversation: str, title: str) -> Conversation:
        """Another title. UserError: there is no such conversation."""
        return self._change(conversation, "title", _line(title))

    def tag(self, conversation: str, tags: Sequence[str]) -> Conversation:
        """These tags and no others. UserError: there is no such conversation, or a tag is none."""
        return self._change(conversation, "tags", _tags(checked_tags(tags)))

    def _change(self, conversation: str, column: Literal["title", "tags"], value: str) -> Conversation:
        with self._write() as db:
            self.get(conversation)
            db.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (value, conversation))
        return self.get(conversation)

    def cut(self, conversation: str, message: int) -> int:
        """Forget a message and all after it, to say it otherwise. Returns how many there were."""
        with self._write() as db:
            self.get(conversation)
            gone = db.execute("DELETE FROM messages WHERE conversation = ? AND id >= ?", (conversation, message))
        return gone.rowcount

    def delete(self, conversation: str) -> None:
        """Delete a conversation with all that was said. UserError: there is none."""
        with self._write() as db:
            self.get(conversation)
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation,))


def _conversation(row: sqlite3.Row) -> Conversation:
    return Conversation(
        row["id"], row["title"], row["collection"], tuple(json.loads(row["tags"])), row["created"], row["updated"]
    )


def _tags(tags: Sequence[str]) -> str:
    return json.dumps(list(tags), ensure_ascii=False)


def _line(title: str) -> str:
    line = " ".join(title.encode("utf-8", "replace").decode().split())
    return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1] + "…"
