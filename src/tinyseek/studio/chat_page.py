"""The chat page: a list of conversations, one of them, and a panel beside it.

What it shows is made by `frame`, `pieces`, `inside` and `markdown`; `live` is what it can do like any page. `page.js` does what
needs no server.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nicegui import background_tasks, ui

from tinyseek.evaluate.page import el
from tinyseek.studio import frame, pieces
from tinyseek.studio.answering import Answering
from tinyseek.studio.chats import Conversation, Message
from tinyseek.studio.live import LivePage, Said, follow, int_of, markup
from tinyseek.studio.message_view import MessageView
from tinyseek.studio.options import Talk
from tinyseek.studio.panel import Panel
from tinyseek.studio.shared import BusyError, Shared
from tinyseek.studio.words import Words

_ON_CLICK = """(e) => {
  const target = e.target.closest("[data-act]");
  if (!target || target.disabled) return;
  const said = { ...target.dataset };
  const field = target.closest(".reply, .edit")?.querySelector("input, textarea");
  if (field) said.text = field.value;
  if (said.act === "send") { said.text = studio.take(); if (said.text === null) return; }
  emit(said);
}"""
_ON_KEY = """(e) => {
  const at = e.target;
  if (!at.matches("#ask, .edit-text, .rename-text, .reply-text") || !studio.sends(e)) return;
  if (at.id === "ask") { const text = studio.take(); if (text !== null) emit({ act: "send", text }); }
  else if (at.matches(".rename-text")) at.blur();
  else { const button = at.parentElement.querySelector("[data-act=save-edit], [data-act=reply]"); button.click(); }
}"""
_ON_CHANGE = """(e) => {
  const at = e.target;
  if (at.matches(".rename-text")) emit({ act: "name", id: at.dataset.id, text: at.value });
  else if (at.dataset.field) emit({ act: "set", field: at.dataset.field, text: at.value });
}"""
_ON_FIND = """(e) => { if (e.target.matches(".find input")) emit({ act: "find", text: e.target.value }); }"""


class ChatPage(LivePage):
    """One open page. It keeps nothing that the store does not have, but for what is half typed."""

    def __init__(
        self, shared: Shared, owner: str, words: Words, theme: str, place: str | None, knowledge: bool = False
    ) -> None:
        """Build the page; needs NiceGUI's page context.

        Args:
            place: the conversation that the address names.
            knowledge: there is a knowledge page, to which a link leads.
        """
        super().__init__(shared.chats, owner, words, theme, shared.settings.answers)
        self.shared, self.owner, self._knowledge = shared, owner, knowledge
        self.place: Conversation | None = shared.chats.get(owner, place) if place else None
        self.talk = Talk.kept(self.place.settings if self.place else self._usual())
        self.views: dict[int, MessageView] = {}
        self._following: asyncio.Task[None] | None = None
        self._followed: MessageView | None = None
        self._search = ""
        self._renaming: str | None = None
        self._deleted: str | None = None
        self._build()
        self._show_place()
        if place and self.place is None:
            self.say(words("This conversation is gone."))
        shared.listen(owner, self._heard)
        self.client.on_delete(self._leave)

    def _usual(self) -> dict[str, Any]:
        """How a new conversation of this visitor begins."""
        usual = self.shared.chats.visitor(self.owner).get("talk")
        return usual if isinstance(usual, dict) else {"system": self.shared.settings.system}

    # ---- the frame ----

    def _build(self) -> None:
        words = self.words
        with ui.element("div").classes("studio") as self.root:
            with ui.element("nav").classes("side").props(f'aria-label="{words("Conversations")}"'):
                markup(frame.side_top(words, self._knowledge))
                self.list = markup("", "list")
                self.foot = markup("", "foot")
            with ui.element("main").classes("talk"):
                self.top = markup("", "top", tag="header")
                with ui.element("div").classes("scroll"):
                    self.thread = ui.element("div").classes("thread").props('role="log"')
                with ui.element("div").classes("dock"):
                    with ui.element("div").classes("composer") as self.composer:
                        markup(frame.composer(words), "inside")
                    markup(frame.hint(words), "hint")
            self.panel = Panel(self)
            markup(el("div", class_="veil", data_act="close-drawer"))
            self.build_snack()
        self.root.on("click", self.acted, js_handler=_ON_CLICK)
        self.root.on("keydown", self.acted, js_handler=_ON_KEY)
        self.root.on("change", self.acted, js_handler=_ON_CHANGE)
        self.root.on("input", self.acted, js_handler=_ON_FIND, throttle=0.2)
        self._show_list()
        self.show_foot()

    def _show_top(self) -> None:
        title = self.place.title if self.place else self.words("New chat")
        local = self.shared.local(self.talk) is not None
        self.top.content = frame.top(title, local, self.panel.shows, self.words)

    def show_foot(self) -> None:
        self.foot.content = frame.side_foot(self.shared.chat_of(self.talk).name, self.theme, self.words)

    def _show_list(self) -> None:
        found = self.shared.chats.find(self.owner, self._search)
        here = self.place.id if self.place else None
        self.list.content = frame.listed(
            found, here, self.shared.answers, self.words, bool(self._search), self._renaming
        )

    # ---- the conversation ----

    def _show_place(self) -> None:
        """Show the conversation as it is now, and follow the answer that is being written. Messages that stand stay."""
        self._stop_following()
        path = self.shared.chats.path(self.place) if self.place else []
        answering = self.shared.answers.get(self.place.id) if self.place else None
        if answering and any(message.id == answering.message.id for message in path):
            path = [answering.message if message.id == answering.message.id else message for message in path]
        else:
            answering = None
        self._show_messages(path)
        self.composer.classes(**{"add" if self.busy else "remove": "busy"})
        self._show_top()
        self.panel.changed()
        title = self.place.title if self.place else "tinyseek"
        self.script(f"document.title = {json.dumps(title)}; studio.stick()")
        if answering:
            self._following = background_tasks.create(self._follow(answering), name="studio: follow an answer")

    def _show_messages(self, path: list[Message]) -> None:
        siblings = self.shared.chats.siblings(path)
        results = {message.call: message.content for message in path if message.call}
        standing = 0
        for view, message in zip(self.views.values(), path, strict=False):
            if view.message != message or view.siblings != siblings[message.id]:
                break
            standing += 1
        for gone in list(self.views)[standing:]:
            self.views.pop(gone).article.delete()
        if not standing:
            self.thread.clear()
        with self.thread:
            if not path:
                tries = self.words.tries(self.shared.settings.examples)
                markup(pieces.welcome(self.words, tries, self.shared.chat_of(self.talk).name))
            for place, message in enumerate(path):
                if place >= standing:
                    local = self.shared.local(self.talk) is not None
                    view = MessageView(message, siblings[message.id], self.words, local)
                    self.views[message.id] = view
                if place >= standing or message.calls:
                    self.views[message.id].show(results, last=place == len(path) - 1)

    @property
    def busy(self) -> bool:
        return self.place is not None and self.place.id in self.shared.answers

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None
            if self._followed is not None:
                self._followed.show({}, last=True)  # it may have grown, or ended, since it was drawn

    async def _follow(self, answering: Answering) -> None:
        """Show an answer as it grows: at once, then as often as drawing it stays cheap."""
        view = self._followed = self.views[answering.message.id]

        def draw() -> None:
            view.show({}, last=True)
            self.panel.tick()

        await follow(answering, draw)
        self._following = None
        self.composer.classes(remove="busy")
        self.panel.changed()

    def message(self, id_: object) -> Message | None:
        """A message of the path that is shown."""
        view = self.views.get(int_of(id_))
        return view.message if view else None

    def _go(self, place: Conversation | None, push: bool = True) -> None:
        """Show another conversation, or an empty page for a new one."""
        self.panel.forget()
        self.place = place
        self.talk = Talk.kept(place.settings if place else self._usual())
        self.show_foot()
        if push:
            ui.navigate.history.push(f"/c/{place.id}" if place else "/")
        self._show_place()
        self._show_list()

    def _reload(self) -> None:
        """The conversation as the store has it now."""
        self.place = self.shared.chats.get(self.owner, self.place.id) if self.place else None
        self._show_place()

    def _changed(self) -> None:
        """Something was said: show it here, and tell the visitor's other pages."""
        self._reload()
        self._show_list()
        self.shared.tell(self.owner, self.place.id if self.place else None, but=self._heard)

    def _heard(self, place: str | None) -> None:
        """Another page of this visitor, or an answer that ended, changed something."""
        with self.client:
            self._show_list()
            if place is not None and self.place is not None and place == self.place.id and self._following is None:
                self._reload()

    def _leave(self) -> None:
        if self._following is not None:
            self._following.cancel()
        self.shared.leave(self.owner, self._heard)
        self.panel.release()

    # ---- what is clicked and typed ----

    def parts(self) -> tuple[object, ...]:
        return self, self.panel

    def act_send(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        if not text:
            return
        if self.busy:
            raise BusyError
        if self.place is None:
            self.place = self.shared.chats.start(self.owner, text, self.talk.plain())
            ui.navigate.history.push(f"/c/{self.place.id}")
        self._ask(self.place.leaf, text)

    act_try = act_send

    def _ask(self, parent: int | None, text: str) -> None:
        assert self.place is not None
        try:
            question = self.shared.chats.add(self.place, parent, "user", text)
            self._answer(question)
        finally:
            self._changed()

    def _answer(self, after: Message) -> None:
        assert self.place is not None
        self.panel.forget()
        self.shared.answer(self.place, after, self.talk)

    def act_stop(self, _: Said) -> None:
        if self.place and (answering := self.shared.answers.get(self.place.id)):
            answering.stop()

    def act_again(self, said: Said) -> None:
        message = self.message(said.get("id"))
        if message is None or self.place is None:
            return
        parent = self.message(message.parent)
        if parent is not None:
            self._answer(parent)
            self._changed()

    def act_edit(self, said: Said) -> None:
        if view := self.views.get(int_of(said.get("id"))):
            view.edit()
            self.script("studio.edit()")

    def act_cancel_edit(self, said: Said) -> None:
        if view := self.views.get(int_of(said.get("id"))):
            view.show({}, last=False)

    def act_save_edit(self, said: Said) -> None:
        message, text = self.message(said.get("id")), str(said.get("text", "")).strip()
        if message is None or not text:
            return
        if self.busy:
            raise BusyError
        self._ask(message.parent, text)

    def act_reply(self, said: Said) -> None:
        """The result of a tool, which the visitor typed."""
        message, nth = self.message(said.get("id")), int_of(said.get("call"))
        if message is None or self.place is None or not 0 <= nth < len(message.calls):
            return
        if self.busy:
            raise BusyError
        call = str(message.calls[nth].get("id"))
        answer = self.shared.chats.add(self.place, self.place.leaf, "tool", str(said.get("text", "")), call=call)
        given = {entry.call for entry in self.shared.chats.path(self.place, answer.id) if entry.role == "tool"}
        if all(str(entry.get("id")) in given for entry in message.calls):
            self._answer(answer)
        self._changed()

    def act_turn(self, said: Said) -> None:
        if self.place is not None and not self.busy:
            self.shared.chats.choose(self.place, int_of(said.get("id")))
            self.panel.forget()
            self._changed()

    def act_copy(self, said: Said) -> None:
        message = self.message(said.get("id"))
        if message is not None:
            self.copy(message.content)

    def act_new(self, _: Said) -> None:
        self._go(None)
        self.script("studio.put('')")

    def act_open(self, said: Said) -> None:
        place = self.shared.chats.get(self.owner, str(said.get("id")))
        if place is None:
            self.say(self.words("This conversation is gone."))
            self._show_list()
        elif self.place is None or place.id != self.place.id:
            self._go(place)

    def act_find(self, said: Said) -> None:
        self._search = str(said.get("text", ""))
        self._show_list()

    def act_rename(self, said: Said) -> None:
        self._renaming = str(said.get("id"))
        self._show_list()
        self.script("studio.rename()")

    def act_name(self, said: Said) -> None:
        place, self._renaming = str(said.get("id")), None
        self.shared.chats.rename(self.owner, place, str(said.get("text", "")))
        if self.place is not None and place == self.place.id:
            self.place = self.shared.chats.get(self.owner, place)
            self._show_top()
        self._show_list()
        self.shared.tell(self.owner, None, but=self._heard)

    def act_delete(self, said: Said) -> None:
        place = self.shared.chats.get(self.owner, str(said.get("id")))
        if place is None:
            return
        if answering := self.shared.answers.get(place.id):
            answering.stop()
        self.shared.chats.delete(self.owner, place.id)
        self._deleted = place.id
        if self.place is not None and self.place.id == place.id:
            self._go(None)
        self._show_list()
        self.shared.tell(self.owner, place.id, but=self._heard)
        self.say(self.words("“{title}” was deleted.", title=place.title), ("undo", self.words("Undo")), seconds=8)

    def act_undo(self, _: Said) -> None:
        if self._deleted is None:
            return
        self.shared.chats.restore(self.owner, self._deleted)
        self._go(self.shared.chats.get(self.owner, self._deleted))
        self._deleted = None
        self.say("")
        self.shared.tell(self.owner, None, but=self._heard)

    # ---- the panel ----

    def panel_changed(self) -> None:
        """The panel was opened or closed."""
        self.root.classes(**{"add" if self.panel.shows else "remove": "sheet"})
        self._show_top()

    def configure(self, talk: Talk) -> None:
        """Answer in another way from now on, here and in new conversations."""
        self.talk = talk
        self.shared.chats.remember(self.owner, talk=talk.plain())
        if self.place is not None:
            self.shared.chats.configure(self.owner, self.place.id, talk.plain())
        self.show_foot()
