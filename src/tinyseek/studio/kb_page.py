"""The knowledge page: collections at the left, questions and answers in the middle, the documents themselves at the right.

What it shows of documents it asks the shelf for, with the API key that the page was opened with. Its faces are parts of their own:
questions (`kb_thread`), documents (`kb_documents`), search (`kb_search`), what is remembered (`kb_facts`), the viewer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import background_tasks, ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import el
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.shelf import FIRST
from tinyseek.llm.base import ChatModel
from tinyseek.studio import kb_pieces
from tinyseek.studio.kb_desk import Desk
from tinyseek.studio.kb_documents import DocumentsTab
from tinyseek.studio.kb_facts import FactsTab
from tinyseek.studio.kb_search import SearchTab
from tinyseek.studio.kb_thread import Thread
from tinyseek.studio.kb_viewer import Viewer
from tinyseek.studio.live import LivePage, Said, markup
from tinyseek.studio.words import Words

_ON_CLICK = """(e) => {
  const target = e.target.closest("[data-act]");
  if (!target || target.disabled) return;
  const said = { ...target.dataset };
  if (kb.own(said.act, target)) return;
  const field = target.closest(".edit, .path, .searching, .remembering")?.querySelector("input, textarea");
  if (field) said.text = field.value;
  if (said.act === "send") { said.text = studio.take(kb.may_be_empty()); if (said.text === null) return; }
  emit(said);
}"""
_ON_KEY = """(e) => {
  const at = e.target;
  if (at.matches(".chunk-text, .fact-text")) {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) kb.save(at);
    return;
  }
  if (!at.matches("#ask, .make-text, .tag-text, .page-text, .path-text, #kb-search, .new-fact") || !studio.sends(e)) return;
  if (at.id === "ask") { const text = studio.take(kb.may_be_empty()); if (text !== null) emit({ act: "send", text }); }
  else if (at.id === "kb-search") emit({ act: "search", text: at.value });
  else if (at.matches(".path-text")) emit({ act: "add-path", text: at.value });
  else if (at.matches(".page-text")) emit({ act: "page", text: at.value });
  else if (at.matches(".new-fact")) emit({ act: "remember", text: at.value });
  else at.blur();
}"""
_ON_CHANGE = """(e) => {
  const at = e.target;
  if (at.matches(".make-text")) emit({ act: "made", text: at.value });
  else if (at.matches(".who")) emit({ act: "who", text: at.value });
  else if (at.matches(".tag-text")) emit({ act: at.dataset.tags, id: at.dataset.id, text: at.value });
}"""
_ON_INPUT = """(e) => {
  if (e.target.matches(".find-documents")) emit({ act: "find", text: e.target.value });
  else if (e.target.matches(".find-facts")) emit({ act: "find-fact", text: e.target.value });
}"""


@dataclass(frozen=True)
class Address:
    """What the page's address names."""

    collection: str | None = None
    place: str | None = None  # a conversation
    document: int | None = None
    chunk: int | None = None
    page: int | None = None


class KbPage(LivePage):
    """One open page."""

    def __init__(
        self, desk: Desk, visitor: str, key: bytes, words: Words, theme: str, here: bool, address: Address
    ) -> None:
        """Build the frame; needs NiceGUI's page context. `begin` fills it.

        Args:
            here: who visits sits at this machine, and may name its folders.
        """
        super().__init__(desk.visitors, visitor, words, theme, desk.settings.answers)
        self.desk, self.key = desk, key
        self.writable = not desk.shelf.read_only
        self.here = here and self.writable
        self.owner = desk.owner(visitor, key)
        self.collection = FIRST
        self.count = (0, 0)  # documents and passages in it
        self.tab = "ask"
        self._address = address
        self._making = False
        self._names: list[str] = []
        self._build()
        self.client.on_delete(self._leave)

    async def begin(self) -> None:
        """Show what the address names."""
        address, words = self._address, self.words
        place = self.desk.talks.get(self.owner, address.place) if address.place is not None else None
        lost = words("This conversation is gone.") if address.place is not None and place is None else ""
        self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
        usual = self.desk.visitors.visitor(self.visitor).get("collection")
        wanted = place.settings.get("collection") if place else address.collection or usual
        if wanted not in self._names:
            if address.collection or place:
                lost = words("There is no collection “{name}” here.", name=str(wanted)[:80])
            wanted, place = next(iter(self._names), FIRST), None
        self.collection = str(wanted)
        self.thread.enter(place)
        self.desk.listen(self.key, self.collection, self.heard)
        await self.show_collection()
        if address.document is not None:
            await self._guarded(self.viewer.open(address.document, chunk=address.chunk, page=address.page))
        if lost:
            self.say(lost)

    async def base(self) -> KnowledgeBase:
        """The collection that is shown.

        Raises:
            UserError: it was deleted.
        """
        return await asyncio.to_thread(self.desk.shelf.base, self.key, self.collection)

    def model(self) -> ChatModel | None:
        """Who writes this visitor's answers; None: they are quoted."""
        chosen = self.desk.visitors.visitor(self.visitor).get("writer")
        return None if chosen == "" else self.desk.model(str(chosen))

    # ---- the frame ----

    def _build(self) -> None:
        words = self.words
        with ui.element("div").classes("studio kb") as self.root:
            with ui.element("nav").classes("side").props(f'aria-label="{words("Collections")}"'):
                markup(kb_pieces.side_top(self.desk.with_chat, words))
                self._list = markup("", "list")
                self._foot = markup("", "foot")
            with ui.element("main").classes("talk"):
                self._top = markup("", "top", tag="header")
                self.thread = Thread(self)
                panes: dict[str, tuple[ui.element, ...]] = {"ask": self.thread.panes}
                with ui.element("div").classes("tab-pane") as pane:
                    self.documents, panes["documents"] = DocumentsTab(self), (pane,)
                with ui.element("div").classes("tab-pane") as pane:
                    self.search, panes["search"] = SearchTab(self), (pane,)
                with ui.element("div").classes("tab-pane") as pane:
                    self.facts, panes["facts"] = FactsTab(self), (pane,)
                self._panes = panes
            self.viewer = Viewer(self)
            markup(el("div", class_="veil", data_act="close-drawer"))
            self._asking = markup("", "asking")
            self._asking.set_visibility(False)
            self.build_snack()
        self.root.on("click", self.acted, js_handler=_ON_CLICK)
        self.root.on("keydown", self.acted, js_handler=_ON_KEY)
        self.root.on("change", self.acted, js_handler=_ON_CHANGE)
        self.root.on("input", self.acted, js_handler=_ON_INPUT, throttle=0.2)
        self.root.on("kb-look", self._looked, js_handler="() => emit()")
        self.show_foot()
        self._show_tab()

    def parts(self) -> tuple[object, ...]:
        return self, self.thread, self.viewer, self.viewer.passages, self.documents, self.search, self.facts

    @property
    def busy(self) -> bool:
        return self.thread.busy

    async def show_collection(self) -> None:
        """Everything of the collection that is here now."""
        try:
            base = await self.base()
            self.count = await asyncio.to_thread(base.index.count)
        except UserError as error:
            self.count = (0, 0)
            self.say(str(error))
        self._show_top()
        self.show_side()
        self.search.clear()
        await self.documents.show()
        self.thread.show()

    def show_side(self) -> None:
        """The list at the left."""
        talks = self.desk.talks_of(self.owner, self.collection)
        here = self.thread.place.id if self.thread.place else None
        self._list.content = kb_pieces.side(
            self._names, self.collection, self._making, talks, here, self.desk.live(), self.words, self.writable
        )

    def _show_top(self) -> None:
        self._top.content = kb_pieces.top(self.collection, self.count, self.tab, self.words)

    def show_foot(self) -> None:
        model = self.model()
        writers = list(self.desk.shelf.models)
        self._foot.content = kb_pieces.side_foot(writers, model.name if model else "", self.theme, self.words)

    def _show_tab(self) -> None:
        for name, panes in self._panes.items():
            for pane in panes:
                pane.set_visibility(self.tab == name)

    async def act_tab(self, said: Said) -> None:
        if said.get("name") in kb_pieces.TABS:
            self.to_tab(str(said["name"]))
            if self.tab == "facts":
                await self.facts.show()

    def to_tab(self, name: str) -> None:
        """Show another face of the page."""
        if name != self.tab:
            self.tab = name
            self._show_tab()
            self._show_top()

    def act_who(self, said: Said) -> None:
        """Who writes was chosen; nobody is `""`."""
        name = str(said.get("text", ""))
        if name == "" or name in self.desk.shelf.models:
            self.desk.visitors.remember(self.visitor, writer=name)
            if not self.thread.views:
                self.thread.show()

    def viewer_changed(self) -> None:
        """The viewer was opened, closed, or made wide."""
        self.root.classes(**{"add" if self.viewer.is_open else "remove": "sheet"})
        self.root.classes(**{"add" if self.viewer.is_wide else "remove": "wide"})

    # ---- collections ----

    async def act_collection(self, said: Said) -> None:
        await self.go(str(said.get("name")))

    async def go(self, name: str) -> None:
        """Show another collection."""
        self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
        if name not in self._names:
            self.show_side()
            raise UserError(self.words("There is no collection “{name}” here.", name=name[:80]))
        self.desk.leave(self.key, self.collection, self.heard)
        self.collection, self._making = name, False
        self.thread.forget()
        self.desk.listen(self.key, self.collection, self.heard)
        self.desk.visitors.remember(self.visitor, collection=name)
        ui.navigate.history.push(f"/kb/in/{quote(name, safe='')}")
        if self.viewer.is_open:
            self.viewer.close()
        self.documents.forget()
        await self.show_collection()

    def act_make(self, _: Said) -> None:
        self._making = True
        self.show_side()
        self.script("kb.name()")

    async def act_made(self, said: Said) -> None:
        """A name for a new collection was typed."""
        name = str(said.get("text", "")).strip()
        self._making = False
        self.show_side()
        if name and self.writable:
            await asyncio.to_thread(self.desk.shelf.make, self.key, name)
            await self.go(name)
            self.to_tab("documents")

    async def act_drop(self, said: Said) -> None:
        """Ask before a collection is deleted."""
        name = str(said.get("name"))
        if name not in self._names or not self.writable:
            return
        base = await asyncio.to_thread(self.desk.shelf.base, self.key, name)
        count, _ = await asyncio.to_thread(base.index.count)
        words = self.words
        asked = words(
            "Delete “{name}” with {count} documents? What was uploaded is gone then; files in folders stay.",
            name=name,
            count=f"{count:,}",
        )
        self.confirm(asked, "really-drop", words("Delete"), data_name=name)

    async def act_really_drop(self, said: Said) -> None:
        self.act_no(said)
        name = str(said.get("name"))
        await asyncio.to_thread(self.desk.delete, self.key, name)
        self.desk.tell(self.key, name, "gone", but=self.heard)
        self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
        if name == self.collection:
            await self.go(next(iter(self._names), FIRST))
        else:
            self.show_side()
        self.say(self.words("“{title}” was deleted.", title=name))

    def confirm(self, question: str, act: str, label: str, **data: str | float | None) -> None:
        """Ask before something that cannot be undone."""
        self._asking.content = kb_pieces.confirm(question, act, label, self.words, **data)
        self._asking.set_visibility(True)
        self.script("kb.ask()")

    def act_no(self, _: Said) -> None:
        self._asking.content = ""
        self._asking.set_visibility(False)

    # ---- what is heard ----

    def told(self) -> None:
        """The documents changed by what was done here: tell the other pages."""
        self.desk.tell(self.key, self.collection, "documents", but=self.heard)

    def heard(self, what: str) -> None:
        """Another page, or what is being brought in, changed something."""
        with self.client:
            if what == "talks":
                self.show_side()
            else:
                background_tasks.create(self._refresh(what), name="kb: refresh")

    async def _looked(self, _: Any) -> None:
        """The visitor came back to this tab: another process may have changed something."""
        await self._refresh("documents")

    async def _refresh(self, what: str) -> None:
        if self.client.is_deleted:
            return
        with self.client:
            if what == "gone":
                self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
                self.show_side()
                self.say(self.words("There is no collection “{name}” here.", name=self.collection))
                return
            with contextlib.suppress(UserError):
                base = await self.base()
                before = self.count
                self.count = await asyncio.to_thread(base.index.count)
                if before != self.count:
                    self._show_top()
                await self.documents.show()
                self.thread.show_dock()
                if not self.thread.views and bool(before[0]) != bool(self.count[0]):
                    self.thread.show()

    def _leave(self) -> None:
        self.thread.stop_following()
        self.desk.leave(self.key, self.collection, self.heard)

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except UserError as error:
            self.say(str(error), seconds=8)
