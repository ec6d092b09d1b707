"""The knowledge page: collections at the left, questions and answers in the middle, the documents themselves at the right.

As the chat page it is HTML that the server writes; what is clicked or typed comes back as one kind of event, a dictionary with an
`act`. What it shows of documents it asks the shelf for, with the API key that the page was opened with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from nicegui import background_tasks, ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import el, join
from tinyseek.knowledge.base import KnowledgeBase
from tinyseek.knowledge.index.base import ALL, Filters
from tinyseek.knowledge.shelf import FIRST
from tinyseek.llm.base import ChatModel
from tinyseek.studio import frame, kb_pieces
from tinyseek.studio.chats import Conversation, Message
from tinyseek.studio.kb_asking import Asking, places_of
from tinyseek.studio.kb_desk import Desk
from tinyseek.studio.kb_documents import DocumentsTab
from tinyseek.studio.kb_search import SearchTab
from tinyseek.studio.kb_talk import ExchangeView, cited, looked_at
from tinyseek.studio.kb_viewer import Viewer, page_address
from tinyseek.studio.shared import BusyError
from tinyseek.studio.words import Words

Said = dict[str, Any]  # an event of the page: what was done (`act`), to what

_ON_CLICK = """(e) => {
  const target = e.target.closest("[data-act]");
  if (!target || target.disabled) return;
  const said = { ...target.dataset };
  if (kb.own(said.act, target)) return;
  const field = target.closest(".edit, .path, .searching")?.querySelector("input, textarea");
  if (field) said.text = field.value;
  if (said.act === "send") { said.text = studio.take(); if (!said.text) return; }
  emit(said);
}"""
_ON_KEY = """(e) => {
  const at = e.target;
  if (at.matches(".chunk-text")) { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) kb.save(at); return; }
  if (!at.matches("#ask, .make-text, .tag-text, .page-text, .path-text, #kb-search") || !studio.sends(e)) return;
  if (at.id === "ask") { const text = studio.take(); if (text) emit({ act: "send", text }); }
  else if (at.id === "kb-search") emit({ act: "search", text: at.value });
  else if (at.matches(".path-text")) emit({ act: "add-path", text: at.value });
  else if (at.matches(".page-text")) emit({ act: "page", text: at.value });
  else at.blur();
}"""
_ON_CHANGE = """(e) => {
  const at = e.target;
  if (at.matches(".make-text")) emit({ act: "made", text: at.value });
  else if (at.matches(".who")) emit({ act: "who", text: at.value });
  else if (at.matches(".tag-text")) emit({ act: "tagged", id: at.dataset.id, text: at.value });
}"""
_ON_INPUT = """(e) => { if (e.target.matches(".find-documents")) emit({ act: "find", text: e.target.value }); }"""
_LONGEST_REST = 0.5  # seconds between two pictures of a growing answer, at most


@dataclass(frozen=True)
class Address:
    """What the page's address names."""

    collection: str | None = None
    place: str | None = None  # a conversation
    document: int | None = None
    chunk: int | None = None
    page: int | None = None


class KbPage:
    """One open page. It keeps nothing that the store does not have, but for what is half typed."""

    def __init__(
        self, desk: Desk, visitor: str, key: bytes, words: Words, theme: str, here: bool, address: Address
    ) -> None:
        """Build the frame; needs NiceGUI's page context. `begin` fills it.

        Args:
            here: who visits sits at this machine, and may name its folders.
        """
        self.desk, self.key, self.words, self.theme = desk, key, words, theme
        self.writable = not desk.shelf.read_only
        self.here = here and self.writable
        self.visitor, self.owner = visitor, desk.owner(visitor, key)
        self.client = ui.context.client
        self.collection = FIRST
        self.tab = "ask"
        self.place: Conversation | None = None
        self.scope: Filters = ALL
        self.scope_said = ""
        self.views: dict[int, ExchangeView] = {}
        self._address = address
        self._making = False
        self._count = (0, 0)
        self._names: list[str] = []
        self._following: asyncio.Task[None] | None = None
        self._snack_number = 0
        self._build()
        self.client.on_delete(self._leave)

    async def begin(self) -> None:
        """Show what the address names."""
        address, words = self._address, self.words
        lost = ""
        if address.place is not None:
            self.place = self.desk.talks.get(self.owner, address.place)
            lost = "" if self.place else words("This conversation is gone.")
        self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
        usual = self.desk.visitors.visitor(self.visitor).get("collection")
        wanted = self.place.settings.get("collection") if self.place else address.collection or usual
        if wanted not in self._names:
            if address.collection or self.place:
                lost = words("There is no collection “{name}” here.", name=str(wanted)[:80])
            wanted, self.place = next(iter(self._names), FIRST), None
        self.collection = str(wanted)
        self.desk.listen(self.key, self.collection, self._heard)
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

    # ---- the frame ----

    def _build(self) -> None:
        words = self.words
        with ui.element("div").classes("studio kb") as self.root:
            with ui.element("nav").classes("side").props(f'aria-label="{words("Collections")}"'):
                _html(kb_pieces.side_top(self.desk.with_chat, words))
                self.list = _html("", "list")
                self.foot = _html("", "foot")
            with ui.element("main").classes("talk"):
                self.top = _html("", "top", tag="header")
                with ui.element("div").classes("scroll") as self._ask_pane:
                    self.thread = ui.element("div").classes("thread").props('role="log"')
                with ui.element("div").classes("dock") as self._dock:
                    self._scope = _html("", "scope")
                    with ui.element("div").classes("composer") as self.composer:
                        _html(frame.composer(words), "inside")
                    _html(frame.hint(words), "hint")
                with ui.element("div").classes("tab-pane") as self._documents_pane:
                    self.documents = DocumentsTab(self)
                with ui.element("div").classes("tab-pane") as self._search_pane:
                    self.search = SearchTab(self)
            self.viewer = Viewer(self)
            _html(el("div", class_="veil", data_act="close-drawer"))
            self._asking = _html("", "asking")
            self._asking.set_visibility(False)
            self.snack = _html("", "snack").props('role="status"')
            self.snack.set_visibility(False)
        self.root.on("click", self._acted, js_handler=_ON_CLICK)
        self.root.on("keydown", self._acted, js_handler=_ON_KEY)
        self.root.on("change", self._acted, js_handler=_ON_CHANGE)
        self.root.on("input", self._acted, js_handler=_ON_INPUT, throttle=0.2)
        self.root.on("kb-look", self._looked, js_handler="() => emit()")
        self._show_foot()
        self._show_tab()

    async def show_collection(self) -> None:
        """Everything of the collection that is here now."""
        try:
            base = await self.base()
            self._count = await asyncio.to_thread(base.index.count)
        except UserError as error:
            self._count = (0, 0)
            self.say(str(error))
        self._show_top()
        self.show_side()
        self.search.clear()
        await self.documents.show()
        self.show_talk()

    def show_side(self) -> None:
        """The list at the left."""
        talks = self.desk.talks_of(self.owner, self.collection)
        here = self.place.id if self.place else None
        self.list.content = kb_pieces.side(
            self._names, self.collection, self._making, talks, here, self.desk.answers, self.words, self.writable
        )

    def _show_top(self) -> None:
        self.top.content = kb_pieces.top(self.collection, self._count, self.tab, self.words)

    def _show_foot(self) -> None:
        model = self._model()
        writers = list(self.desk.shelf.models)
        self.foot.content = kb_pieces.side_foot(writers, model.name if model else "", self.theme, self.words)

    def _show_tab(self) -> None:
        for name, panes in {
            "ask": (self._ask_pane, self._dock),
            "documents": (self._documents_pane,),
            "search": (self._search_pane,),
        }.items():
            for pane in panes:
                pane.set_visibility(self.tab == name)

    def _show_scope(self) -> None:
        words = self.words
        self._scope.content = (
            el(
                "div",
                el("span", words("Only: {what}", what=self.scope_said)),
                el("button", words("Ask all"), type="button", class_="quiet", data_act="unscope"),
                class_="chip",
            )
            if self.scope != ALL
            else ""
        )

    def viewer_changed(self) -> None:
        """The viewer was opened, closed, or made wide."""
        self.root.classes(**{"add" if self.viewer.is_open else "remove": "sheet"})
        self.root.classes(**{"add" if self.viewer.is_wide else "remove": "wide"})

    # ---- questions and answers ----

    def show_talk(self) -> None:
        """The conversation as it is now, and follow the answer that is being written. Messages that stand stay."""
        self._stop_following()
        path = self.desk.talks.path(self.place) if self.place else []
        asking = self.desk.answers.get(self.place.id) if self.place else None
        if asking and any(message.id == asking.message.id for message in path):
            path = [asking.message if message.id == asking.message.id else message for message in path]
        else:
            asking = None
        self._show_messages(path)
        self.composer.classes(**{"add" if asking else "remove": "busy"})
        self._show_scope()
        title = f"{self.place.title if self.place else self.collection} · tinyseek"
        self.script(f"document.title = {json.dumps(title)}; studio.stick()")
        if asking:
            self._following = background_tasks.create(self._follow(asking), name="kb: follow an answer")

    def _show_messages(self, path: list[Message]) -> None:
        standing = 0
        for view, message in zip(self.views.values(), path, strict=False):
            if view.message != message:
                break
            standing += 1
        for number in list(self.views)[standing:]:
            self.views.pop(number).article.delete()
        if not standing:
            self.thread.clear()
        with self.thread:
            if not path:
                tries = self.documents.questions()
                quoted = self._model() is None
                _html(kb_pieces.welcome(self._count[0] > 0, tries, self.writable, quoted, self.words))
            for number, message in enumerate(path):
                if number >= standing:
                    self.views[message.id] = ExchangeView(message, self.words)
                if number >= standing - 1:
                    self.views[message.id].show(last=number == len(path) - 1)

    async def _follow(self, asking: Asking) -> None:
        """Show an answer as it grows: at once, then as often as drawing it stays cheap."""
        view = self.views[asking.message.id]
        event = asking.watch()
        try:
            while not asking.done:
                await event.wait()
                event.clear()
                began = time.perf_counter()
                view.show(last=True)
                await asyncio.sleep(min(max(0.06, 8 * (time.perf_counter() - began)), _LONGEST_REST))
        finally:
            asking.leave(event)
        view.show(last=True)
        self._following = None
        self.composer.classes(remove="busy")
        self.show_side()
        await self._fetch_ahead(asking.message)

    async def _fetch_ahead(self, message: Message) -> None:
        """Let the browser fetch the pages that will be looked at most likely."""
        with contextlib.suppress(UserError):
            base = await self.base()
            wanted: dict[str, None] = {}
            for entry in message.facts.get("citations", [])[:4]:
                page = next((place.page for place in places_of(entry) if place.page), None)
                if entry.get("kind") == "pdf" and page is not None:
                    document = await asyncio.to_thread(base.document, entry["document"])
                    wanted[page_address(self.collection, document, page)] = None
            self.script(f"kb.fetch({json.dumps(list(wanted)[:2])})")

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None

    @property
    def _busy(self) -> bool:
        return self.place is not None and self.place.id in self.desk.answers

    async def act_send(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        if not text:
            return
        if self._busy:
            raise BusyError
        base = await self.base()
        self._to_tab("ask")
        if self.place is None:
            self.place = self.desk.talks.start(self.owner, text, {"collection": self.collection})
            ui.navigate.history.push(f"/kb/c/{self.place.id}")
        question = self.desk.talks.add(self.place, self.place.leaf, "user", text)
        self._answer(question, base)

    def _model(self) -> ChatModel | None:
        """Who writes this visitor's answers; None: they are quoted."""
        chosen = self.desk.visitors.visitor(self.visitor).get("writer")
        return None if chosen == "" else self.desk.model(str(chosen))

    def act_who(self, said: Said) -> None:
        """Who writes was chosen; nobody is `""`."""
        name = str(said.get("text", ""))
        if name == "" or name in self.desk.shelf.models:
            self.desk.visitors.remember(self.visitor, writer=name)
            if not self.views:
                self.show_talk()

    async def act_try(self, said: Said) -> None:
        await self.act_send(said)

    def _answer(self, question: Message, base: KnowledgeBase) -> None:
        assert self.place is not None
        try:
            self.desk.ask(self.place, question, base, self._model(), self.scope)
        finally:
            self._talk_changed()

    def _talk_changed(self) -> None:
        self.place = self.desk.talks.get(self.owner, self.place.id) if self.place else None
        self.show_talk()
        self.show_side()
        self.desk.tell(self.key, self.collection, "talks", but=self._heard)

    def act_stop(self, _: Said) -> None:
        if self.place and (asking := self.desk.answers.get(self.place.id)):
            asking.stop()

    async def act_retry(self, said: Said) -> None:
        """Another answer, in place of one."""
        view = self.views.get(_int(said.get("id")))
        if view is None or self.place is None or view.message.parent is None:
            return
        if self._busy:
            raise BusyError
        question = self.views.get(view.message.parent)
        if question is not None:
            self._answer(question.message, await self.base())

    def act_copy(self, said: Said) -> None:
        view = self.views.get(_int(said.get("id")))
        if view is not None:
            self.script(f"studio.copy({json.dumps(view.message.content)})")
            self.say(self.words("Copied"), seconds=1.5)

    async def act_cite(self, said: Said) -> None:
        """A number in an answer was clicked."""
        view = self.views.get(_int(said.get("id")))
        entry = cited(view.message, _int(said.get("n"))) if view else None
        if entry is not None:
            await self.viewer.open(_int(entry.get("document")), places_of(entry), str(entry.get("quote", "")))

    async def act_passage(self, said: Said) -> None:
        """A passage that was found for an answer was clicked."""
        view = self.views.get(_int(said.get("id")))
        entry = looked_at(view.message, _int(said.get("n"))) if view else None
        if entry is not None:
            await self.viewer.open(_int(entry.get("document")), chunk=_int(entry.get("chunk")))

    def act_new(self, _: Said) -> None:
        self.place = None
        ui.navigate.history.push(f"/kb/in/{quote(self.collection, safe='')}")
        self._to_tab("ask")
        self.show_talk()
        self.show_side()

    async def act_open(self, said: Said) -> None:
        """A conversation of before."""
        place = self.desk.talks.get(self.owner, str(said.get("id")))
        if place is None:
            self.say(self.words("This conversation is gone."))
            self.show_side()
            return
        self.place = place
        ui.navigate.history.push(f"/kb/c/{place.id}")
        self._to_tab("ask")
        self.show_talk()
        self.show_side()

    def act_delete(self, said: Said) -> None:
        place = self.desk.talks.get(self.owner, str(said.get("id")))
        if place is None:
            return
        if asking := self.desk.answers.get(place.id):
            asking.stop()
        self.desk.talks.delete(self.owner, place.id)
        if self.place is not None and self.place.id == place.id:
            self.place = None
            self.show_talk()
        self.show_side()
        words = self.words
        self._deleted = place.id
        self.say(words("“{title}” was deleted.", title=place.title), ("undo", words("Undo")), seconds=8)

    def act_undo(self, _: Said) -> None:
        if deleted := getattr(self, "_deleted", None):
            self.desk.talks.restore(self.owner, deleted)
            self.say("")
            self.show_side()

    def act_unscope(self, _: Said) -> None:
        self.scope, self.scope_said = ALL, ""
        self._show_scope()

    def ask_only(self, filters: Filters, said: str) -> None:
        """Ask some documents alone from now on."""
        self.scope, self.scope_said = filters, said
        self._to_tab("ask")
        self._show_scope()
        self.script("document.querySelector('#ask').focus()")

    # ---- collections ----

    async def act_collection(self, said: Said) -> None:
        await self.go(str(said.get("name")))

    async def go(self, name: str) -> None:
        """Show another collection."""
        self._names = await asyncio.to_thread(self.desk.shelf.collections, self.key)
        if name not in self._names:
            self.show_side()
            raise UserError(self.words("There is no collection “{name}” here.", name=name[:80]))
        self.desk.leave(self.key, self.collection, self._heard)
        self.collection, self.place, self.scope, self._making = name, None, ALL, False
        self.desk.listen(self.key, self.collection, self._heard)
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
            self._to_tab("documents")

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
        self.desk.tell(self.key, name, "gone", but=self._heard)
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

    # ---- what is heard and clicked ----

    def told(self) -> None:
        """The documents changed by what was done here: tell the other pages."""
        self.desk.tell(self.key, self.collection, "documents", but=self._heard)

    def _heard(self, what: str) -> None:
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
                before = self._count
                self._count = await asyncio.to_thread(base.index.count)
                if before != self._count:
                    self._show_top()
                await self.documents.show()
                if not self.views and bool(before[0]) != bool(self._count[0]):
                    self.show_talk()

    def _leave(self) -> None:
        self._stop_following()
        self.desk.leave(self.key, self.collection, self._heard)

    async def _acted(self, event: Any) -> None:
        said = event.args if isinstance(event.args, dict) else {}
        act = str(said.get("act", "")).replace("-", "_")
        if not act.isidentifier():
            return
        for part in (self, self.viewer, self.documents, self.search):
            handler: Callable[[Said], Awaitable[None] | None] | None = getattr(part, f"act_{act}", None)
            if handler is not None:
                break
        if handler is None:
            return
        try:
            result = handler(said)
            if result is not None:
                await result
        except BusyError:
            words = self.words
            busy = words("An answer is still being written here; wait for it or stop it.")
            full = words(
                "You have {count} answers being written already; wait for one to end.", count=self.desk.settings.answers
            )
            self.say(busy if self._busy else full)
            self._put_back(said)
        except UserError as error:
            self.say(str(error), seconds=8)
            self._put_back(said)

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except UserError as error:
            self.say(str(error), seconds=8)

    def _put_back(self, said: Said) -> None:
        """What could not be sent is not lost."""
        if said.get("act") == "send":
            self.script(f"studio.put({json.dumps(said.get('text', ''))})")

    def act_tab(self, said: Said) -> None:
        if said.get("name") in kb_pieces.TABS:
            self._to_tab(str(said["name"]))

    def _to_tab(self, name: str) -> None:
        if name != self.tab:
            self.tab = name
            self._show_tab()
            self._show_top()

    def act_theme(self, _: Said) -> None:
        order = list(frame.THEMES)
        self.theme = order[(order.index(self.theme) + 1) % len(order)]
        self.desk.visitors.remember(self.visitor, theme=self.theme)
        self._show_foot()
        self.script(f"studio.theme({json.dumps(self.theme)})")

    def act_language(self, _: Said) -> None:
        self.desk.visitors.remember(self.visitor, language="zh" if self.words.language == "en" else "en")
        ui.navigate.reload()

    # ---- small things ----

    def say(self, text: str, act: tuple[str, str] | None = None, seconds: float = 5) -> None:
        """A line at the bottom, for a while; with a button if there is something to do about it."""
        self._snack_number += 1
        action = el("button", act[1], type="button", data_act=act[0]) if act else ""
        self.snack.content = join(el("span", text), action)
        self.snack.set_visibility(bool(text))
        if text:
            background_tasks.create(self._hush(self._snack_number, seconds), name="kb: hide a line")

    async def _hush(self, number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if number == self._snack_number and not self.client.is_deleted:
            self.snack.set_visibility(False)

    def script(self, code: str) -> None:
        """Run our own JavaScript in the page; every value in it must be JSON."""
        with contextlib.suppress(RuntimeError):
            self.client.run_javascript(code)


def _html(content: str, classes: str = "", tag: str = "div") -> ui.html:
    """HTML of ours, in which all text is escaped or sanitised already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def _int(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return -1
