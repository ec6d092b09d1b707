"""Kept answers: the same question once, bounded in size, never worth an answer."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_chat import FakeChat, tiny_engine
from knowledge.scripted_model import ScriptedModel

from tinyseek.errors import UserError
from tinyseek.knowledge.cache import CachedChat, ResponseCache, identity_of, key_of
from tinyseek.llm.base import ChatDelta, ChatOptions, ToolCallDelta, gather
from tinyseek.llm.remote import RemoteChat

ASKED = [{"role": "user", "content": "hello 你好"}]


def test_what_was_asked_once_is_not_asked_again(tmp_path: Path) -> None:
    model = ScriptedModel(lambda m: f"said {m[-1]['content']}")
    with ResponseCache(tmp_path / "cache.db") as cache:
        chat = CachedChat(model, cache)
        first, second = chat.complete(ASKED), chat.complete(ASKED)
        assert first == second
        assert first.content == "said hello 你好"
        assert (len(model.asked), cache.hits, cache.misses) == (1, 1, 1)
    with ResponseCache(tmp_path / "cache.db") as cache:  # it stays
        assert CachedChat(model, cache).complete(ASKED).content == first.content
        assert len(model.asked) == 1
        asyncio.run(CachedChat(model, cache).acomplete_all(ASKED))
        assert len(model.asked) == 1


def test_whatever_decides_an_answer_is_in_its_key(tmp_path: Path) -> None:
    def keys(model: ScriptedModel, state: str = "") -> set[str]:
        options = ChatOptions()
        changed = [
            options,
            *(
                replace(options, **{name: value})
                for name, value in [
                    ("temperature", 0.5),
                    ("seed", 1),
                    ("max_tokens", 9),
                    ("stop", ("x",)),
                    ("thinking", True),
                    ("choice", ["a"]),
                ]
            ),
        ]
        chat = CachedChat(model, cache, state)
        talks = [ASKED, [{"role": "system", "content": ""}, *ASKED], [*ASKED, *ASKED]]
        return {chat.key(talk, how) for talk in talks for how in changed}  # fmt: skip

    with ResponseCache(tmp_path / "cache.db") as cache:
        one = keys(ScriptedModel(lambda _: ""))
        assert len(one) == 21
        assert not one & keys(ScriptedModel(lambda _: "", name="other"))
        assert not one & keys(ScriptedModel(lambda _: ""), "revision 2")
    assert key_of("a", "bc") != key_of("ab", "c")
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert identity_of(RemoteChat("http://a/v1", "m")) != identity_of(RemoteChat("http://b/v1", "m"))


def test_a_local_model_is_known_by_its_weights() -> None:
    import torch

    engine, other = tiny_engine(), tiny_engine()
    assert identity_of(FakeChat(engine)) == identity_of(FakeChat(other))
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(0.01)
    assert identity_of(FakeChat(engine)) != identity_of(FakeChat(other))


def test_tool_calls_and_reasoning_come_back_as_they_were(tmp_path: Path) -> None:
    class Calling(ScriptedModel):
        def stream(self, messages, options=ChatOptions()):  # type: ignore[no-untyped-def]  # noqa: B008
            self.asked.append((list(messages), options))
            yield ChatDelta(reasoning="hm")
            for index in (0, 1):
                yield ChatDelta(tool_calls=(ToolCallDelta(index, f"c{index}", "f", '{"a":'),))
                yield ChatDelta(tool_calls=(ToolCallDelta(index, None, None, f"{index}}}"),))
            yield ChatDelta(finish="tool_calls")

    model = Calling(lambda _: "")
    with ResponseCache(tmp_path / "cache.db") as cache:
        chat = CachedChat(model, cache)
        assert gather(chat.stream(ASKED)) == gather(chat.stream(ASKED))
        assert len(model.asked) == 1


def test_half_an_answer_is_not_kept(tmp_path: Path) -> None:
    model = ScriptedModel(lambda m: "" if m[-1]["content"] == "empty" else "a long answer that comes in pieces")
    with ResponseCache(tmp_path / "cache.db") as cache:
        chat = CachedChat(model, cache)
        next(iter(chat.stream(ASKED)))  # nobody reads on
        chat.complete([{"role": "user", "content": "empty"}])
        chat.complete(ASKED, ChatOptions(logprobs=True))
        assert cache.size()[0] == 0


def test_the_least_used_goes_when_it_is_full(tmp_path: Path) -> None:
    chance = random.Random(1)
    with ResponseCache(tmp_path / "cache.db", most_mb=0.1) as cache:
        for at in range(60):
            assert cache.put(key_of(at), chance.randbytes(2000).hex())
            count, size = cache.size()
            assert size <= 100_000
        assert 20 < count < 60
        assert cache.get(key_of(0)) is None
        assert cache.get(key_of(59)) is not None
        assert not cache.put(key_of("large"), chance.randbytes(100_000).hex())  # would drive all others out
        real = cache._db.execute("SELECT count(*), sum(size) FROM responses").fetchone()
        assert real == cache.size()
        cache.clear()
        assert cache.size() == (0, 0)


def test_what_is_used_stays(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache.db", most_mb=0.1) as cache:
        cache.put(key_of("dear"), "x")
        cache.put(key_of("old"), "x")
        cache._db.execute("UPDATE responses SET used = 1")
        assert cache.get(key_of("dear")) == "x"  # which is noted
        for at in range(60):
            cache.put(key_of(at), random.Random(at).randbytes(2000).hex())
            if at < 30:
                cache._db.execute("UPDATE responses SET used = 2 WHERE key = ?", (bytes.fromhex(key_of(at)),))
        assert cache.get(key_of("old")) is None
        assert cache.get(key_of(0)) is None
        assert cache.get(key_of("dear")) == "x"


def test_a_damaged_cache_is_begun_anew_and_one_that_cannot_be_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "cache.db"
    file.write_bytes(b"this is no database" * 100)
    with ResponseCache(file) as cache:
        assert cache.put(key_of(1), [1, "二"])
        assert cache.get(key_of(1)) == [1, "二"]
    assert oct(file.stat().st_mode)[-3:] == "600"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ResponseCache(tmp_path / "file" / "cache.db")


def test_a_cache_that_fails_costs_no_answer(tmp_path: Path) -> None:
    model = ScriptedModel(lambda _: "fine")
    with ResponseCache(tmp_path / "cache.db") as cache:
        cache._db.execute("DROP TABLE responses")
        assert CachedChat(model, cache).complete(ASKED).content == "fine"


def test_a_killed_writer_leaves_a_whole_cache(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tinyseek.knowledge.cache import *\n"
        "cache = ResponseCache(Path(sys.argv[1]))\n"
        "for at in range(10**9):\n    cache.put(key_of(at), 'x' * 1000); print(at, flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cache.db")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 50:
        continue
    process.kill()
    last = max([50, *map(int, process.stdout.read().split())])
    process.wait()
    with ResponseCache(tmp_path / "cache.db") as cache:
        assert all(cache.get(key_of(at)) == "x" * 1000 for at in range(last + 1))
    assert sqlite3.connect(tmp_path / "cache.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
