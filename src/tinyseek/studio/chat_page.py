"""The chat page: a list of conversations, one of them, and a panel beside it.

The page is HTML that the server writes (`pieces`, `inside`, `markdown`); what is clicked or typed comes back as one kind of
event, a dictionary with an `act`. `page.js` does what needs no server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

from nicegui import background_tasks, ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import el, join
from tinyseek.studio import frame, pieces
from tinyseek.studio.answering import Answering
from tinyseek.studio.chats import Conversation, Message
from tinyseek.studio.message_view import MessageView
from tinyseek.studio.options import Talk
from tinyseek.studio.panel import Panel
from tinyseek.studio.shared import BusyError, Shared
from tinyseek.studio.words import Words

Said = dict[str, Any]  # an event of the page: what was done (`act`), to what

_ON_CLICK = """(e) => {
  const target = e.target.closest("[data-act]");
  if (!target || target.disabled) return;
  const said = { ...target.dataset };
  const field = target.closest(".reply, .edit")?.querySelector("input, textarea");
  if (field) said.text = field.value;
  if (said.act === "send") { said.text = studio.take(); if (!said.text) return; }
  emit(said);
}"""
_ON_KEY = """(e) => {
  const at = e.target;
  if (!at.matches("#ask, .edit-text, .rename-text, .reply-text") || !studio.sends(e)) return;
  if (at.id === "ask") { const text = studio.take(); if (text) emit({ act: "send", text }); }
  else if (at.matches(".rename-text")) at.blur();
  else { const button = at.parentElement.querySelector("[data-act=save-edit], [data-act=reply]"); button.click(); }
}"""
_ON_CHANGE = """(e) => {
  const at = e.target;
  if (at.matches(".rename-text")) emit({ act: "name", id: at.dataset.id, text: at.value });
  else if (at.dataset.field) emit({ act: "set", field: at.dataset.field, text: at.value });
}"""
_ON_FIND = """(e) => { if (e.target.matches(".find input")) emit({ act: "find", text: e.target.value }); }"""
_LONGEST_REST = 0.5  # seconds between two pictures of a growing answer, at most


class ChatPage:
    """One open page. It keeps nothing that the store does not have, but for what is half typed."""

    def __init__(
        self, shared: Shared, owner: str, words: Words, theme: str, place: str | None, knowledge: bool = False
    ) -> None:
        """Build the page; needs NiceGUI's page context.

        Args:
            place: the conversation that the address names.
            knowledge: there is a knowledge page, to which a link leads.
        """
        self.shared, self.owner, self.words, self.theme = shared, owner, words, theme
        self._knowledge = knowledge
        self.client = ui.context.client
        self.place: Conversation | None = shared.chats.get(owner, place) if place else None
        self.talk = Talk.kept(self.place.settings if self.place else self._usual())
        self.views: dict[int, MessageView] = {}
        self._following: asyncio.Task[None] | None = None
        self._followed: MessageView | None = None
        self._search = ""
        self._renaming: str | None = None
        self._deleted: str | None = None
        self._snack_number = 0
        self._build()
        self._show_place()
        if place and self.place is None:
            self._say(words("This conversation is gone."))
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
                _html(frame.side_top(words, self._knowledge))
                self.list = _html("", "list")
                self.foot = _html("", "foot")
            with ui.element("main").classes("talk"):
                self.top = _html("", "top", tag="header")
                with ui.element("div").classes("scroll"):
                    self.thread = ui.element("div").classes("thread").props('role="log"')
                with ui.element("div").classes("dock"):
                    with ui.element("div").classes("composer") as self.composer:
                        _html(frame.composer(words), "inside")
                    _html(frame.hint(words), "hint")
            self.panel = Panel(self)
            _html(el("div", class_="veil", data_act="close-drawer"))
            self.snack = _html("", "snack").props('role="status"')
            self.snack.set_visibility(False)
        self.root.on("click", self._acted, js_handler=_ON_CLICK)
        self.root.on("keydown", self._acted, js_handler=_ON_KEY)
        self.root.on("change", self._acted, js_handler=_ON_CHANGE)
        self.root.on("input", self._acted, js_handler=_ON_FIND, throttle=0.2)
        self._show_list()
        self._show_foot()

    def _show_top(self) -> None:
        title = self.place.title if self.place else self.words("New chat")
        local = self.shared.local(self.talk) is not None
        self.top.content = frame.top(title, local, self.panel.shows, self.words)

    def _show_foot(self) -> None:
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
        self.composer.classes(**{"add" if self._busy else "remove": "busy"})
        self._show_top()
        self.panel.changed()
        title = self.place.title if self.place else "tinyseek"
        self._script(f"document.title = {json.dumps(title)}; studio.stick()")
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
        for number in list(self.views)[standing:]:
            self.views.pop(number).article.delete()
        if not standing:
            self.thread.clear()
        with self.thread:
            if not path:
                tries = self.words.tries(self.shared.settings.examples)
                _html(pieces.welcome(self.words, tries, self.shared.chat_of(self.talk).name))
            for number, message in enumerate(path):
                if number >= standing:
                    local = self.shared.local(self.talk) is not None
                    view = MessageView(message, siblings[message.id], self.words, local)
                    self.views[message.id] = view
                if number >= standing or message.calls:
                    self.views[message.id].show(results, last=number == len(path) - 1)

    @property
    def _busy(self) -> bool:
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
        event = answering.watch()
        try:
            while not answering.done:
                await event.wait()
                event.clear()
                began = time.perf_counter()
                view.show({}, last=True)
                self.panel.tick()
                await asyncio.sleep(min(max(0.06, 8 * (time.perf_counter() - began)), _LONGEST_REST))
        finally:
            answering.leave(event)
        view.show({}, last=True)
        self._following = None
        self.composer.classes(remove="busy")
        self.panel.changed()

    def message(self, number: object) -> Message | None:
        """A message of the path that is shown."""
        view = self.views.get(_int(number))
        return view.message if view else None

    def _go(self, place: Conversation | None, push: bool = True) -> None:
        """Show another conversation, or an empty page for a new one."""
        self.panel.forget()
        self.place = place
        self.talk = Talk.kept(place.settings if place else self._usual())
        self._show_foot()
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

    async def _acted(self, event: Any) -> None:
        said = event.args if isinstance(event.args, dict) else {}
        handler: Callable[[Said], Coroutine[Any, Any, None] | None] | None = None
        act = str(said.get("act", "")).replace("-", "_")
        if act.isidentifier():
            handler = getattr(self, f"act_{act}", None) or getattr(self.panel, f"act_{act}", None)
        if handler is None:
            return
        try:
            result = handler(said)
            if result is not None:
                await result
        except BusyError:
            busy = self.words("An answer is still being written here; wait for it or stop it.")
            full = self.words(
                "You have {count} answers being written already; wait for one to end.",
                count=self.shared.settings.answers,
            )
            self._say(busy if self._busy else full)
            self._put_back(said)
        except UserError as error:
            self._say(str(error))
            self._put_back(said)

    def _put_back(self, said: Said) -> None:
        """What could not be sent is not lost."""
        if said.get("act") == "send":
            self._script(f"studio.put({json.dumps(said.get('text', ''))})")

    def act_send(self, said: Said) -> None:
        text = str(said.get("text", "")).strip()
        if not text:
            return
        if self._busy:
            raise BusyError
        if self.place is None:
            self.place = self.shared.chats.start(self.owner, text, self.talk.plain())
            ui.navigate.history.push(f"/c/{self.place.id}")
        self._ask(self.place.leaf, text)

    def act_try(self, said: Said) -> None:
        self.act_send(said)

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
        if view := self.views.get(_int(said.get("id"))):
            view.edit()
            self._script("studio.edit()")

    def act_cancel_edit(self, said: Said) -> None:
        if view := self.views.get(_int(said.get("id"))):
            view.show({}, last=False)

    def act_save_edit(self, said: Said) -> None:
        message, text = self.message(said.get("id")), str(said.get("text", "")).strip()
        if message is None or not text:
            return
        if self._busy:
            raise BusyError
        self._ask(message.parent, text)

    def act_reply(self, said: Said) -> None:
        """The result of a tool, which the visitor typed."""
        message, number = self.message(said.get("id")), _int(said.get("call"))
        if message is None or self.place is None or not 0 <= number < len(message.calls):
            return
        if self._busy:
            raise BusyError
        call = str(message.calls[number].get("id"))
        answer = self.shared.chats.add(self.place, self.place.leaf, "tool", str(said.get("text", "")), call=call)
        given = {entry.call for entry in self.shared.chats.path(self.place, answer.id) if entry.role == "tool"}
        if all(str(entry.get("id")) in given for entry in message.calls):
            self._answer(answer)
        self._changed()

    def act_turn(self, said: Said) -> None:
        if self.place is not None and not self._busy:
            self.shared.chats.choose(self.place, _int(said.get("id")))
            self.panel.forget()
            self._changed()

    def act_copy(self, said: Said) -> None:
        message = self.message(said.get("id"))
        if message is not None:
            self._script(f"studio.copy({json.dumps(message.content)})")
            self._say(self.words("Copied"), seconds=1.5)

    def act_new(self, _: Said) -> None:
        self._go(None)
        self._script("studio.put('')")

    def act_open(self, said: Said) -> None:
        place = self.shared.chats.get(self.owner, str(said.get("id")))
        if place is None:
            self._say(self.words("This conversation is gone."))
            self._show_list()
        elif self.place is None or place.id != self.place.id:
            self._go(place)

    def act_find(self, said: Said) -> None:
        self._search = str(said.get("text", ""))
        self._show_list()

    def act_rename(self, said: Said) -> None:
        self._renaming = str(said.get("id"))
        self._show_list()
        self._script("studio.rename()")

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
        self._say(self.words("“{title}” was deleted.", title=place.title), ("undo", self.words("Undo")), seconds=8)

    def act_undo(self, _: Said) -> None:
        if self._deleted is None:
            return
        self.shared.chats.restore(self.owner, self._deleted)
        self._go(self.shared.chats.get(self.owner, self._deleted))
        self._deleted = None
        self._say("")
        self.shared.tell(self.owner, None, but=self._heard)

    def act_theme(self, _: Said) -> None:
        order = list(frame.THEMES)
        self.theme = order[(order.index(self.theme) + 1) % len(order)]
        self.shared.chats.remember(self.owner, theme=self.theme)
        self._show_foot()
        self._script(f"studio.theme({json.dumps(self.theme)})")

    def act_language(self, _: Said) -> None:
        self.shared.chats.remember(self.owner, language="zh" if self.words.language == "en" else "en")
        ui.navigate.reload()

    # ---- the panel ----

    def act_settings(self, _: Said) -> None:
        self.panel.open("settings")

    async def act_inside(self, _: Said) -> None:
        """The toggle at the top: the last answer that is written."""
        answers = [message for view in self.views.values() if _is_answer(message := view.message)]
        await self.panel.toggle_inside(answers[-1] if answers else None)

    async def act_look(self, said: Said) -> None:
        """The eye under an answer."""
        message = self.message(said.get("id"))
        if message is not None and _is_answer(message):
            await self.panel.toggle_inside(message)

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
        self._show_foot()

    # ---- small things ----

    def _say(self, text: str, act: tuple[str, str] | None = None, seconds: float = 5) -> None:
        """A line at the bottom, for a while; with a button if there is something to do about it."""
        self._snack_number += 1
        action = el("button", act[1], type="button", data_act=act[0]) if act else ""
        self.snack.content = join(el("span", text), action)
        self.snack.set_visibility(bool(text))
        if text:
            background_tasks.create(self._hush(self._snack_number, seconds), name="studio: hide a line")

    async def _hush(self, number: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if number == self._snack_number and not self.client.is_deleted:
            self.snack.set_visibility(False)

    def script(self, code: str) -> None:
        """Run our own JavaScript in the page; every value in it must be JSON."""
        self._script(code)

    def _script(self, code: str) -> None:
        with contextlib.suppress(RuntimeError):
            self.client.run_javascript(code)


def _html(content: str, classes: str = "", tag: str = "div") -> ui.html:
    """HTML of ours, in which all text is escaped or sanitised already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def _is_answer(message: Message) -> bool:
    """Whether there is something to look into."""
    return message.role == "assistant" and message.state != "writing" and not message.empty


def _int(value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        return -1
