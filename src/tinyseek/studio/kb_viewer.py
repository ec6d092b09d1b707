"""The viewer beside the answers: a document with a passage marked, and beside it what was read of it, to be put right."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote as quoted

from nicegui import ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.documents.blocks import Block, Box, Place
from tinyseek.knowledge.index.base import StoredChunk, StoredDocument
from tinyseek.studio import kb_marks, kb_text
from tinyseek.studio.kb_desk import is_changed, source_of
from tinyseek.studio.kb_listing import kind_mark
from tinyseek.studio.pieces import button, icon

if TYPE_CHECKING:
    from tinyseek.studio.kb_page import KbPage

Pane = Literal["original", "passages"]
_AROUND = 30  # passages before and after, at first
_MORE = 60  # passages, or blocks, with each click
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
        self._chunks: list[StoredChunk] = []
        self._chunk: int | None = None  # the passage that is looked at
        self._editing: int | None = None
        self._blocks: Sequence[Block] = ()
        self._spans: kb_marks.Spans = {}
        self._blocks_shown = (0, 0)
        self._chunks_shown = (0, 0)
        self._lines: dict[int, tuple[Box, ...]] = {}  # page -> the quote's own lines on it
        self._notice = ""
        self._asked = 0  # counts what was asked for, so that a late answer to an older question is dropped
        self.element = ui.element("aside").classes("panel viewer").props(f'aria-label="{self._words("Document")}"')
        with self.element:
            self._head = _html("", "head")
            with ui.element("div").classes("panes"):
                self._original = _html("", "original")
                self._passages = _html("", "passages")
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
        self.document, self._chunks, self._pane = document, chunks, "original"
        self._places, self._quote, self._chunk, self._editing = tuple(places), quote, chunk, None
        self._number = next((place.page for place in places if place.page), page or 1)
        if chunk is None and quote:
            self._chunk = _holding(chunks, places, quote)
        self._chunks_shown = self._near()
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
        self._blocks, self._chunks = (), []
        for part in (self._head, self._original, self._passages):
            part.content = ""
        self.element.set_visibility(False)
        self._page.viewer_changed()
        self._script("kb.closed()")

    @property
    def is_open(self) -> bool:
        return self.document is not None

    @property
    def is_wide(self) -> bool:
        return self._wide

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
                for stored in self._chunks
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
        self._show_passages()

    def _show_head(self) -> None:
        document, words = self.document, self._words
        assert document is not None
        names: dict[Pane, str] = {"original": words("Document"), "passages": words("Passages")}
        tabs = [
            el(
                "button",
                label,
                el("small", f"{len(self._chunks):,}") if name == "passages" else "",
                type="button",
                role="tab",
                class_="on" if name == self._pane else None,
                aria_selected="true" if name == self._pane else "false",
                data_act="pane",
                data_name=name,
            )
            for name, label in names.items()
        ]
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
            el("div", el("div", tabs, class_="segments tabs", role="tablist"), self._turning(), class_="tools"),
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
        document, words = self.document, self._words
        assert document is not None
        width, height = self._size()
        collection = quoted(self._page.collection, safe="")
        if document.kind == "pdf":
            address = page_address(self._page.collection, document, self._number, 2 if self._zoom == 1 else 3)
        else:
            address = f"/kb/pictures/{collection}/{document.id}?v={document.sha256[:16]}"
        label = words("{name}, page {number}", name=document.name, number=self._number)
        boxes = [box for place in self._places if place.page == self._number for box in place.boxes]
        boxes = list(self._lines.get(self._number) or boxes)
        marks = el("div", [el("i", class_="mark", style=_style(box, width, height)) for box in boxes], class_="marks")
        outlines: list[Html] = []
        if self._pane == "passages" or self._wide:
            for stored in self._chunks:
                own = [b for place in stored.chunk.places if place.page == self._number for b in place.boxes]
                outlines += [self._outline(stored, box, width, height, first=n == 0) for n, box in enumerate(own)]
        sheet = el(
            "div",
            el("img", src=address, alt=label, draggable="false"),
            outlines,
            marks,
            class_="sheet",
            style=f"aspect-ratio:{width:g}/{height:g};width:{100 * (1 + 0.6 * (self._zoom - 1)):.0f}%",
        )
        return el("div", sheet, class_="desk", tabindex="0", role="group", aria_label=label)

    def _outline(self, stored: StoredChunk, box: Box, width: float, height: float, first: bool) -> Html:
        label = self._words("Passage {number}", number=stored.number + 1)
        return el(
            "button",
            el("span", str(stored.number + 1)) if first else "",
            type="button",
            class_="box here" if stored.id == self._chunk else "box",
            data_act="chunk",
            data_id=stored.id,
            style=_style(box, width, height),
            title=label,
            aria_label=label,
            tabindex=None if first else "-1",
        )

    def _size(self) -> tuple[float, float]:
        assert self.document is not None
        details = self.document.details
        sizes = details.get("page_sizes") or details.get("sizes") or []
        try:
            width, height = sizes[self._number - 1][:2]
            width, height = float(width), float(height)
        except (IndexError, TypeError, ValueError):
            width, height = 0.0, 0.0
        return (width, height) if width > 0 and height > 0 else (595.0, 842.0)

    def _text(self) -> Html:
        document, words = self.document, self._words
        assert document is not None
        first, last = self._blocks_shown
        blocks = self._blocks
        if not blocks:
            return el("p", words("No text was found in it."), class_="none")
        before = _more("earlier", words("Show what stands before"), first) if first else ""
        after = _more("later", words("Show what follows"), len(blocks) - last) if last < len(blocks) else ""
        shown = kb_text.shown(blocks, self._spans, first, last, document.kind, words, self._places)
        return el("div", before, shown, after, class_=f"paper {document.kind}", tabindex="0")

    def _show_passages(self) -> None:
        if not (self._pane == "passages" or self._wide):
            self._passages.content = ""
            return
        words = self._words
        first, last = self._chunks_shown
        chunks = self._chunks
        parts: list[str] = [
            el("p", words("What was read, as it is found and quoted. Put right what was read wrong."), class_="why")
        ]
        if first:
            parts.append(_more("earlier-chunks", words("Show what stands before"), first))
        parts += [self._passage(stored) for stored in chunks[first:last]]
        if last < len(chunks):
            parts.append(_more("later-chunks", words("Show what follows"), len(chunks) - last))
        if not chunks:
            parts.append(el("p", words("No text was found in it."), class_="none"))
        self._passages.content = join(*(Html(part) for part in parts))

    def _passage(self, stored: StoredChunk) -> Html:
        assert self.document is not None
        chunk, words = stored.chunk, self._words
        place = kb_text.where(chunk.places, self.document.kind, words)
        head = el(
            "div",
            el(
                "button",
                el("b", str(stored.number + 1)),
                el("span", " › ".join(chunk.path), class_="path-of"),
                el("span", place, class_="place"),
                type="button",
                class_="head",
                data_act="chunk",
                data_id=stored.id,
                aria_label=words("Passage {number}", number=stored.number + 1) + (f", {place}" if place else ""),
            ),
            el("span", words("put right"), class_="badge") if chunk.corrected else "",
            button("correct", words("Put the text right"), icon("pen"), data_id=stored.id),
            class_="line",
        )
        if self._editing == stored.id:
            body: str = self._editor(stored)
        else:
            body = kb_text.passage(chunk.text)
        return el(
            "section",
            head,
            body,
            class_="passage here" if stored.id == self._chunk else "passage",
            data_chunk=stored.id,
        )

    def _editor(self, stored: StoredChunk) -> Html:
        words, chunk = self._words, stored.chunk
        restore = (
            el(
                "button",
                words("As in the file"),
                type="button",
                class_="pill plain",
                data_act="restore",
                data_id=stored.id,
            )
            if chunk.corrected and chunk.original
            else ""
        )
        return el(
            "div",
            el(
                "textarea",
                "\n",
                chunk.text,
                class_="edit-text chunk-text",
                aria_label=words("Text of the passage"),
                maxlength=100_000,
            ),
            el(
                "div",
                restore,
                el(
                    "button",
                    words("Cancel"),
                    type="button",
                    class_="pill plain",
                    data_act="cancel-edit",
                    data_id=stored.id,
                ),
                el("button", words("Save"), type="button", class_="pill", data_act="save-edit", data_id=stored.id),
                class_="actions",
            ),
            class_="edit",
        )

    # ---- what is clicked ----

    def act_close_panel(self, _: dict[str, Any]) -> None:
        self.close()

    async def act_step(self, said: dict[str, Any]) -> None:
        """The page before, or after."""
        if said.get("by") in ("-1", "1"):
            await self._turn(self._number + int(said["by"]))

    async def act_page(self, said: dict[str, Any]) -> None:
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
        there = next((stored.id for stored in self._chunks if _on_page(stored, self._number)), None)
        self._script(f"kb.turned({json.dumps(there)})")

    def act_zoom(self, said: dict[str, Any]) -> None:
        if self.document is not None and said.get("by") in ("-1", "1"):
            self._zoom = min(max(self._zoom + int(said["by"]), 1), 3)
            self._show_head()
            self._show_original()
            self._script("kb.marked()")

    def act_pane(self, said: dict[str, Any]) -> None:
        if self.document is not None and said.get("name") in ("original", "passages"):
            self._pane = said["name"]
            self.show()
            self._script("kb.marked()")

    def act_widen(self, _: dict[str, Any]) -> None:
        if self.document is not None:
            self._wide = not self._wide
            self._page.viewer_changed()
            self.show()
            self._script("kb.marked()")

    async def act_chunk(self, said: dict[str, Any]) -> None:
        """A passage was clicked, on the page or in the list: mark it in both."""
        stored = self._stored(said)
        if stored is None:
            return
        self._chunk, self._places = stored.id, stored.chunk.places
        self._quote, self._is_cited, self._lines = "", False, {}
        pages = [place.page for place in stored.chunk.places if place.page]
        if pages and self._has_pages:
            self._number = pages[0] if self._number not in pages else self._number
        if self._blocks:
            text = stored.chunk.original or stored.chunk.text
            self._spans = await asyncio.to_thread(kb_marks.find, self._blocks, text, self._places)
            self._blocks_shown = kb_text.window(self._blocks, self._spans)
        first, last = self._chunks_shown
        if not first <= stored.number < last:
            self._chunks_shown = self._near()
        self.show()
        self._script("kb.marked()")

    def act_earlier(self, _: dict[str, Any]) -> None:
        self._blocks_shown = (max(0, self._blocks_shown[0] - _MORE), self._blocks_shown[1])
        self._show_original()

    def act_later(self, _: dict[str, Any]) -> None:
        self._blocks_shown = (self._blocks_shown[0], min(len(self._blocks), self._blocks_shown[1] + _MORE))
        self._show_original()

    def act_earlier_chunks(self, _: dict[str, Any]) -> None:
        self._chunks_shown = (max(0, self._chunks_shown[0] - _MORE), self._chunks_shown[1])
        self._show_passages()

    def act_later_chunks(self, _: dict[str, Any]) -> None:
        self._chunks_shown = (self._chunks_shown[0], min(len(self._chunks), self._chunks_shown[1] + _MORE))
        self._show_passages()

    # ---- putting a passage right ----

    def act_correct(self, said: dict[str, Any]) -> None:
        if (stored := self._stored(said)) is not None:
            self._editing = stored.id
            self._show_passages()
            self._script("studio.edit()")

    def act_cancel_edit(self, _: dict[str, Any]) -> None:
        self._editing = None
        self._show_passages()

    async def act_save_edit(self, said: dict[str, Any]) -> None:
        await self._correct(said, str(said.get("text", "")))

    async def act_restore(self, said: dict[str, Any]) -> None:
        if (stored := self._stored(said)) is not None:
            await self._correct(said, stored.chunk.original)

    async def _correct(self, said: dict[str, Any], text: str) -> None:
        stored = self._stored(said)
        if stored is None:
            return
        if text.strip() and text != stored.chunk.text:
            base = await self._page.base()
            changed = await asyncio.to_thread(base.correct, stored.id, text)
            self._chunks = [changed if known.id == changed.id else known for known in self._chunks]
            self._page.say(self._words("Saved: it is found by its new words now."))
            self._page.told()
        elif not text.strip():
            raise UserError(self._words("A passage cannot be empty."))
        self._editing = None
        self._show_passages()

    def _stored(self, said: dict[str, Any]) -> StoredChunk | None:
        wanted = str(said.get("id", ""))
        return next((stored for stored in self._chunks if str(stored.id) == wanted), None)

    def _near(self) -> tuple[int, int]:
        at = next((n for n, stored in enumerate(self._chunks) if stored.id == self._chunk), None)
        if at is None:
            at = next((n for n, stored in enumerate(self._chunks) if _on_page(stored, self._number)), 0)
        return max(0, at - _AROUND), min(len(self._chunks), at + _AROUND + 1)

    def _script(self, code: str) -> None:
        self._page.script(code)


def page_address(collection: str, document: StoredDocument, page: int, scale: int = 2) -> str:
    """Where the picture of a page is fetched; another one once the file is another."""
    return f"/kb/pages/{quoted(collection, safe='')}/{document.id}/{page}?scale={scale}&v={document.sha256[:16]}"


def _style(box: Box, width: float, height: float) -> str:
    left, top, right, bottom = box
    shares = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    return ";".join(
        f"{name}:{100 * share:.2f}%" for name, share in zip(("left", "top", "width", "height"), shares, strict=True)
    )


def _holding(chunks: Sequence[StoredChunk], places: Sequence[Place], quote: str) -> int | None:
    """The passage that a quote was taken from."""
    wanted = "".join(quote.split())
    holding = [stored for stored in chunks if wanted in "".join(stored.chunk.text.split())]
    near = [s for s in holding if any(kb_marks.touches(a, b) for a in s.chunk.places for b in places)]
    found = near or holding
    return found[0].id if found else None


def _on_page(stored: StoredChunk, number: int) -> bool:
    return any(place.page == number for place in stored.chunk.places)


def _more(act: str, label: str, count: int) -> Html:
    return el("button", label, el("small", f"{count:,}"), type="button", class_="pill plain more", data_act=act)


def _html(content: str, classes: str = "", tag: str = "div") -> ui.html:
    """HTML of ours, in which all text is escaped already."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)
