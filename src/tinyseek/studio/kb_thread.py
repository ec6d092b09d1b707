"""The tab of questions: one conversation with the documents, and how the next question is answered.

A question goes to the documents' text, to their tables, or asks for a summary; all three are answered in the background and kept
in the conversation (`kb_desk`), so that a reload loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

from nicegui import background_tasks, ui

from tinyseek.errors import UserError
from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.knowledge.memory import asked_to_remember
from tinyseek.studio import frame, kb_pieces, kb_tables
from tinyseek.studio.chats import Conversation, Message
from tinyseek.studio.kb_desk import Task
from tinyseek.studio.kb_sheet import page_address
from tinyseek.studio.kb_talk import ExchangeView, cited, looked_at, part_of
from tinyseek.studio.kb_writing import Writing, places_of
from tinyseek.studio.live import Said, follow, int_of, markup
from tinyseek.studio.shared import BusyError

if TYPE_CHECKING:
    from tinyseek.studio.kb_page import KbPage


class Thread:
    """One conversation, and the box to ask in."""

    def __init__(self, page: KbPage) -> None:
        """Build it, empty; needs NiceGUI's slot."""
        self._page, self._words, self._desk = page, page.words, page.desk
        self.place: Conversation | None = None
        self.scope: Filters = ALL
        self.views: dict[int, ExchangeView] = {}
        self._scope_said = ""
        self._task: Task = "text"
        self._deleted: str | None = None
        self._following: asyncio.Task[None] | None = None
        with ui.element("div").classes("scroll") as pane:
            self._thread = ui.element("div").classes("thread").props('role="log"')
        with ui.element("div").classes("dock") as dock:
            self._about = markup("", "scope")
            with ui.element("div").classes("composer") as self._composer:
                markup(frame.composer(self._words), "inside")
            markup(frame.hint(self._words), "hint")
        self.panes = (pane, dock)

    def forget(self) -> None:
        """Another collection is shown."""
        self.place, self.scope, self._scope_said, self._task = None, ALL, "", "text"

    def enter(self, place: Conversation | None) -> None:
        """Go on with a conversation, in the way in which it was last asked."""
        self.place = place
        asked = [message for message in self._desk.talks.path(place) if message.role == "user"] if place else []
        task: Any = asked[-1].facts.get("task") if asked else None
        self._task = task if task in get_args(Task) else "text"

    @property
    def busy(self) -> bool:
        return self.place is not None and self._desk.writing(self.place.id) is not None

    # ---- drawing ----

    def show(self) -> None:
        """The conversation as it is now, and follow the answer that is being written. Messages that stand stay."""
        self.stop_following()
        path = self._desk.talks.path(self.place) if self.place else []
        writing = self._desk.writing(self.place.id) if self.place else None
        if writing and any(message.id == writing.message.id for message in path):
            path = [writing.message if message.id == writing.message.id else message for message in path]
        else:
            writing = None
        self._show_messages(path)
        self._composer.classes(**{"add" if writing else "remove": "busy"})
        self.show_dock()
        title = f"{self.place.title if self.place else self._page.collection} · tinyseek"
        self._page.script(f"document.title = {json.dumps(title)}; studio.stick()")
        if writing:
            self._following = background_tasks.create(self._follow(writing), name="kb: follow an answer")

    def show_dock(self) -> None:
        """How the next question is answered, and of what."""
        page = self._page
        tasks: list[Task] = ["text"] if page.count[0] else []
        if tasks and page.documents.has_tables:
            tasks.append("tables")
        if tasks:
            tasks.append("summary")
        if self._task not in tasks:
            self._task = "text"
        self._about.content = kb_pieces.dock(tasks, self._task, self._scope_said, self._words)
        hint = {
            "text": self._words("Ask anything"),
            "tables": self._words("Ask the tables: totals, averages, the largest, by column"),
            "summary": self._words("Summarise. What above all? (may be left empty)"),
        }[self._task]
        page.script(f"kb.task({json.dumps(self._task)}, {json.dumps(hint)})")

    def _show_messages(self, path: list[Message]) -> None:
        standing = 0
        for view, message in zip(self.views.values(), path, strict=False):
            if view.message != message:
                break
            standing += 1
        for gone in list(self.views)[standing:]:
            self.views.pop(gone).article.delete()
        if not standing:
            self._thread.clear()
        page, tables = self._page, self._page.documents.has_tables
        with self._thread:
            if not path:
                tries, quoted = page.documents.questions(), page.model() is None
                markup(kb_pieces.welcome(page.count[0] > 0, tries, page.writable, quoted, self._words))
            for number, message in enumerate(path):
                if number >= standing:
                    self.views[message.id] = ExchangeView(message, self._words, tables)
                if number >= standing - 1:
                    self.views[message.id].show(last=number == len(path) - 1)

    async def _follow(self, writing: Writing[Any]) -> None:
        view = self.views[writing.message.id]
        await follow(writing, lambda: view.show(last=True))
        self._following = None
        self._composer.classes(remove="busy")
        self._page.show_side()
        await self._fetch_ahead(writing.message)

    async def _fetch_ahead(self, message: Message) -> None:
        """Let the browser fetch the pages that will be looked at most likely."""
        with contextlib.suppress(UserError):
            base = await self._page.base()
            wanted: dict[str, None] = {}
            for entry in message.facts.get("citations", [])[:4]:
                page = next((place.page for place in places_of(entry) if place.page), None)
                if entry.get("kind") == "pdf" and page is not None:
                    document = await asyncio.to_thread(base.document, entry["document"])
                    wanted[page_address(self._page.collection, document, page)] = None
            self._page.script(f"kb.fetch({json.dumps(list(wanted)[:2])})")

    def stop_following(self) -> None:
        """The answer goes on being written; it is not looked at here."""
        if self._following is not None:
            self._following.cancel()
            self._following = None

    # ---- asking ----

    async def act_send(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        if self._task == "summary":
            about = self._scope_said or self._page.collection
            await self._ask("summary", text or self._words("Summary of {what}", what=about), self.scope, text)
        elif self._page.writable and (fact := asked_to_remember(text)):
            await self._remember(text, fact)
        elif text:
            await self._ask(self._task, text, self.scope)

    async def act_try(self, said: Said) -> None:
        """A question that is offered was clicked: it goes where it says."""
        text, task = str(said.get("text", "")).strip(), said.get("task", "text")
        if text and task in get_args(Task):
            await self._ask(task, text, self.scope)

    async def summarise(self, documents: Sequence[int], said: str) -> None:
        """Summarise documents, in a conversation of its own."""
        self._start_anew()
        text = self._words("Summary of {what}", what=said)
        await self._ask("summary", text, Filters(documents=tuple(documents)))

    async def _ask(self, task: Task, text: str, scope: Filters, focus: str = "") -> None:
        if self.busy:
            raise BusyError
        await self._page.base()
        question = self._question(text, {"task": task, "documents": list(scope.documents), "focus": focus[:500]})
        await self._answer(question)

    def _question(self, text: str, facts: dict[str, Any]) -> Message:
        """Keep a question, in a new conversation if there is none."""
        page, talks = self._page, self._desk.talks
        page.to_tab("ask")
        if self.place is None:
            self.place = talks.start(page.owner, text, {"collection": page.collection})
            ui.navigate.history.push(f"/kb/c/{self.place.id}")
        question = talks.add(self.place, self.place.leaf, "user", text)
        question.facts = facts
        talks.save(question)
        return question

    async def _answer(self, question: Message) -> None:
        page = self._page
        base = await page.base()
        assert self.place is not None
        try:
            self._desk.ask(self.place, question, base, page.model())
        finally:
            self._changed()

    async def _remember(self, text: str, fact: str) -> None:
        """Someone asked to remember something: nothing is looked up."""
        kept = await self._page.facts.remember(fact)
        question = self._question(text, {"task": "remember"})
        assert self.place is not None
        answer = self._desk.talks.add(
            self.place, question.id, "assistant", self._words("Remembered: {fact}", fact=kept)
        )
        answer.facts = {"task": "remember"}
        self._desk.talks.save(answer)
        self._changed()

    def _changed(self) -> None:
        page = self._page
        self.place = self._desk.talks.get(page.owner, self.place.id) if self.place else None
        self.show()
        page.show_side()
        self._desk.tell(page.key, page.collection, "talks", but=page.heard)

    def act_stop(self, _: Said) -> None:
        if self.place and (writing := self._desk.writing(self.place.id)):
            writing.stop()

    async def act_retry(self, said: Said) -> None:
        """Another answer, in place of one."""
        view = self._view(said)
        if view is None or self.place is None or view.message.parent is None:
            return
        if self.busy:
            raise BusyError
        question = self.views.get(view.message.parent)
        if question is not None:
            await self._answer(question.message)

    def act_task(self, said: Said) -> None:
        """How the next question is answered was chosen."""
        if said.get("name") in get_args(Task):
            self._task = said["name"]
            self.show_dock()
            self._page.script("document.querySelector('#ask').focus()")

    def act_unscope(self, _: Said) -> None:
        self.scope, self._scope_said = ALL, ""
        self.show_dock()

    def ask_only(self, filters: Filters, said: str) -> None:
        """Ask some documents alone from now on."""
        self.scope, self._scope_said = filters, said
        self._page.to_tab("ask")
        self.show_dock()
        self._page.script("document.querySelector('#ask').focus()")

    # ---- what an answer leads to ----

    def _view(self, said: Said) -> ExchangeView | None:
        return self.views.get(int_of(said.get("id")))

    def act_copy(self, said: Said) -> None:
        if (view := self._view(said)) is not None:
            self._page.copy(view.message.content)

    async def act_cite(self, said: Said) -> None:
        """A number in an answer was clicked."""
        view = self._view(said)
        entry = cited(view.message, int_of(said.get("n"))) if view else None
        if entry is not None:
            await self._page.viewer.open(int_of(entry.get("document")), places_of(entry), str(entry.get("quote", "")))

    async def act_passage(self, said: Said) -> None:
        """A passage that was found for an answer was clicked."""
        view = self._view(said)
        entry = looked_at(view.message, int_of(said.get("n"))) if view else None
        if entry is not None:
            await self._page.viewer.open(int_of(entry.get("document")), chunk=int_of(entry.get("chunk")))

    async def act_part(self, said: Said) -> None:
        """A part of a summary was clicked."""
        view = self._view(said)
        entry = part_of(view.message, int_of(said.get("n"))) if view else None
        if entry is not None:
            await self._page.viewer.open(int_of(entry.get("document")), places_of(entry), str(entry.get("quote", "")))

    async def act_cells(self, said: Said) -> None:
        """A number that came out of a sheet was clicked, or the sheet itself."""
        view = self._view(said)
        found = kb_tables.behind(view.message, said) if view else None
        if found is not None:
            await self._page.viewer.open(found[0], found[1])

    # ---- conversations ----

    def _start_anew(self) -> None:
        self.place, self._task = None, "text"
        ui.navigate.history.push(f"/kb/in/{quote(self._page.collection, safe='')}")

    def act_new(self, _: Said) -> None:
        self._start_anew()
        self._page.to_tab("ask")
        self.show()
        self._page.show_side()

    async def act_open(self, said: Said) -> None:
        """A conversation of before."""
        place = self._desk.talks.get(self._page.owner, str(said.get("id")))
        if place is None:
            self._page.say(self._words("This conversation is gone."))
        else:
            self.enter(place)
            ui.navigate.history.push(f"/kb/c/{place.id}")
            self._page.to_tab("ask")
            self.show()
        self._page.show_side()

    def act_delete(self, said: Said) -> None:
        page, words = self._page, self._words
        place = self._desk.talks.get(page.owner, str(said.get("id")))
        if place is None:
            return
        if writing := self._desk.writing(place.id):
            writing.stop()
        self._desk.talks.delete(page.owner, place.id)
        if self.place is not None and self.place.id == place.id:
            self.place = None
            self.show()
        page.show_side()
        self._deleted = place.id
        page.say(words("“{title}” was deleted.", title=place.title), ("undo", words("Undo")), seconds=8)

    def act_undo(self, _: Said) -> None:
        if self._deleted is not None:
            self._desk.talks.restore(self._page.owner, self._deleted)
            self._page.say("")
            self._page.show_side()
