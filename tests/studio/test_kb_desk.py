"""What answers on the knowledge page: as the server is told to (`answers.*`), of the documents that were meant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from knowledge.memory_index import HashEmbedder

from tinyseek.knowledge.answer.options import AnswerSettings
from tinyseek.knowledge.shelf import Shelf
from tinyseek.studio.chats import Chats, Message
from tinyseek.studio.kb_desk import Desk
from tinyseek.studio.options import StudioSettings

NOTES = {
    "boats.txt": b"The ferry to Tiree leaves at seven in the morning. The fare of the ferry is 12 pounds.",
    "lights.txt": b"The light of Skerryvore flashes every ten seconds. The tower is 48 metres high.",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shelf = Shelf(tmp_path / "kb", embedder=HashEmbedder())
    for name, text in NOTES.items():
        assert shelf.base(b"").add_bytes(name, text).outcome == "added"
    shelf.close()
    return tmp_path


def asked(home: Path, question: str, answers: AnswerSettings, **facts: Any) -> Message:
    """A question asked on a server with these settings; its answer, as it was kept."""

    async def main() -> Message:
        shelf = Shelf(home / "kb", embedder=HashEmbedder(), answers=answers)
        visitors = Chats(home / "chats.db")
        desk = Desk(shelf, visitors, StudioSettings(data=str(home / "studio")), with_chat=False)
        place = desk.talks.start("ann", question, {})
        said = desk.talks.add(place, None, "user", question)
        said.facts = facts
        writing = desk.ask(place, said, shelf.base(b""), None)
        await writing.task
        kept = desk.talks.path(place, writing.message.id)[-1]
        await desk.close()
        visitors.close()
        shelf.close()
        return kept

    return asyncio.run(main())


def test_the_page_answers_as_the_server_is_told_to(home: Path) -> None:
    question = "What does the ferry cost, and who sails the unicorn to Mars?"
    always = asked(home, question, AnswerSettings(found_from=0))
    assert always.state == "whole"
    assert always.facts["found"] is True
    never = asked(home, question, AnswerSettings(found_from=1))
    assert never.facts["found"] is False
    words = asked(home, question, AnswerSettings(found_from=0, how="lexical"))
    meaning = asked(home, question, AnswerSettings(found_from=0, how="dense"))
    assert all(hit["dense"] is None for hit in words.facts["hits"])
    assert all(hit["lexical"] is None for hit in meaning.facts["hits"])


def test_only_the_documents_that_were_meant_are_asked(home: Path) -> None:
    shelf = Shelf(home / "kb", embedder=HashEmbedder())
    number = next(document.id for document in shelf.base(b"").documents() if document.name == "lights.txt")
    shelf.close()
    settings = AnswerSettings(found_from=0)
    about = asked(home, "How high is the tower, and the fare of the ferry?", settings, documents=[number])
    assert {entry["name"] for entry in about.facts["hits"]} == {"lights.txt"}
    summary = asked(home, "Summary", settings, task="summary", documents=[number])
    assert summary.facts["of"] == 1
    assert {entry["name"] for entry in summary.facts["parts"]} == {"lights.txt"}
    assert "ferry" not in summary.content
    assert "progress" not in summary.facts


def test_what_cannot_be_answered_says_why(home: Path) -> None:
    none = asked(home, "total fare", AnswerSettings(), task="tables")
    assert none.state == "failed"
    assert "there is no table to ask" in (none.error or "")
    gone = asked(home, "Summary", AnswerSettings(), task="summary", documents=[999])
    assert gone.state == "failed"
    assert "no such document" in (gone.error or "")
