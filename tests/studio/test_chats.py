"""The store: branches, owners, limits, and a process that is killed."""

from __future__ import annotations

import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinyseek.errors import UserError
from tinyseek.studio import chats as module
from tinyseek.studio.chats import LONGEST_MESSAGE, LONGEST_TITLE, Chats, Conversation, Message


@pytest.fixture
def chats(tmp_path: Path) -> Chats:
    return Chats(tmp_path / "studio" / "chats.db")


def said(chats: Chats, place: Conversation, leaf: int | None = None) -> list[str]:
    return [message.content for message in chats.path(fresh(chats, place), leaf)]


def fresh(chats: Chats, place: Conversation) -> Conversation:
    found = chats.get(place.owner, place.id)
    assert found is not None
    return found


def test_a_message_comes_back_as_it_was_saved(chats: Chats) -> None:
    place = chats.start("ann", "Tools", {"system": "Be brief.", "temperature": 0.5})
    question = chats.add(place, None, "user", "weather? 天气 \U0001f326")
    answer = chats.add(place, question.id, "assistant", state="writing")
    answer.content, answer.reasoning, answer.state = "Rain.", "It looks grey.", "whole"
    answer.calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    answer.facts, answer.ids = {"prompt_tokens": 3, "cost": None}, [5, 2**31 - 1, 0]
    chats.save(answer)
    result = chats.add(place, answer.id, "tool", "wet", call="call_1")
    path = chats.path(fresh(chats, place))
    assert [message.id for message in path] == [question.id, answer.id, result.id]
    assert path[1] == answer
    assert path[1].wire() == {
        "role": "assistant",
        "content": "Rain.",
        "reasoning_content": "It looks grey.",
        "tool_calls": answer.calls,
    }
    assert path[2].wire() == {"role": "tool", "content": "wet", "tool_call_id": "call_1"}
    assert fresh(chats, place).settings == {"system": "Be brief.", "temperature": 0.5}


def test_edits_and_other_answers_are_branches(chats: Chats) -> None:
    place = chats.start("ann", "t", {})
    one = chats.add(place, None, "user", "one")
    first = chats.add(place, one.id, "assistant", "first")
    two = chats.add(place, first.id, "user", "two")
    second = chats.add(place, one.id, "assistant", "second")
    assert said(chats, place) == ["one", "second"]
    edited = chats.add(place, None, "user", "one, edited")
    assert said(chats, place) == ["one, edited"]
    path = [one, first, two]
    assert chats.siblings(path) == {one.id: [one.id, edited.id], first.id: [first.id, second.id], two.id: [two.id]}
    chats.choose(place, first.id)
    assert said(chats, place) == ["one", "first", "two"]
    chats.choose(place, one.id)  # of its branches the one where something was said last
    assert said(chats, place) == ["one", "second"]
    chats.choose(place, 10**9)
    assert said(chats, place) == ["one", "second"]
    assert said(chats, place, two.id) == ["one", "first", "two"]


def test_random_trees_keep_every_path(chats: Chats) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    rng = random.Random(seed)
    place = chats.start("ann", "t", {})
    tree: dict[int | None, tuple[int | None, str]] = {}
    for number in range(60):
        parent = rng.choice([None, *tree])
        tree[chats.add(place, parent, rng.choice(["user", "assistant"]), str(number)).id] = (parent, str(number))
    for leaf in tree:
        expected, at = [], leaf
        while at is not None:
            at, text = tree[at]
            expected.append(text)
        assert said(chats, place, leaf) == expected[::-1]
        chats.choose(place, leaf)
        assert said(chats, place)[: len(expected)] == expected[::-1]


def test_owners_are_kept_apart(chats: Chats) -> None:
    mine = chats.start("ann", "mine", {})
    message = chats.add(mine, None, "user", "secret")
    assert chats.get("bob", mine.id) is None
    assert chats.find("bob") == []
    assert chats.find("bob", "secret") == []
    chats.rename("bob", mine.id, "stolen")
    chats.delete("bob", mine.id)
    chats.configure("bob", mine.id, {"system": "x"})
    assert fresh(chats, mine).title == "mine"
    assert fresh(chats, mine).settings == {}
    stolen = Conversation(chats.start("bob", "b", {}).id, "bob", "b", 0, 0, message.id, {})
    assert chats.path(stolen) == []  # a message of another conversation
    chats.remember("ann", language="zh")
    assert chats.visitor("bob") == {}


def test_find_takes_words_in_titles_and_messages(chats: Chats) -> None:
    places = [chats.start("ann", title, {}) for title in ("Lighthouses", "100% sure", "snake_case", "灯塔")]
    chats.add(places[0], None, "user", "How far does a beam reach?")
    chats.add(places[1], None, "user", "backslash \\ here")

    def titles(search: str) -> set[str]:
        return {place.title for place in chats.find("ann", search)}

    assert titles("light REACH") == {"Lighthouses"}
    assert titles("100%") == {"100% sure"}
    assert titles("%") == {"100% sure"}
    assert titles("e_c") == {"snake_case"}
    assert titles("\\") == {"100% sure"}
    assert titles("灯") == {"灯塔"}
    assert titles("light sure") == set()
    assert titles("' OR 1=1 --") == set()
    assert [place.title for place in chats.find("ann")] == ["100% sure", "Lighthouses", "灯塔", "snake_case"]


def test_deleting_can_be_undone_for_a_while(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    place, other = chats.start("ann", "one", {}), chats.start("ann", "two", {})
    chats.add(place, None, "user", "hello")
    chats.delete("ann", place.id)
    assert chats.get("ann", place.id) is None
    assert [found.title for found in chats.find("ann")] == ["two"]
    with pytest.raises(UserError, match="was deleted"):
        chats.add(place, None, "user", "still there?")
    chats.purge()
    chats.restore("ann", place.id)
    assert said(chats, place) == ["hello"]
    chats.delete("ann", other.id)
    monkeypatch.setattr(module, "UNDO_SECONDS", -1)
    chats.purge()
    chats.restore("ann", other.id)
    assert chats.get("ann", other.id) is None


def test_limits(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    place = chats.start("ann", "  a\n b " + "x" * 1000, {})
    assert place.title.startswith("a b xxx")
    assert len(place.title) == LONGEST_TITLE
    chats.rename("ann", place.id, " \n ")
    assert fresh(chats, place).title == place.title
    with pytest.raises(UserError, match="200,001 characters; at most 200,000"):
        chats.add(place, None, "user", "x" * (LONGEST_MESSAGE + 1))
    assert said(chats, place) == []
    monkeypatch.setattr(module, "MOST_MESSAGES", 1)
    chats.add(place, None, "user", "x")
    with pytest.raises(UserError, match="begin a new one"):
        chats.add(place, None, "user", "y")
    monkeypatch.setattr(module, "MOST_CONVERSATIONS", 1)
    with pytest.raises(UserError, match="delete some"):
        chats.start("ann", "t", {})


def test_text_that_no_utf8_can_hold(chats: Chats) -> None:
    place = chats.start("ann", "half \ud83d", {"system": "\ud83d"})
    message = chats.add(place, None, "user", "half \ud83d of it \x00 and more")
    assert message.content == "half ? of it \x00 and more"
    assert chats.path(fresh(chats, place)) == [message]


def test_only_the_owner_of_the_computer_can_read_it(chats: Chats, tmp_path: Path) -> None:
    chats.start("ann", "t", {})
    for file in (tmp_path / "studio").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    assert stat.S_IMODE((tmp_path / "studio").stat().st_mode) == 0o700


def test_files_that_are_no_store(tmp_path: Path) -> None:
    broken = tmp_path / "chats.db"
    broken.write_bytes(b"no database at all " * 100)
    with pytest.raises(UserError, match="move it away"):
        Chats(broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="another folder"):
        Chats(tmp_path / "file" / "chats.db")
    newer = tmp_path / "newer.db"
    Chats(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer tinyseek"):
        Chats(newer)


KILLED = """
import sys
from pathlib import Path
from tinyseek.studio.chats import Chats
chats = Chats(Path(sys.argv[1]))
place = chats.start("ann", "t", {})
question = chats.add(place, None, "user", "count")
answer = chats.add(place, question.id, "assistant", state="writing")
for number in range(10**9):
    answer.content += f"{number} "
    chats.save(answer)
    print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "chats.db")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(150):
        saved = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    saved = max([saved, *map(int, process.stdout.read().split("\n")[:-1])])
    process.wait()
    chats = Chats(tmp_path / "chats.db")
    question, answer = chats.path(chats.find("ann")[0])
    assert question.content == "count"
    assert answer.state == "stopped"
    numbers = [int(word) for word in answer.content.split()]
    assert numbers == list(range(len(numbers)))
    assert numbers[-1] >= saved


def test_many_threads_and_two_processes_worth_of_connections(tmp_path: Path) -> None:
    stores = [Chats(tmp_path / "chats.db"), Chats(tmp_path / "chats.db")]
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            chats = stores[number % 2]
            place = chats.start(f"owner{number}", "t", {})
            leaf = None
            for count in range(15):
                message = chats.add(place, leaf, "user", str(count))
                leaf = message.id
                chats.save(message)
            assert [m.content for m in chats.path(place, leaf)] == [str(count) for count in range(15)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_visitors_settings_merge(chats: Chats) -> None:
    chats.remember("ann", theme="dark", talk={"system": "x"})
    assert chats.remember("ann", theme="light") == {"theme": "light", "talk": {"system": "x"}}
    assert chats.visitor("ann") == {"theme": "light", "talk": {"system": "x"}}


def test_a_long_list_is_quick(chats: Chats) -> None:
    for number in range(300):
        place = chats.start("ann", f"conversation {number}", {})
        chats.add(place, None, "user", "word " * 200)
    began = time.perf_counter()
    assert len(chats.find("ann", most=200)) == 200
    assert len(chats.find("ann", "word nowhere")) == 0
    assert time.perf_counter() - began < 1


def test_empty_messages_know_it() -> None:
    assert Message(1, "c", None, "assistant", "").empty
    assert not Message(1, "c", None, "assistant", "", reasoning="hm").empty
