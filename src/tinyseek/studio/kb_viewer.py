"""The viewer beside the answers: a document with a passage marked, and beside it what was read of it (`kb_passages`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote as quoted

from nicegui import ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.documents.blocks import Block, Box, Place
from tinyseek.knowledge.index.base import StoredDocument
from tinyseek.studio import kb_marks, kb_text
from tinyseek.studio.kb_desk import is_changed, source_of
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.kb_passages import MORE, Passages, holding, more
from tinyseek.studio.kb_sheet import sheet
from tinyseek.studio.live import Said, markup
from tinyseek.studio.pieces import button, icon, segments

if TYPE_CHECKING:
    from tinyseek.studio.kb_page import KbPage

Pane = Literal["original", "passages"]
_SHOWN = ("png", "jpg", "jpeg", "webp", "gif")  # pictures that browsers show


class Viewer:
    """What stands at the right of the page, if anything."""

    def __init__(self, page: KbPage) -> None:
        self._page, self._words = page, page.words
        self.document: StoredDocument | None = None
        self._number = 1  # of the page that is shown
        self._places: tuple[Place, ...] = ()
        self._quote, self._is_cited = "", False  # a whole passage is marked by its paragraphs, and not shown above them
        self._pane: Pane = "original"
        self._wide = False
        self._zoom = 1
        self._blocks: Sequence[Block] = ()
        self._spans: kb_marks.Spans = {}
        self._blocks_shown = (0, 0)
        self._lines: dict[int, tuple[Box, ...]] = {}  # page -> the quote's own lines on it
        self._notice = ""
        self._asked = 0  # counts what was asked for, so that a late answer to an older question is dropped
        self.element = ui.element("aside").classes("panel viewer").props(f'aria-label="{self._words("Document")}"')
        with self.element:
            self._head = markup("", "head")
            with ui.element("div").classes("panes"):
                self._original = markup("", "original")
                self.passages = Passages(page, self)
        self.element.set_visibility(False)

    # ---- open and shut ----

    async def open(
        self,
        number: int,
        places: Sequence[Place] = (),
        quote: str = "",
        chunk: int | None = None,
        page: int | None = None,
    ) -> None:
        """Show a document.

        Args:
            places: what is marked, with `quote`, its words.
            chunk: the passage that is meant, if it is one.
            page: else where to open it.
        Raises:
            UserError: there is no such document any more.
        """
        self._asked += 1
        asked = self._asked
        base = await self._page.base()
        document = await asyncio.to_thread(base.document, number)
        chunks = await asyncio.to_thread(base.chunks_of, number)
        if asked != self._asked:
            return
        if chunk is not None and not places:
            found = next((stored for stored in chunks if stored.id == chunk), None)
            if found is not None:
                places, quote = found.chunk.places, found.chunk.original or found.chunk.text
        self._is_cited = chunk is None and bool(quote)
        self.document, self._pane = document, "original"
        self._places, self._quote = tuple(places), quote
        self._number = next((place.page for place in places if place.page), page or 1)
        if chunk is None and quote:
            chunk = holding(chunks, places, quote)
        self.passages.open(chunks, chunk, self._number)
        self._blocks, self._spans, self._blocks_shown, self._notice, self._lines = (), {}, (0, 0), "", {}
        await self._read()
        await self._find()
        if asked == self._asked:
            self.element.set_visibility(True)
            self._page.viewer_changed()
            self.show()
            self._script("kb.opened()")

    def close(self) -> None:
        """Away with it."""
        self._asked += 1
        self.document, self._wide = None, False
        self._blocks = ()
        for part in (self._head, self._original):
            part.content = ""
        self.passages.close()
        self.element.set_visibility(False)
        self._page.viewer_changed()
        self._script("kb.closed()")

    @property
    def is_open(self) -> bool:
        return self.document is not None

    @property
    def is_wide(self) -> bool:
        return self._wide

    @property
    def kind(self) -> str:
        """Of the document."""
        return self.document.kind if self.document else ""

    @property
    def shows_passages(self) -> bool:
        return self._wide or self._pane == "passages"

    async def again(self) -> None:
        """The document may have been read anew, or be gone."""
        if self.document is None:
            return
        try:
            await self.open(self.document.id, page=self._number)
        except UserError:
            self.close()

    async def _read(self) -> None:
        """What the original pane needs, if it is no picture."""
        document = self.document
        assert document is not None
        words = self._words
        try:
            source_of(document)
            gone = False
        except UserError:
            gone = True
        if gone:
            self._notice = words(
                "The file is no longer at {place}. This is what was read of it.", place=document.source
            )
        elif is_changed(document):
            self._notice = words("The file has changed since it was read; marks may stand in the wrong place.")
        if not gone and (document.kind == "pdf" or self._is_picture):
            return
        if not gone:
            try:
                read = await asyncio.to_thread(self._page.desk.blocks, document)
                self._blocks = read.blocks
            except UserError as error:
                self._notice = str(error)
        if not self._blocks:
            self._blocks = [
                Block("paragraph", stored.chunk.text[stored.chunk.overlap :], path=stored.chunk.path)
                for stored in self.passages.chunks
            ]
        self._spans = await asyncio.to_thread(kb_marks.find, self._blocks, self._quote, self._places)
        self._blocks_shown = kb_text.window(self._blocks, self._spans)

    async def _find(self) -> None:
        """The lines of the quote on this page of a PDF; where they are not found, the paragraph is marked."""
        document, number = self.document, self._number
        boxes = [box for place in self._places if place.page == number for box in place.boxes]
        if document is None or document.kind != "pdf" or self._blocks or not self._is_cited or not boxes:
            return
        if number not in self._lines:
            wanted = kb_marks.words_of(self._quote)
            with contextlib.suppress(UserError):
                file = source_of(document)
                found = await asyncio.to_thread(self._page.desk.shelf.find_text, file, number, wanted, boxes)
                if document is self.document:
                    self._lines[number] = found

    @property
    def _is_picture(self) -> bool:
        document = self.document
        return document is not None and document.kind == "image" and document.name.lower().endswith(_SHOWN)

    # ---- drawing ----

    def show(self) -> None:
        """All of it, as it is now."""
        if self.document is None:
            return
        self.element.classes(
            add=f"at-{self._pane}", remove="at-passages" if self._pane == "original" else "at-original"
        )
        self._show_head()
        self._show_original()
        self.passages.show()

    def _show_head(self) -> None:
        document, words = self.document, self._words
        assert document is not None
        count = el("small", f"{len(self.passages.chunks):,}")
        panes = {"original": words("Document"), "passages": join(words("Passages"), count)}
        file = f"/kb/files/{quoted(self._page.collection, safe='')}/{document.id}"
        self._head.content = join(
            el(
                "div",
                kind_mark(document.kind),
                el("h2", document.name, tabindex="-1", title=document.source),
                el(
                    "a",
                    icon("save"),
                    class_="quiet",
                    href=file,
                    download="",
                    title=words("Save the file"),
                    aria_label=words("Save the file"),
                ),
                button(
                    "widen",
                    words("Side by side"),
                    icon("wide"),
                    class_="quiet on widen" if self._wide else "quiet widen",
                ),
                button("close-panel", words("Close"), icon("close")),
                class_="title",
            ),
            el(
                "div",
                segments("pane", panes, self._pane, class_="segments tabs", tabs=True),
                self._turning(),
                class_="tools",
            ),
        )

    def _turning(self) -> Html:
        document, words = self.document, self._words
        assert document is not None
        if not self._has_pages:
            return Html("")
        last = document.pages or 1
        field = el(
            "input",
            class_="page-text",
            value=str(self._number),
            inputmode="numeric",
            aria_label=words("Page"),
            maxlength=6,
        )
        return el(
            "div",
            button("step", words("Page before"), icon("left"), data_by="-1", disabled=None if self._number > 1 else ""),
            el("label", field, f" / {last:,}"),
            button(
                "step", words("Next page"), icon("right"), data_by="1", disabled=None if self._number < last else ""
            ),
            button("zoom", words("Smaller"), icon("minus"), data_by="-1", disabled=None if self._zoom > 1 else ""),
            button("zoom", words("Larger"), icon("plus"), data_by="1", disabled=None if self._zoom < 3 else ""),
            class_="turning",
        )

    @property
    def _has_pages(self) -> bool:
        return self.document is not None and not self._blocks and (self.document.kind == "pdf" or self._is_picture)

    def _show_original(self) -> None:
        words = self._words
        document = self.document
        assert document is not None
        parts: list[str] = []
        if self._notice:
            again = el(
                "button", words("Read again"), type="button", class_="quiet", data_act="again", data_id=document.id
            )
            parts.append(el("div", icon("alert"), el("span", self._notice), again, class_="notice", role="status"))
        if self._is_cited:
            place = kb_text.where(self._places, document.kind, words)
            parts.append(
                el(
                    "blockquote",
                    el("small", place) if place else "",
                    kb_text.passage(self._quote if len(self._quote) < 1200 else self._quote[:1200] + " …"),
                    class_="cited",
                )
            )
        parts.append(self._picture() if self._has_pages else self._text())
        self._original.content = join(*(Html(part) for part in parts))

    def _picture(self) -> Html:
        assert self.document is not None
        boxes = [box for place in self._places if place.page == self._number for box in place.boxes]
        marks = self._lines.get(self._number) or boxes
        passages = self.passages
        outlined = passages.chunks if self.shows_passages else ()
        return sheet(
            self._page.collection, self.document, self._number, self._zoom, marks, outlined, passages.here, self._words
        )

    def _text(self) -> Html:
        document, words = self.document, self._words
        assert document is not None
        first, last = self._blocks_shown
        blocks = self._blocks
        if not blocks:
            return el("p", words("No text was found in it."), class_="none")
        before = more("earlier", words("Show what stands before"), first) if first else ""
        after = more("later", words("Show what follows"), len(blocks) - last) if last < len(blocks) else ""
        shown = kb_text.shown(blocks, self._spans, first, last, document.kind, words, self._places)
        return el("div", before, shown, after, class_=f"paper {document.kind}", tabindex="0")

    # ---- what is clicked ----

    def act_close_panel(self, _: Said) -> None:
        self.close()

    async def act_step(self, said: Said) -> None:
        """The page before, or after."""
        if said.get("by") in ("-1", "1"):
            await self._turn(self._number + int(said["by"]))

    async def act_page(self, said: Said) -> None:
        """A page's number was typed."""
        text = str(said.get("text", "")).strip()
        await self._turn(int(text) if text.isdecimal() and len(text) < 7 else self._number)

    async def _turn(self, number: int) -> None:
        if self.document is None or not self._has_pages:
            return
        self._number = min(max(number, 1), self.document.pages or 1)
        await self._find()
        self._show_head()
        self._show_original()
        self._script(f"kb.turned({json.dumps(self.passages.on_page(self._number))})")

    def act_zoom(self, said: Said) -> None:
        if self.document is not None and said.get("by") in ("-1", "1"):
            self._zoom = min(max(self._zoom + int(said["by"]), 1), 3)
            self._show_head()
            self._show_original()
            self._script("kb.marked()")

    def act_pane(self, said: Said) -> None:
        if self.document is not None and said.get("name") in ("original", "passages"):
            self._pane = said["name"]
            self.show()
            self._script("kb.marked()")

    def act_widen(self, _: Said) -> None:
        if self.document is not None:
            self._wide = not self._wide
            self._page.viewer_changed()
            self.show()
            self._script("kb.marked()")

    async def act_chunk(self, said: Said) -> None:
        """A passage was clicked, on the page or in the list: mark it in both."""
        stored = self.passages.stored(said)
        if stored is None:
            return
        self._places = stored.chunk.places
        self._quote, self._is_cited, self._lines = "", False, {}
        pages = [place.page for place in stored.chunk.places if place.page]
        if pages and self._has_pages:
            self._number = pages[0] if self._number not in pages else self._number
        if self._blocks:
            text = stored.chunk.original or stored.chunk.text
            self._spans = await asyncio.to_thread(kb_marks.find, self._blocks, text, self._places)
            self._blocks_shown = kb_text.window(self._blocks, self._spans)
        self.passages.look_at(stored, self._number)
        self.show()
        self._script("kb.marked()")

    def act_earlier(self, _: Said) -> None:
        self._blocks_shown = (max(0, self._blocks_shown[0] - MORE), self._blocks_shown[1])
        self._show_original()

    def act_later(self, _: Said) -> None:
        self._blocks_shown = (self._blocks_shown[0], min(len(self._blocks), self._blocks_shown[1] + MORE))
        self._show_original()

    def _script(self, code: str) -> None:
        self._page.script(code)
