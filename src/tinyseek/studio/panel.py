"""The panel beside the conversation: its settings, or a look inside an answer. On a phone it is a sheet from below."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Literal

from nicegui import ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import el, join
from tinyseek.studio import form, inside
from tinyseek.studio.chats import Message
from tinyseek.studio.live import Said, markup
from tinyseek.studio.memory import cache_meter
from tinyseek.studio.options import Talk
from tinyseek.studio.pieces import button, icon

if TYPE_CHECKING:
    from tinyseek.studio.chat_page import ChatPage


_PARTS = {
    "alternatives": inside.alternatives,
    "guesses": inside.guesses,
    "experts": inside.experts,
    "attention": inside.attention,
}


class Panel:
    """What stands at the right of a page, if anything."""

    def __init__(self, page: ChatPage) -> None:
        self._page, self._words = page, page.words
        self.shows: Literal["settings", "inside"] | None = None
        self._look: inside.Look | None = None
        self._asked = 0  # counts what was asked for, so that a late answer to an older question is dropped
        self._ticked = 0.0
        self._parts: dict[str, ui.html] = {}
        self.element = ui.element("aside").classes("panel")
        with self.element:
            self._head = markup("", "head")
            self._body = ui.element("div").classes("body")
        self.element.set_visibility(False)

    # ---- open and shut ----

    def open(self, what: Literal["settings", "inside"]) -> None:
        """Show settings or the inside; what is shown already is shut."""
        if self.shows == what:
            self.close()
            return
        self._drop_look()
        self.shows = what
        self._frame()
        if what == "settings":
            self._show_settings()
        self.element.set_visibility(True)
        self._page.panel_changed()

    def close(self) -> None:
        """Away with it."""
        self._drop_look()
        self.shows = None
        self._body.clear()
        self._parts = {}
        self.element.set_visibility(False)
        self._page.panel_changed()

    def forget(self) -> None:
        """The answer that was looked into is no longer shown."""
        if self._look is not None:
            self._drop_look()
            if self.shows == "inside":
                self._show_inside()

    def release(self) -> None:
        """The page is gone: let go of what was looked into."""
        self._asked += 1
        self._look = None

    def changed(self) -> None:
        """Another conversation, or an answer that ended."""
        if self.shows == "inside":
            self._show_inside()
        elif self.shows == "settings":
            self._show_settings()

    def tick(self) -> None:
        """While an answer is written: how full the memory is."""
        if self.shows == "inside" and time.monotonic() - self._ticked > 0.5:
            self._ticked = time.monotonic()
            self._show_memory()

    def _frame(self) -> None:
        title = "Settings" if self.shows == "settings" else "Look inside"
        self._head.content = join(
            el("h2", self._words(title)), button("close-panel", self._words("Close"), icon("close"))
        )
        self._body.clear()
        self._parts = {}

    def _part(self, name: str, content: str) -> None:
        """Show one part of the body, in its place if it is there already."""
        if name in self._parts:
            self._parts[name].content = content
            self._parts[name].set_visibility(bool(content))
            return
        with self._body:
            self._parts[name] = markup(content)
            self._parts[name].set_visibility(bool(content))

    def act_close_panel(self, _: Said) -> None:
        self.close()

    # ---- settings ----

    def _show_settings(self) -> None:
        plain, more = form.settings(self._page.talk, self._words)
        self._body.clear()
        self._parts = {}
        self._part("intro", form.intro(self._words))
        self._show_models()
        for name, content in plain.items():
            self._part(name, content)
        with self._body, ui.element("details").classes("more"):
            markup(self._words("More"), tag="summary")
            for name, content in more.items():
                self._parts[name] = markup(content)

    def _show_models(self) -> None:
        """Whom to talk with, where there is a choice."""
        models = self._page.shared.models
        if len(models) > 1:
            self._part("model", form.models(list(models), self._page.shared.chat_of(self._page.talk).name, self._words))

    def act_set(self, said: Said) -> None:
        """A field was typed into."""
        name, text = str(said.get("field")), str(said.get("text", ""))
        if name in Talk.model_fields:
            self._set(name, form.parsed(name, text))

    def act_choose(self, said: Said) -> None:
        """One of a few was clicked."""
        name = str(said.get("field"))
        if name == "thinking":
            self._set(name, form.parsed(name, str(said.get("value", ""))))
            self._part(name, form.field(name, self._page.talk, self._words))
        elif name == "model" and said.get("value") in self._page.shared.models:
            self._set(name, str(said["value"]))
            self._show_models()

    def act_reset(self, said: Said) -> None:
        """Back to what the model prefers."""
        name = str(said.get("field"))
        if name in Talk.model_fields:
            self._set(name, Talk.model_fields[name].default)
            self._part(name, form.field(name, self._page.talk, self._words))

    def _set(self, name: str, value: Any) -> None:
        try:
            talk = Talk.read({**self._page.talk.plain(), name: value}, where="")
        except UserError as error:
            fault = str(error).splitlines()[0].removeprefix(": ").removeprefix(f"{name}: ")
        else:
            fault = ""
            self._page.configure(talk)
        self._page.script(f"studio.fault({json.dumps(name)}, {json.dumps(fault)})")

    # ---- the inside ----

    async def toggle_inside(self, message: Message | None) -> None:
        """Look into an answer, or no more if it is the one that is looked into."""
        if self._look is not None and (message is None or message.id == self._look.message):
            self.close()
            return
        if self.shows == "inside" and message is None:
            self.close()
            return
        if self.shows != "inside":
            self.open("inside")
        self._drop_look()
        if message is None or self._page.place is None:
            self._show_inside()
            return
        self._asked += 1
        asked = self._asked
        self._part("about", el("p", self._words("Reading …"), class_="why"))
        try:
            look = await self._page.shared.look(self._page.place, message)
        except UserError as error:
            if asked == self._asked:
                self._part("about", el("p", str(error), class_="why"))
            return
        if asked != self._asked or self.shows != "inside" or self._page.message(message.id) is None:
            return
        self._look = look
        self._show_tokens()
        self._show_inside()

    def _drop_look(self) -> None:
        self._asked += 1
        if self._look is None:
            return
        view = self._page.views.get(self._look.message)
        self._look = None
        if view is not None:
            view.tokens = None
            view.show({}, last=True)

    def _show_tokens(self) -> None:
        if self._look is not None and (view := self._page.views.get(self._look.message)):
            view.tokens = inside.answer_tokens(self._look, self._words)
            view.show({}, last=True)

    def _show_inside(self) -> None:
        """The whole panel for what is looked at now."""
        look, words = self._look, self._words
        if look is None:
            about = el(
                "p",
                words(inside.CLICK if self._page.views else "Ask something first; then look into the answer."),
                class_="why",
            )
        else:
            about = inside.overview(look, words) if look.token is None else inside.token_head(look, words)
        self._part("about", about)
        of_token = look is not None and look.token is not None
        for name, draw in _PARTS.items():
            self._part(name, draw(look, words) if look is not None and of_token else "")
        self._show_memory()

    def _show_memory(self) -> None:
        """The meter of the answer that is looked into, or of the last one."""
        answers = [view.message for view in self._page.views.values() if view.message.role == "assistant"]
        chosen = self._page.message(self._look.message) if self._look else answers[-1] if answers else None
        stats = self._page.shared.stats()
        self._part("memory", cache_meter(chosen.facts if chosen else {}, stats, self._look, self._words))

    async def act_token(self, said: Said) -> None:
        """A token was clicked."""
        if self._look is not None and str(said.get("token", "")).isdecimal():
            token = int(said["token"])
            if self._look.start <= token < self._look.end:
                self._look.token = token if token != self._look.token else None
                await self._token_changed()

    async def act_step(self, said: Said) -> None:
        """The token before, or after."""
        if self._look is not None and said.get("by") in ("-1", "1"):
            self._look.step(int(said["by"]))
            await self._token_changed()

    async def _token_changed(self) -> None:
        look = self._look
        assert look is not None
        if look.token is not None:  # the arithmetic of a long text takes a while, and is not for the event loop
            await asyncio.to_thread(look.prepare)
        if self._look is look:
            self._show_inside()
            self._page.script(f"studio.mark({json.dumps(look.token)})")

    async def act_layer(self, said: Said) -> None:
        """Whose attention to show: a layer's, or the mean of all."""
        if self._look is not None:
            self._look.layer = _chosen(said, self._look.seen.layers)
            await self._attention_changed()

    async def act_head(self, said: Said) -> None:
        """Likewise, a head's."""
        if self._look is not None:
            self._look.head = _chosen(said, self._look.seen.heads)
            await self._attention_changed()

    async def _attention_changed(self) -> None:
        look = self._look
        if look is not None and look.token is not None:
            self._part("attention", inside.attention(look, self._words))

    # ---- the buttons at the top and under answers ----

    def act_settings(self, _: Said) -> None:
        self.open("settings")

    async def act_inside(self, _: Said) -> None:
        """The toggle at the top: the last answer that is written."""
        answers = [message for view in self._page.views.values() if _is_answer(message := view.message)]
        await self.toggle_inside(answers[-1] if answers else None)

    async def act_look(self, said: Said) -> None:
        """The eye under an answer."""
        message = self._page.message(said.get("id"))
        if message is not None and _is_answer(message):
            await self.toggle_inside(message)


def _chosen(said: dict[str, Any], count: int) -> int | None:
    value = str(said.get("value", ""))
    return int(value) if value.isdecimal() and int(value) < count else None


def _is_answer(message: Message) -> bool:
    """Whether there is something to look into."""
    return message.role == "assistant" and message.state != "writing" and not message.empty
