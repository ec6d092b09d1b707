"""The tab of search: passages without an answer, with what words and meaning each gave them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from nicegui import ui

from tinyseek.studio import kb_hits
from tinyseek.studio.live import Said, int_of, markup

if TYPE_CHECKING:
    from tinyseek.knowledge.answer.options import How
    from tinyseek.studio.kb_page import KbPage

_LIMIT = 20


class SearchTab:
    """What was searched for, and what was found."""

    def __init__(self, page: KbPage) -> None:
        """Build it, empty; needs NiceGUI's slot."""
        self._page, self._words = page, page.words
        self._text, self._how = "", "hybrid"
        self._asked = 0
        with ui.element("div").classes("inner"):
            self._box = markup("", "search-box")
            self._hits = markup("", "found").props('role="region" aria-live="polite"')
        self.clear()

    def clear(self) -> None:
        """Another collection is shown."""
        self._asked += 1
        self._text = ""
        self._box.content = kb_hits.search_box("", self._how, self._words)
        self._hits.content = ""

    async def act_search(self, said: Said) -> None:
        self._text = str(said.get("text", "")).strip()
        await self._search()

    async def act_how(self, said: Said) -> None:
        if said.get("name") in ("hybrid", "lexical", "dense"):
            self._how = str(said["name"])
            self._text = str(said.get("text", self._text)).strip()
            self._box.content = kb_hits.search_box(self._text, self._how, self._words)
            await self._search()

    async def _search(self) -> None:
        self._asked += 1
        asked, text = self._asked, self._text
        if not text:
            self._hits.content = ""
            return
        base = await self._page.base()
        how: How = self._how  # type: ignore[assignment]  # one of them: see act_how
        began = time.perf_counter()
        found = await asyncio.to_thread(base.search, text, how, _LIMIT, self._page.thread.scope)
        if asked == self._asked:
            self._hits.content = kb_hits.hits(found, text, time.perf_counter() - began, self._words)

    async def act_hit(self, said: Said) -> None:
        """A passage was clicked."""
        base = await self._page.base()
        for stored in await asyncio.to_thread(base.index.chunks, [int_of(said.get("id"))]):
            await self._page.viewer.open(stored.document, chunk=stored.id)
