"""The tab of what is remembered: facts that the visitor asked to keep, shown, found, put right, tagged, forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nicegui import ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.memory import LONGEST_FACT, Fact, Facts
from tinyseek.studio.live import Said, int_of, markup
from tinyseek.studio.pieces import button, edit_box, icon, pill
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.studio.kb_page import KbPage

_MOST = 200  # facts that are listed at once


class FactsTab:
    """What belongs to who holds the page's key, and to nobody else."""

    def __init__(self, page: KbPage) -> None:
        """Build it, empty; needs NiceGUI's slot."""
        self._page, self._words = page, page.words
        self._facts: list[Fact] = []
        self._find = ""
        self._editing: int | None = None
        self._tagging: int | None = None
        self._gone: Fact | None = None
        with ui.element("div").classes("inner facts"):
            markup(adding(self._words) if page.writable else "")
            self._box = markup("")
            self._list = markup("", "fact-list").props('role="region" aria-live="polite"')

    async def _all(self) -> Facts:
        return Facts(await asyncio.to_thread(self._page.desk.shelf.personal, self._page.key))

    async def show(self) -> None:
        """All that is remembered now."""
        self._facts = await asyncio.to_thread((await self._all()).all)
        if bool(self._box.content) != (len(self._facts) > 3):  # a box that is typed into is not drawn anew
            self._box.content = finding(self._find, self._words) if len(self._facts) > 3 else ""
        self._show()

    def _show(self) -> None:
        wanted = self._find.casefold().split()
        found = [
            fact
            for fact in self._facts
            if all(word in f"{fact.text}\n{' '.join(fact.tags)}".casefold() for word in wanted)
        ]
        self._list.content = listed(
            found, len(self._facts), self._editing, self._tagging, self._page.writable, self._words
        )

    async def remember(self, text: str) -> str:
        """Keep a fact, and give it back as it is kept.

        Raises:
            UserError: it is too long, or nothing may be changed here.
        """
        facts = await self._changing()
        kept = await asyncio.to_thread(facts.remember, text)
        if self._page.tab == "facts":
            await self.show()
        return kept.text

    async def _changing(self) -> Facts:
        if not self._page.writable:
            raise UserError(self._words("This server only answers questions."))
        return await self._all()

    # ---- what is clicked ----

    async def act_remember(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        if text:
            await self.remember(text)
            self._page.script("kb.emptied('.new-fact')")

    def act_find_fact(self, said: Said) -> None:
        self._find = str(said.get("text", ""))
        self._show()

    def act_by_fact_tag(self, said: Said) -> None:
        self._find = str(said.get("tag", ""))
        self._box.content = finding(self._find, self._words)
        self._show()

    def act_edit_fact(self, said: Said) -> None:
        self._editing, self._tagging = int_of(said.get("id")), None
        self._show()
        self._page.script("studio.edit()")

    def act_leave_fact(self, _: Said) -> None:
        self._editing = None
        self._show()

    async def act_save_fact(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        facts = await self._changing()
        await asyncio.to_thread(facts.edit, int_of(said.get("id")), text)
        self._editing = None
        await self.show()

    def act_tag_fact(self, said: Said) -> None:
        self._tagging, self._editing = int_of(said.get("id")), None
        self._show()
        self._page.script("kb.name()")

    async def act_fact_tagged(self, said: Said) -> None:
        self._tagging = None
        tags = [tag.strip() for tag in str(said.get("text", "")).replace("，", ",").split(",") if tag.strip()]
        try:
            facts = await self._changing()
            await asyncio.to_thread(facts.tag, int_of(said.get("id")), tags)
        finally:
            await self.show()

    async def act_forget_fact(self, said: Said) -> None:
        """Forgotten at once; a moment long it can be brought back."""
        number, words = int_of(said.get("id")), self._words
        self._gone = next((fact for fact in self._facts if fact.id == number), None)
        facts = await self._changing()
        await asyncio.to_thread(facts.forget, [number])
        await self.show()
        if self._gone is not None:
            self._page.say(words("Forgotten."), ("bring-back", words("Undo")), seconds=8)

    async def act_bring_back(self, _: Said) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            facts = await self._changing()
            await asyncio.to_thread(facts.remember, gone.text, gone.tags)
            self._page.say("")
            await self.show()


def adding(words: Words) -> Html:
    """Where a fact is written down."""
    field = el(
        "input",
        class_="new-fact",
        placeholder=words("A fact to keep: my desk is 4B"),
        aria_label=words("A fact to keep"),
        maxlength=LONGEST_FACT,
        autocomplete="off",
    )
    return el("div", field, pill("remember", words("Remember")), class_="remembering")


def finding(find: str, words: Words) -> Html:
    """The box to narrow the list down."""
    field = el(
        "input",
        type="search",
        value=find,
        class_="find-facts",
        placeholder=words("Words or a tag"),
        aria_label=words("Narrow the list down"),
        maxlength=200,
    )
    return el("div", el("div", icon("search"), field, class_="find"), class_="documents-head")


def listed(
    found: Sequence[Fact], count: int, editing: int | None, tagging: int | None, writable: bool, words: Words
) -> Html:
    """Facts, a card each."""
    if not count:
        why = words(
            "What you ask to remember is kept here, for you alone. It is enough to write in the box of questions:"
        )
        return el(
            "div",
            el("h2", words("Nothing is remembered yet.")),
            el("p", why),
            el("p", el("b", words("Remember that my desk is 4B."))),
            class_="welcome",
        ) if writable else el("p", words("Nothing is remembered yet."), class_="none")  # fmt: skip
    if not found:
        return el("p", words("Nothing found."), class_="none")
    cards = [_fact(fact, fact.id == editing, fact.id == tagging, writable, words) for fact in found[:_MOST]]
    left = len(found) - len(cards)
    more = el("p", words("{count} more; narrow the list down.", count=f"{left:,}"), class_="told") if left > 0 else ""
    return join(el("ul", cards, class_="cards"), more)


def _fact(fact: Fact, editing: bool, tagging: bool, writable: bool, words: Words) -> Html:
    if editing:
        box = edit_box(
            fact.text,
            words("A fact to keep"),
            words("Save"),
            words,
            class_="edit-text fact-text",
            act="save-fact",
            leave="leave-fact",
            longest=LONGEST_FACT,
            data_id=fact.id,
        )
        return el("li", box, data_fact=fact.id)
    acts = [
        button("edit-fact", words("Edit"), icon("pen"), data_id=fact.id),
        button("forget-fact", words("Forget"), icon("bin"), data_id=fact.id),
    ]
    return el(
        "li",
        el("p", fact.text, class_="fact"),
        el("div", acts if writable else "", class_="acts"),
        el("div", _tags(fact, tagging, writable, words), el("small", _day(fact.changed)), class_="below"),
        data_fact=fact.id,
    )


def _tags(fact: Fact, tagging: bool, writable: bool, words: Words) -> Html:
    if tagging:
        return el(
            "input",
            class_="tag-text",
            value=", ".join(fact.tags),
            data_tags="fact-tagged",
            data_id=fact.id,
            placeholder=words("tags, with commas between"),
            aria_label=words("Tags"),
            maxlength=2000,
        )
    chips = [el("button", tag, type="button", class_="tag", data_act="by-fact-tag", data_tag=tag) for tag in fact.tags]
    change = button(
        "tag-fact", words("Change tags"), icon("pen" if chips else "plus"), class_="quiet small", data_id=fact.id
    )
    return el("span", chips, change if writable else "", class_="tags")


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(moment))
