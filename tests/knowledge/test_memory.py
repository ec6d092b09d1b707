"""Conversations and facts: kept, found, changed, deleted, and each person's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from knowledge.memory_index import HashEmbedder

from tinyseek.errors import UserError
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.conversations import Conversations
from tinyseek.knowledge.memory import (
    Facts,
    asked_to_forget,
    asked_to_remember,
    collection_of,
    facts_message,
)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("remember that my desk is 4B", "my desk is 4B"),
        ("Please remember: the budget is 40,000.", "the budget is 40,000."),
        ("Hey, could you remember that I like tea", "I like tea"),
        ("Keep in mind that Ann leaves in May", "Ann leaves in May"),
        ("don't forget to answer in Chinese", "to answer in Chinese"),
        ("Remember it's Tuesday's standup that moved", "it's Tuesday's standup that moved"),
        ("记住我的工位是4B", "我的工位是4B"),
        ("请记住：预算是四万。", "预算是四万。"),
        ("帮我记一下，王总的电话是123", "王总的电话是123"),
        ("别忘了周五要交报告", "周五要交报告"),
        ("Do you remember what I said?", None),
        ("remember when we met?", None),
        ("Remember when we met", None),
        ("Remember me", None),
        ("I remember that well", None),
        ("What should I remember about RL?", None),
        ("你还记得我的工位吗？", None),
        ("记住了吗", None),
        ("怎么记住单词", None),
        ("remember", None),
        ("", None),
    ],
)
def test_what_a_message_asks_to_remember(text: str, fact: str | None) -> None:
    assert asked_to_remember(text) == fact


def test_what_a_message_asks_to_forget() -> None:
    assert asked_to_forget("forget that my desk is 4B") == "my desk is 4B"
    assert asked_to_forget("忘掉我的工位") == "我的工位"
    assert asked_to_forget("Forget it.") is None
    assert asked_to_forget("I forget things") is None


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[Facts]:
    with KnowledgeBase.open(tmp_path, collection_of(), embedder=HashEmbedder()) as kb:
        yield Facts(kb)


def test_facts_are_kept_shown_edited_and_deleted(facts: Facts, tmp_path: Path) -> None:
    desk = facts.remember("My desk is 4B.", ["office"])
    tea = facts.remember("我喜欢喝龙井茶")
    assert facts.remember("My desk is 4B.").id == desk.id  # once
    assert [fact.text for fact in facts.all()] == ["我喜欢喝龙井茶", "My desk is 4B."]
    assert [fact.id for fact in facts.all("DESK")] == [desk.id]
    assert [fact.id for fact in facts.all(tags=["office"])] == [desk.id]
    assert facts.relevant("where is my desk?")[0].id == desk.id
    assert facts.relevant("龙井茶")[0].id == tea.id
    changed = facts.edit(desk.id, "My desk is 7C now.")
    assert (changed.id, changed.text, changed.tags, changed.made) == (
        desk.id,
        "My desk is 7C now.",
        ("office",),
        desk.made,
    )
    assert [fact.text for fact in facts.relevant("desk 7C", 1)] == ["My desk is 7C now."]
    assert facts.tag(desk.id, ["a", "b"]).tags == ("a", "b")
    with KnowledgeBase.open(tmp_path, "personal", embedder=HashEmbedder()) as again:
        assert len(Facts(again).all()) == 2
    message = facts_message(facts.all())
    assert message is not None
    assert "- My desk is 7C now." in message["content"]
    assert facts.forget([desk.id, 999]) == 1
    assert facts.forget([]) == 0
    assert [fact.id for fact in facts.all()] == [tea.id]
    with pytest.raises(UserError, match="no fact"):
        facts.get(desk.id)
    assert facts_message([]) is None


def test_a_fact_has_limits(facts: Facts) -> None:
    for text in ("", "  ", "x" * 2001):
        with pytest.raises(UserError, match="characters"):
            facts.remember(text)
    assert facts.relevant("anything") == []
    assert facts.remember("half a \ud83d pair").text == "half a ? pair"


def test_each_person_has_a_collection_of_their_own(tmp_path: Path) -> None:
    assert len({collection_of(), collection_of("ann"), collection_of("bob")}) == 3
    for owner in ("ann", "bob"):
        with KnowledgeBase.open(tmp_path, collection_of(owner), embedder=HashEmbedder()) as kb:
            Facts(kb).remember(f"I am {owner}")
    with KnowledgeBase.open(tmp_path, collection_of("ann"), embedder=HashEmbedder()) as kb:
        assert [fact.text for fact in Facts(kb).all()] == ["I am ann"]


@pytest.fixture
def talks(tmp_path: Path) -> Iterator[Conversations]:
    with Conversations(tmp_path / "conversations.db", "ann") as store:
        yield store


def test_a_conversation_is_kept_in_order(talks: Conversations, tmp_path: Path) -> None:
    talk = talks.start(collection="papers", tags=["rl", "R1", "rl"])
    asked = talks.add(talk.id, "user", "What is GRPO?\nTell me.")
    talks.add(talk.id, "assistant", "A method [1].", {"citations": [{"page": 3}]})
    assert talks.get(talk.id).title == "What is GRPO? Tell me."
    assert talks.get(talk.id).tags == ("rl", "R1")
    assert talks.history(talk.id) == [
        {"role": "user", "content": "What is GRPO?\nTell me."},
        {"role": "assistant", "content": "A method [1]."},
    ]
    with Conversations(tmp_path / "conversations.db", "ann") as again:
        assert again.messages(talk.id)[1].details == {"citations": [{"page": 3}]}
    assert talks.cut(talk.id, asked.id) == 2
    assert talks.messages(talk.id) == []


def test_conversations_are_found_by_words_tags_and_collection(talks: Conversations) -> None:
    one, two, three = (talks.start(f"talk {at}", "papers" if at else "default", [f"t{at}", "all"]) for at in range(3))
    talks.add(two.id, "user", "about 100% of 强化学习")
    found = lambda **how: {talk.id for talk in talks.find(**how)}  # noqa: E731
    assert found(search="强化 100%") == {two.id}
    assert found(search="100_") == set()
    assert found(search="TALK") == {one.id, two.id, three.id}
    assert found(tags=["all", "t2"]) == {three.id}
    assert found(collection="papers") == {two.id, three.id}
    assert found(search="talk", tags=["t1"], collection="default") == set()
    assert talks.find()[0].id == two.id  # used last
    assert len(talks.find(most=2)) == 2
    assert talks.tags() == [("all", 3), ("t0", 1), ("t1", 1), ("t2", 1)]
    talks.tag(one.id, [])
    talks.rename(one.id, "  another\nname ")
    assert (talks.get(one.id).title, talks.get(one.id).tags) == ("another name", ())
    talks.delete(one.id)
    with pytest.raises(UserError, match="no conversation"):
        talks.get(one.id)


def test_nobody_sees_anothers_conversations(talks: Conversations, tmp_path: Path) -> None:
    mine = talks.start("secret", tags=["private"])
    said = talks.add(mine.id, "user", "secret words")
    with Conversations(tmp_path / "conversations.db", "bob") as bob:
        assert bob.find() == []
        assert bob.tags() == []
        for act in (
            lambda: bob.get(mine.id),
            lambda: bob.messages(mine.id),
            lambda: bob.add(mine.id, "user", "hi"),
            lambda: bob.rename(mine.id, "x"),
            lambda: bob.tag(mine.id, []),
            lambda: bob.cut(mine.id, said.id),
            lambda: bob.delete(mine.id),
        ):
            with pytest.raises(UserError, match="no conversation"):
                act()
    assert len(talks.messages(mine.id)) == 1


def test_limits_and_damage_are_lines(talks: Conversations, tmp_path: Path) -> None:
    talk = talks.start()
    with pytest.raises(UserError, match="at most 200,000"):
        talks.add(talk.id, "user", "x" * 200_001)
    for tags in (["x" * 101], [""], [str(at) for at in range(21)]):
        with pytest.raises(UserError, match="tag"):
            talks.start(tags=tags)
    (tmp_path / "bad.db").write_bytes(b"no database at all, really " * 50)
    with pytest.raises(UserError, match="no store of conversations"):
        Conversations(tmp_path / "bad.db")


def test_many_threads_and_two_stores_lose_nothing(talks: Conversations, tmp_path: Path) -> None:
    talk = talks.start()
    with Conversations(tmp_path / "conversations.db", "ann") as other:

        def write(store: Conversations, name: str) -> None:
            for at in range(25):
                store.add(talk.id, "user", f"{name} {at}")

        threads = [
            threading.Thread(target=write, args=(store, f"{at}"))
            for at, store in enumerate((talks, other, talks, other))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = [message.content for message in talks.messages(talk.id)]
    assert sorted(said) == sorted(f"{name} {at}" for name in range(4) for at in range(25))
    for name in range(4):
        assert [text for text in said if text.startswith(f"{name} ")] == [f"{name} {at}" for at in range(25)]
