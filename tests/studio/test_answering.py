"""Answers that are written in the background: what is kept of them, and what is asked for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_chat import FakeChat, tiny_engine

from tinyseek.errors import UserError
from tinyseek.studio.answering import Answering, conversation, shortened, too_many
from tinyseek.studio.chats import Chats, Conversation, Message
from tinyseek.studio.options import StudioSettings, Talk
from tinyseek.studio.shared import BusyError, Shared


@pytest.fixture(scope="module")
def chat() -> FakeChat:
    return FakeChat(tiny_engine())


@pytest.fixture
def shared(chat: FakeChat, tmp_path: Path) -> Shared:
    return Shared(chat, StudioSettings(data=str(tmp_path), answers=2))


def asked(shared: Shared, text: str, talk: Talk | None = None, owner: str = "ann") -> tuple[Conversation, Answering]:
    place = shared.chats.start(owner, text, {})
    question = shared.chats.add(place, None, "user", text)
    return place, shared.answer(place, question, talk or Talk())


def stored(chats: Chats, place: Conversation) -> Message:
    found = chats.get(place.owner, place.id)
    assert found is not None
    return chats.path(found)[-1]


def answer(shared: Shared, text: str, talk: Talk | None = None) -> Message:
    async def run() -> Message:
        place, answering = asked(shared, text, talk)
        await answering.task
        message = stored(shared.chats, place)
        assert message == answering.message
        return message

    return asyncio.run(run())


def test_a_whole_answer_is_kept_with_its_figures(shared: Shared) -> None:
    message = answer(shared, "think of a lighthouse", Talk(temperature=0.5, system="Be kind."))
    assert (message.state, message.content, message.reasoning) == (
        "whole",
        "You said: think of a lighthouse",
        "Let me think about it.",
    )
    facts = message.facts
    assert facts["model"] == "a fake model"
    assert facts["talk"] == {"temperature": 0.5, "system": "Be kind."}
    assert facts["completion_tokens"] == len(message.ids)
    assert facts["cached_tokens"] == facts["prompt_tokens"] // 2
    assert 0 < facts["first_seconds"] <= facts["seconds"]
    assert 0.04 < facts["thinking_seconds"] < facts["seconds"]


def test_what_breaks_off_is_kept(shared: Shared) -> None:
    message = answer(shared, "fail")
    assert (message.state, message.content, message.error) == ("failed", "Half of ", "the server broke off")
    wrong = answer(shared, "slow x")
    assert wrong.state == "failed"
    assert (wrong.error or "").startswith("The server failed; its log says why under")
    assert "ValueError" not in (wrong.error or "")


def test_a_stop_keeps_what_there_is(shared: Shared) -> None:
    async def run() -> Message:
        place, answering = asked(shared, "slow 100")
        event = answering.watch()
        while "word2" not in answering.message.content:
            await event.wait()
            event.clear()
        answering.stop()
        await answering.task
        assert event.is_set()
        return stored(shared.chats, place)

    message = asyncio.run(run())
    assert message.state == "stopped"
    assert message.content.startswith("word0 word1 word2")
    assert "word50" not in message.content


def test_a_server_that_goes_down_keeps_what_there_is(chat: FakeChat, tmp_path: Path) -> None:
    async def run() -> None:
        shared = Shared(chat, StudioSettings(data=str(tmp_path)))
        _, answering = asked(shared, "slow 100")
        while "word1" not in answering.message.content:
            await asyncio.sleep(0.01)
        await shared.close()

    asyncio.run(run())
    chats = Chats(tmp_path / "chats.db")
    message = stored(chats, chats.find("ann")[0])
    assert message.state == "stopped"
    assert message.content.startswith("word0 word1")


def test_one_visitor_cannot_have_everything(shared: Shared) -> None:
    async def run() -> None:
        place, first = asked(shared, "slow 100")
        with pytest.raises(BusyError):
            shared.answer(place, shared.chats.path(place, first.message.parent)[-1], Talk())
        _, second = asked(shared, "slow 100")
        with pytest.raises(BusyError):
            asked(shared, "slow 100")
        _, other = asked(shared, "hello", owner="bob")
        await other.task
        for answering in (first, second):
            answering.stop()
        await asyncio.gather(first.task, second.task)
        await asyncio.sleep(0)
        assert not shared.answers
        _, again = asked(shared, "hello")
        await again.task
        assert again.message.state == "whole"

    asyncio.run(run())


def test_a_long_conversation_forgets_whole_turns_from_its_beginning(chat: FakeChat) -> None:
    said = [{"role": "system", "content": "Be brief."}]
    for number in range(40):
        said += [{"role": "user", "content": f"{number} " * 60}, {"role": "assistant", "content": "x " * 60}]
    said.append({"role": "user", "content": "last"})
    options = Talk().options()
    forgotten = too_many(chat, said, options)
    assert forgotten > 0
    left = shortened(said, forgotten)
    assert left[0]["role"] == "system"
    assert left[1]["role"] == "user"
    assert left[-1]["content"] == "last"
    count = chat.count_tokens(left, options)
    assert count is not None
    assert count + 32 <= chat.context
    more = chat.count_tokens(shortened(said, forgotten - 2), options)
    assert more is not None
    assert more + 32 > chat.context
    assert too_many(chat, left, options) == 0
    assert too_many(chat, [{"role": "user", "content": "x " * 9000}], options) == 0  # the model says what is wrong


def test_the_answer_says_that_turns_were_forgotten(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.chat, "context", 60)
    place = shared.chats.start("ann", "t", {})
    leaf = None
    for text in ("one " * 20, "two " * 20, "three"):
        leaf = shared.chats.add(place, leaf, "user", text)
        leaf = leaf.id

    async def run() -> Answering:
        answering = shared.answer(place, shared.chats.path(place, leaf)[-1], Talk())
        await answering.task
        return answering

    message = asyncio.run(run()).message
    assert message.facts["forgotten"] == 2
    assert isinstance(shared.chat, FakeChat)
    assert [entry["content"] for entry in shared.chat.asked[-1][0]] == ["three"]


def test_looking_inside_reads_what_was_answered(shared: Shared) -> None:
    async def run() -> None:
        place, answering = asked(shared, "hello", Talk(system="Be brief."))
        await answering.task
        look = await shared.look(place, answering.message)
        text = shared.local(Talk()).tokenizer.decode(look.seen.ids)  # type: ignore[union-attr]
        assert text == "<｜begin▁of▁sentence｜>Be brief.<｜User｜>hello<｜Assistant｜>You said: hello"
        assert "".join(look.texts[look.start :]) == "You said: hello"

    asyncio.run(run())


def test_only_local_models_can_be_looked_into(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    place = shared.chats.start("ann", "t", {})
    message = shared.chats.add(place, None, "assistant", "x")
    monkeypatch.setattr(shared, "chat", object())
    with pytest.raises(UserError, match="runs here"):
        asyncio.run(shared.look(place, message))


def test_empty_answers_are_not_sent_back() -> None:
    said = [
        Message(1, "c", None, "user", "a"),
        Message(2, "c", 1, "assistant", "", state="failed"),
        Message(3, "c", 2, "user", "b"),
    ]
    assert conversation(said, Talk(system=" ")) == [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


def test_settings_of_a_conversation() -> None:
    kept = Talk.kept({"temperature": 0.3, "top_p": 7, "nonsense": 1, "seed": None, "tools": "no json"})
    assert kept == Talk(temperature=0.3)
    tools = '[{"name": "f"}, {"type": "function", "function": {"name": "g"}}]'
    assert [tool["function"]["name"] for tool in Talk(tools=tools).options().tools or []] == ["f", "g"]
    assert Talk().options().tools is None
    for wrong in ("{", "[1]", '[{"name": ""}]', "[" * 5000):
        with pytest.raises(UserError, match="tools"):
            Talk.read({"tools": wrong})
