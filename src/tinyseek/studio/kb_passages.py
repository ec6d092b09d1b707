"""What was read of a document, passage by passage, beside its original: to be looked at, and put right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyseek.errors import UserError
from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.documents.blocks import Place
from tinyseek.knowledge.index.base import StoredChunk
from tinyseek.studio import kb_marks, kb_text
from tinyseek.studio.live import Said, markup
from tinyseek.studio.pieces import button, edit_box, icon, pill

if TYPE_CHECKING:
    from tinyseek.studio.kb_page import KbPage
    from tinyseek.studio.kb_viewer import Viewer

_AROUND = 30  # passages before and after, at first
MORE = 60  # passages, or blocks, with each click


class Passages:
    """The pane at the right of the viewer."""

    def __init__(self, page: KbPage, viewer: Viewer) -> None:
        """Build it, empty; needs NiceGUI's slot."""
        self._page, self._viewer, self._words = page, viewer, page.words
        self.chunks: list[StoredChunk] = []
        self.here: int | None = None  # the passage that is looked at
        self._editing: int | None = None
        self._shown = (0, 0)
        self._pane = markup("", "passages")

    def open(self, chunks: list[StoredChunk], here: int | None, page: int) -> None:
        """Another document's passages.

        Args:
            here: the one that is meant; else the first of the page is looked at.
        """
        self.chunks, self.here, self._editing = chunks, here, None
        self._shown = self._near(page)

    def close(self) -> None:
        """Nothing is shown."""
        self.chunks, self._pane.content = [], ""

    def look_at(self, stored: StoredChunk, page: int) -> None:
        """A passage was clicked."""
        self.here = stored.id
        if not self._shown[0] <= stored.number < self._shown[1]:
            self._shown = self._near(page)

    def stored(self, said: Said) -> StoredChunk | None:
        """The passage that a click means."""
        wanted = str(said.get("id", ""))
        return next((stored for stored in self.chunks if str(stored.id) == wanted), None)

    def on_page(self, number: int) -> int | None:
        """The first passage of a page."""
        return next((stored.id for stored in self.chunks if _stands_on(stored, number)), None)

    def _near(self, page: int) -> tuple[int, int]:
        at = next((n for n, stored in enumerate(self.chunks) if stored.id == self.here), None)
        if at is None:
            at = next((n for n, stored in enumerate(self.chunks) if _stands_on(stored, page)), 0)
        return max(0, at - _AROUND), min(len(self.chunks), at + _AROUND + 1)

    # ---- drawing ----

    def show(self) -> None:
        """Draw them, if they are to be seen."""
        if not self._viewer.shows_passages:
            self._pane.content = ""
            return
        words = self._words
        first, last = self._shown
        parts: list[str] = [
            el("p", words("What was read, as it is found and quoted. Put right what was read wrong."), class_="why")
        ]
        if first:
            parts.append(more("earlier-chunks", words("Show what stands before"), first))
        parts += [self._passage(stored) for stored in self.chunks[first:last]]
        if last < len(self.chunks):
            parts.append(more("later-chunks", words("Show what follows"), len(self.chunks) - last))
        if not self.chunks:
            parts.append(el("p", words("No text was found in it."), class_="none"))
        self._pane.content = join(*(Html(part) for part in parts))

    def _passage(self, stored: StoredChunk) -> Html:
        chunk, words = stored.chunk, self._words
        place = kb_text.where(chunk.places, self._viewer.kind, words)
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
            button("correct", words("Put the text right"), icon("pen"), data_id=stored.id)
            if self._page.writable
            else "",
            class_="line",
        )
        return el(
            "section",
            head,
            self._editor(stored) if self._editing == stored.id else kb_text.passage(chunk.text),
            class_="passage here" if stored.id == self.here else "passage",
            data_chunk=stored.id,
        )

    def _editor(self, stored: StoredChunk) -> Html:
        words, chunk = self._words, stored.chunk
        changed = chunk.corrected and chunk.original
        restore = pill("restore", words("As in the file"), "pill plain", data_id=stored.id) if changed else ""
        return edit_box(
            chunk.text,
            words("Text of the passage"),
            words("Save"),
            words,
            before=restore,
            class_="edit-text chunk-text",
            longest=100_000,
            data_id=stored.id,
        )

    # ---- what is clicked ----

    def act_earlier_chunks(self, _: Said) -> None:
        self._shown = (max(0, self._shown[0] - MORE), self._shown[1])
        self.show()

    def act_later_chunks(self, _: Said) -> None:
        self._shown = (self._shown[0], min(len(self.chunks), self._shown[1] + MORE))
        self.show()

    def act_correct(self, said: Said) -> None:
        if (stored := self.stored(said)) is not None:
            self._editing = stored.id
            self.show()
            self._page.script("studio.edit()")

    def act_cancel_edit(self, _: Said) -> None:
        self._editing = None
        self.show()

    async def act_save_edit(self, said: Said) -> None:
        await self._correct(said, str(said.get("text", "")))

    async def act_restore(self, said: Said) -> None:
        if (stored := self.stored(said)) is not None:
            await self._correct(said, stored.chunk.original)

    async def _correct(self, said: Said, text: str) -> None:
        stored = self.stored(said)
        if stored is None:
            return
        if text.strip() and text != stored.chunk.text:
            base = await self._page.base()
            changed = await asyncio.to_thread(base.correct, stored.id, text)
            self.chunks = [changed if known.id == changed.id else known for known in self.chunks]
            self._page.say(self._words("Saved: it is found by its new words now."))
            self._page.told()
        elif not text.strip():
            raise UserError(self._words("A passage cannot be empty."))
        self._editing = None
        self.show()


def holding(chunks: Sequence[StoredChunk], places: Sequence[Place], quote: str) -> int | None:
    """The passage that a quote was taken from."""
    wanted = "".join(quote.split())
    found = [stored for stored in chunks if wanted in "".join(stored.chunk.text.split())]
    near = [s for s in found if any(kb_marks.touches(a, b) for a in s.chunk.places for b in places)]
    found = near or found
    return found[0].id if found else None


def more(act: str, label: str, count: int) -> Html:
    """A button that shows more of a long list, and says how much there is."""
    return el("button", label, el("small", f"{count:,}"), type="button", class_="pill plain more", data_act=act)


def _stands_on(stored: StoredChunk, number: int) -> bool:
    return any(place.page == number for place in stored.chunk.places)
