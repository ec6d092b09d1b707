"""What every open page can do, whatever it shows: answer clicks, say a line at the bottom, follow an answer, change its theme.

A page is HTML that the server writes; what is clicked or typed comes back as one kind of event, a dictionary with an `act`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from nicegui import background_tasks, ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import el, join
from tinyseek.studio.chats import Chats
from tinyseek.studio.frame import THEMES
from tinyseek.studio.shared import BusyError
from tinyseek.studio.words import Words

Said = dict[str, Any]  # an event of the page: what was done (`act`), to what
_LONGEST_REST = 0.5  # seconds between two pictures of a growing answer, at most


class Growing(Protocol):
    """An answer that is being written."""

    @property
    def done(self) -> bool: ...

    def watch(self) -> asyncio.Event: ...

    def leave(self, event: asyncio.Event) -> None: ...


class LivePage:
    """One open page. It keeps nothing that the store does not have, but for what is half typed."""

    def __init__(self, visitors: Chats, visitor: str, words: Words, theme: str, answers: int) -> None:
        """Needs NiceGUI's page context.

        Args:
            visitors: where what a visitor chose is kept.
            answers: that a visitor may have written at once.
        """
        self.visitors, self.visitor, self.words, self.theme = visitors, visitor, words, theme
        self.client = ui.context.client
        self._most_answers = answers
        self._snack_number = 0

    # ---- what the pages are ----

    def parts(self) -> tuple[object, ...]:
        """What is looked through for `act_...`, in order."""
        return (self,)

    @property
    def busy(self) -> bool:
        """An answer is being written here."""
        return False

    def show_foot(self) -> None:
        """Draw the foot of the list at the left anew."""

    # ---- what is clicked ----

    async def acted(self, event: Any) -> None:
        """Do what was clicked or typed; what a visitor can cause is told at the bottom."""
        said = event.args if isinstance(event.args, dict) else {}
        act = str(said.get("act", "")).replace("-", "_")
        handler: Callable[[Said], Awaitable[None] | None] | None = None
        for part in self.parts() if act.isidentifier() else ():
            handler = getattr(part, f"act_{act}", None)
            if handler is not None:
                break
        if handler is None:
            return
        words = self.words
        try:
            result = handler(said)
            if result is not None:
                await result
        except BusyError:
            busy = words("An answer is still being written here; wait for it or stop it.")
            full = words(
                "You have {count} answers being written already; wait for one to end.", count=self._most_answers
            )
            self.say(busy if self.busy else full)
            self._put_back(said)
        except UserError as error:
            self.say(str(error), seconds=8)
            self._put_back(said)

    def _put_back(self, said: Said) -> None:
        """What could not be sent is not lost."""
        if said.get("act") == "send":
            self.script(f"studio.put({json.dumps(said.get('text', ''))})")

    def act_theme(self, _: Said) -> None:
        order = list(THEMES)
        self.theme = order[(order.index(self.theme) + 1) % len(order)]
        self.visitors.remember(self.visitor, theme=self.theme)
        self.show_foot()
        self.script(f"studio.theme({json.dumps(self.theme)})")

    def act_language(self, _: Said) -> None:
        self.visitors.remember(self.visitor, language="zh" if self.words.language == "en" else "en")
        ui.navigate.reload()

    # ---- a line at the bottom ----

    def build_snack(self) -> None:
        """Where lines are said; needs NiceGUI's slot."""
        self.snack = markup("", "snack").props('role="status"')
        self.snack.set_visibility(False)

    def say(self, text: str, act: tuple[str, str] | None = None, seconds: float = 5) -> None:
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

    # ---- in the browser ----

    def script(self, code: str) -> None:
        """Run our own JavaScript in the page; every value in it must be JSON."""
        with contextlib.suppress(RuntimeError):
            self.client.run_javascript(code)

    def copy(self, text: str) -> None:
        """Put a text into the visitor's clipboard."""
        self.script(f"studio.copy({json.dumps(text)})")
        self.say(self.words("Copied"), seconds=1.5)


async def follow(growing: Growing, draw: Callable[[], None]) -> None:
    """Draw an answer as it grows: at once, then as often as drawing it stays cheap; and once more when it has ended."""
    event = growing.watch()
    try:
        while not growing.done:
            await event.wait()
            event.clear()
            began = time.perf_counter()
            draw()
            await asyncio.sleep(min(max(0.06, 8 * (time.perf_counter() - began)), _LONGEST_REST))
    finally:
        growing.leave(event)
    draw()


def markup(content: str, classes: str = "", tag: str = "div") -> ui.html:
    """HTML of ours, in which all text is escaped or sanitised already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def int_of(value: object) -> int:
    """A number out of an event; -1 where it is none."""
    try:
        return int(str(value))
    except ValueError:
        return -1
