"""Conversations kept in SQLite: a tree of messages each, of which one path is shown.

Editing a question or asking for another answer adds a branch beside the old one, so nothing that was said is lost. Every write is
a transaction of its own (`knowledge.store`): a process that is killed loses at most the last half second of the answer that was
being written.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tinyseek.errors import UserError
from tinyseek.knowledge.store import Store, like

State = Literal["whole", "writing", "stopped", "failed"]

LONGEST_MESSAGE = 200_000  # characters
LONGEST_TITLE = 120
MOST_MESSAGES = 2_000  # of one conversation, all branches together
MOST_CONVERSATIONS = 5_000  # of one visitor
UNDO_SECONDS = 600  # a deleted conversation can be brought back for so long

_VERSION = 1
_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    deleted REAL, leaf INTEGER, settings TEXT NOT NULL
);
CREATE INDEX conversations_by_owner ON conversations (owner, updated DESC);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent INTEGER REFERENCES messages (id), role TEXT NOT NULL, content TEXT NOT NULL, reasoning TEXT NOT NULL,
    calls TEXT NOT NULL, call TEXT, state TEXT NOT NULL, error TEXT, facts TEXT NOT NULL, ids BLOB NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX messages_by_parent ON messages (conversation, parent);
CREATE TABLE visitors (owner TEXT PRIMARY KEY, settings TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Conversation:
    """One conversation, without its messages."""

    id: str
    owner: str
    title: str
    created: float  # seconds since 1970
    updated: float
    leaf: int | None  # the last message of the path that is shown
    settings: dict[str, Any]  # system prompt, sampling


@dataclass
class Message:
    """One message of the tree."""

    id: int
    conversation: str
    parent: int | None
    role: Literal["user", "assistant", "tool"]
    content: str
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)  # tool calls, as OpenAI's messages carry them
    call: str | None = None  # of a tool's message: the id of the call that it answers
    state: State = "whole"
    error: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # usage, seconds, the model's name, how it was sampled
    ids: list[int] = field(default_factory=list)  # a local model's tokens
    created: float = 0.0

    def wire(self) -> dict[str, Any]:
        """The message as a model reads it."""
        said: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            said["reasoning_content"] = self.reasoning
        if self.calls:
            said["tool_calls"] = self.calls
        if self.role == "tool":
            said["tool_call_id"] = self.call
        return said

    @property
    def empty(self) -> bool:
        """Whether nothing was said: an answer that failed before its first word."""
        return not (self.content or self.reasoning or self.calls)


class Chats:
    """The store. Every method may be called from any thread, and sees only what belongs to the `owner` it is given."""

    def __init__(self, file: Path) -> None:
        """Open the store, or make it.

        Raises:
            UserError: the file cannot be written, or is no such store.
        """
        self._store = Store(file, _SCHEMA, _VERSION, "; choose another folder with data=")
        self._read, self._write = self._store.read, self._store.write
        with self._write() as db:  # what was being written when an earlier process died has stopped
            db.execute("UPDATE messages SET state = 'stopped' WHERE state = 'writing'")
        self.purge()

    def close(self) -> None:
        """Fold the log into the file."""
        self._store.close()

    # ---- conversations ----

    def start(self, owner: str, title: str, settings: Mapping[str, Any]) -> Conversation:
        """A new, empty conversation.

        Raises:
            UserError: the visitor has too many.
        """
        now = time.time()
        count = self._read("SELECT count(*) FROM conversations WHERE owner = ? AND deleted IS NULL", owner)[0][0]
        if count >= MOST_CONVERSATIONS:
            raise UserError(f"there are {count:,} conversations already; delete some first")
        made = Conversation(uuid.uuid4().hex, owner, _title(title), now, now, None, dict(settings))
        with self._write() as db:
            db.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, NULL, NULL, ?)",
                (made.id, owner, made.title, now, now, _json(made.settings)),
            )
        return made

    def get(self, owner: str, conversation: str) -> Conversation | None:
        """A conversation of this owner that is not deleted."""
        rows = self._read(
            "SELECT * FROM conversations WHERE id = ? AND owner = ? AND deleted IS NULL", conversation, owner
        )
        return _conversation(rows[0]) if rows else None

    def find(self, owner: str, search: str = "", most: int = 200) -> list[Conversation]:
        """The owner's conversations, the one used last first; with `search`, those that hold the words in a title or a message."""
        query, values = "SELECT * FROM conversations AS c WHERE owner = ? AND deleted IS NULL", [owner]
        for word in search[:200].split()[:8]:
            query += (
                " AND (title LIKE ? ESCAPE '\\' OR EXISTS (SELECT 1 FROM messages WHERE conversation = c.id"
                " AND content LIKE ? ESCAPE '\\'))"
            )
            values += [like(word)] * 2
        rows = self._read(f"{query} ORDER BY updated DESC LIMIT ?", *values, most)
        return [_conversation(row) for row in rows]

    def rename(self, owner: str, conversation: str, title: str) -> None:
        """Another title; an empty one changes nothing."""
        if title.strip():
            self._change(owner, conversation, "title = ?", _title(title))

    def configure(self, owner: str, conversation: str, settings: Mapping[str, Any]) -> None:
        """Another system prompt, other sampling."""
        self._change(owner, conversation, "settings = ?", _json(settings))

    def delete(self, owner: str, conversation: str) -> None:
        """Take a conversation away; `restore` brings it back for ten minutes."""
        self._change(owner, conversation, "deleted = ?", time.time())

    def restore(self, owner: str, conversation: str) -> None:
        """Bring back what was deleted."""
        self._change(owner, conversation, "deleted = ?", None)

    def purge(self) -> None:
        """Forget for good what was deleted longer ago than `UNDO_SECONDS`."""
        with self._write() as db:
            db.execute("DELETE FROM conversations WHERE deleted < ?", (time.time() - UNDO_SECONDS,))

    def _change(self, owner: str, conversation: str, change: str, value: Any) -> None:
        with self._write() as db:
            db.execute(f"UPDATE conversations SET {change} WHERE id = ? AND owner = ?", (value, conversation, owner))

    # ---- messages ----

    def path(self, conversation: Conversation, leaf: int | None = None) -> list[Message]:
        """The messages from the first to `leaf`, or to the last of the path that is shown."""
        rows = self._read(
            """WITH RECURSIVE up(id, parent, depth) AS (
                   SELECT id, parent, 0 FROM messages WHERE id = ? AND conversation = ?
                   UNION ALL SELECT m.id, m.parent, depth + 1 FROM messages AS m JOIN up ON m.id = up.parent
               ) SELECT m.* FROM messages AS m JOIN up ON m.id = up.id ORDER BY depth DESC""",
            conversation.leaf if leaf is None else leaf,
            conversation.id,
        )
        return [_message(row) for row in rows]

    def add(
        self,
        conversation: Conversation,
        parent: int | None,
        role: Literal["user", "assistant", "tool"],
        content: str = "",
        state: State = "whole",
        call: str | None = None,
    ) -> Message:
        """A message after `parent`, beside what may already follow it; the path that is shown now ends with it.

        Raises:
            UserError: it is too long, the conversation has too many, or it is gone.
        """
        if len(content) > LONGEST_MESSAGE:
            raise UserError(f"the message has {len(content):,} characters; at most {LONGEST_MESSAGE:,} are taken")
        now = time.time()
        with self._write() as db:
            alive = db.execute(
                "SELECT count(*) FROM conversations WHERE id = ? AND deleted IS NULL", (conversation.id,)
            ).fetchone()[0]
            count = db.execute("SELECT count(*) FROM messages WHERE conversation = ?", (conversation.id,)).fetchone()[0]
            if not alive:
                raise UserError("this conversation was deleted")
            if count >= MOST_MESSAGES:
                raise UserError(f"the conversation has {count:,} messages; begin a new one")
            made = db.execute(
                "INSERT INTO messages (conversation, parent, role, content, reasoning, calls, call, state, facts, ids, created)"
                " VALUES (?, ?, ?, ?, '', '[]', ?, ?, '{}', x'', ?)",
                (conversation.id, parent, role, _clean(content), call, state, now),
            ).lastrowid
            db.execute("UPDATE conversations SET leaf = ?, updated = ? WHERE id = ?", (made, now, conversation.id))
        assert made is not None
        return Message(made, conversation.id, parent, role, _clean(content), state=state, call=call, created=now)

    def save(self, message: Message) -> None:
        """Write a message as it is now."""
        with self._write() as db:
            db.execute(
                "UPDATE messages SET content = ?, reasoning = ?, calls = ?, state = ?, error = ?, facts = ?, ids = ? WHERE id = ?",
                (
                    _clean(message.content),
                    _clean(message.reasoning),
                    _json(message.calls),
                    message.state,
                    message.error,
                    _json(message.facts),
                    array("i", message.ids).tobytes(),
                    message.id,
                ),
            )

    def siblings(self, messages: Sequence[Message]) -> dict[int, list[int]]:
        """For each message the ids of all that stand in its place, oldest first, itself included."""
        if not messages:
            return {}
        rows = self._read(
            "SELECT id, parent FROM messages WHERE conversation = ? ORDER BY id", messages[0].conversation
        )
        places: dict[int | None, list[int]] = {}
        for row in rows:
            places.setdefault(row["parent"], []).append(row["id"])
        return {message.id: places.get(message.parent, [message.id]) for message in messages}

    def choose(self, conversation: Conversation, message: int) -> None:
        """Show the branch through this message, down to what was said last in it."""
        rows = self._read(
            """WITH RECURSIVE down(id) AS (
                   SELECT id FROM messages WHERE id = ? AND conversation = ?
                   UNION ALL SELECT m.id FROM messages AS m JOIN down ON m.parent = down.id
               ) SELECT max(id) FROM down""",
            message,
            conversation.id,
        )
        if rows[0][0] is not None:
            self._change(conversation.owner, conversation.id, "leaf = ?", rows[0][0])

    # ---- visitors ----

    def visitor(self, owner: str) -> dict[str, Any]:
        """What a visitor chose: language, theme, how new conversations begin."""
        rows = self._read("SELECT settings FROM visitors WHERE owner = ?", owner)
        return _object(rows[0]["settings"]) if rows else {}

    def remember(self, owner: str, **settings: Any) -> dict[str, Any]:
        """Keep some of a visitor's choices; the others stay."""
        with self._write() as db:
            rows = db.execute("SELECT settings FROM visitors WHERE owner = ?", (owner,)).fetchall()
            merged = {**(_object(rows[0]["settings"]) if rows else {}), **settings}
            db.execute("INSERT OR REPLACE INTO visitors VALUES (?, ?)", (owner, _json(merged)))
        return merged


def _conversation(row: sqlite3.Row) -> Conversation:
    settings = _object(row["settings"])
    return Conversation(row["id"], row["owner"], row["title"], row["created"], row["updated"], row["leaf"], settings)


def _message(row: sqlite3.Row) -> Message:
    ids = array("i")
    ids.frombytes(row["ids"])
    return Message(
        row["id"],
        row["conversation"],
        row["parent"],
        row["role"],
        row["content"],
        row["reasoning"],
        json.loads(row["calls"]),
        row["call"],
        row["state"],
        row["error"],
        _object(row["facts"]),
        ids.tolist(),
        row["created"],
    )


def _title(text: str) -> str:
    """The first words of a text, in one line."""
    line = " ".join(_clean(text[: 4 * LONGEST_TITLE]).split())
    return line if len(line) <= LONGEST_TITLE else line[: LONGEST_TITLE - 1].rstrip() + "…"


def _clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else {}
