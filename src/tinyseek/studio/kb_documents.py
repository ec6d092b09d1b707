"""The tab of documents: what is in a collection, what is being brought in, what could not be read and why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import ui

from tinyseek.errors import UserError
from tinyseek.evaluate.page import join
from tinyseek.knowledge.documents.kinds import KINDS, LANGUAGES
from tinyseek.knowledge.index.base import Filters, StoredDocument
from tinyseek.knowledge.tables.rooms import available
from tinyseek.studio import kb_listing, kb_tables
from tinyseek.studio.kb_intake import Intake
from tinyseek.studio.live import Said, int_of, markup

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.studio.kb_page import KbPage

_SUFFIXES = sorted({suffix for _, suffixes in KINDS.values() for suffix in suffixes} | set(LANGUAGES))
_QUESTIONS, _LOOKED_AT = 4, 12


class DocumentsTab:
    """Draws the list again whenever something changes; the boxes that are typed into stay."""

    def __init__(self, page: KbPage) -> None:
        """Build it, empty; needs NiceGUI's slot."""
        self._page, self._words = page, page.words
        self._found: list[StoredDocument] = []
        self._find = ""
        self._tagging: int | None = None
        self._most = kb_listing.MOST_ROWS
        self._added_to = ""
        self._headings: list[str] = []
        with ui.element("div").classes("inner"):
            self._add = markup("", "adding")
            self._folders = markup("")
            self._intake = markup("").props('role="status"')
            self._head = markup("", "documents-head")
            self._list = markup("", "documents-list")

    def forget(self) -> None:
        """Another collection is shown."""
        self._find, self._tagging, self._most = "", None, kb_listing.MOST_ROWS
        self._found, self._headings = [], []
        self._head.content = ""

    async def show(self) -> None:
        """All of it, as it is now."""
        page, words = self._page, self._words
        try:
            base = await page.base()
            self._found = await asyncio.to_thread(base.documents)
            if not self._headings:
                await asyncio.to_thread(self._look_at_headings, base)
            intake = page.desk.intake(page.key, page.collection)
        except UserError:
            self._found = []
            return
        if page.writable and self._added_to != page.collection:
            self._added_to = page.collection
            most = base.settings.limits.file_mb
            self._add.content = kb_listing.adding(page.collection, most, _SUFFIXES, page.here, words)
        folders = sorted({document.folder for document in self._found if document.folder}) if page.here else []
        self._folders.content = kb_listing.folders(folders, words)
        self._intake.content = kb_listing.intake(intake, words) if page.writable else ""
        self._show_list()

    def _show_list(self) -> None:
        words = self._words
        shown = self._shown()
        count = len(self._found)
        if not count:
            self._head.content = self._list.content = ""
            return
        if not self._head.content:  # a box that is typed into is not drawn anew
            self._head.content = kb_listing.documents_find(self._find, words)
        told = kb_listing.documents_told(count, len(shown), bool(self._find), words)
        table = kb_listing.documents(shown, self._tagging, self._most, self._page.writable, words)
        self._list.content = join(told, table)

    def _shown(self) -> list[StoredDocument]:
        wanted = self._find.casefold().split()
        return [
            document
            for document in self._found
            if all(
                word in f"{document.name}\n{document.title}\n{' '.join(document.tags)}".casefold() for word in wanted
            )
        ]

    @property
    def has_tables(self) -> bool:
        """Whether there are sheets to be asked as tables."""
        return available() and any(document.kind in kb_tables.KINDS for document in self._found)

    def questions(self) -> list[str]:
        """Questions to begin with, made of headings in the documents."""
        return [self._words("What does “{heading}” say?", heading=heading) for heading in self._headings]

    def _look_at_headings(self, base: KnowledgeBase) -> None:
        """A heading of each of the first documents."""
        found: dict[str, None] = {}
        for document in self._found[:_LOOKED_AT]:
            paths = [stored.chunk.path for stored in base.index.chunks_between(document.id, 0, 8)]
            headings = [path[-1] for path in paths if path and 3 <= len(path[-1]) <= 60 and path[-1] != document.title]
            found |= dict.fromkeys(headings[:1])
        self._headings = list(found)[:_QUESTIONS]

    # ---- what is clicked ----

    def act_find(self, said: Said) -> None:
        self._find, self._most = str(said.get("text", "")), kb_listing.MOST_ROWS
        self._show_list()

    def act_by_tag(self, said: Said) -> None:
        self._find = str(said.get("tag", ""))
        self._head.content = kb_listing.documents_find(self._find, self._words)
        self._show_list()

    def act_more_documents(self, _: Said) -> None:
        self._most += kb_listing.MOST_ROWS
        self._show_list()

    def act_scope(self, _: Said) -> None:
        """Ask those alone that are listed now."""
        shown = self._shown()
        if shown:
            said = shown[0].name if len(shown) == 1 else self._words("{count} documents", count=f"{len(shown):,}")
            self._page.thread.ask_only(Filters(documents=tuple(document.id for document in shown)), said)

    async def act_summarise(self, said: Said) -> None:
        """A summary of one document, or of those that are listed now together."""
        number = int_of(said.get("id"))
        shown = [document for document in self._shown() if number in (-1, document.id)]
        if shown:
            what = shown[0].name if len(shown) == 1 else self._words("{count} documents", count=f"{len(shown):,}")
            await self._page.thread.summarise([document.id for document in shown], what)

    async def act_view(self, said: Said) -> None:
        await self._page.viewer.open(int_of(said.get("id")))

    def act_tags(self, said: Said) -> None:
        self._tagging = int_of(said.get("id"))
        self._show_list()
        self._page.script("kb.name()")

    async def act_tagged(self, said: Said) -> None:
        self._tagging = None
        tags = [tag.strip() for tag in str(said.get("text", "")).replace("，", ",").split(",") if tag.strip()]
        try:
            base = await self._page.base()
            await asyncio.to_thread(base.set_tags, int_of(said.get("id")), tags)
        finally:
            await self.show()
        self._page.told()

    async def act_again(self, said: Said) -> None:
        """Read a document's file anew."""
        base = await self._page.base()
        document = await asyncio.to_thread(base.document, int_of(said.get("id")))
        self._writing().again(document.id, document.name)

    async def act_remove(self, said: Said) -> None:
        """Ask before a document is removed."""
        words = self._words
        base = await self._page.base()
        document = await asyncio.to_thread(base.document, int_of(said.get("id")))
        question = (
            words("Remove “{name}”? The file itself stays.", name=document.name)
            if document.folder or not Path(document.source).is_relative_to(base.folder.absolute())
            else words("Remove “{name}”? It was uploaded, so it is gone then.", name=document.name)
        )
        self._page.confirm(question, "really-remove", words("Remove"), data_id=document.id)

    async def act_really_remove(self, said: Said) -> None:
        self._page.act_no(said)
        base = await self._page.base()
        number = int_of(said.get("id"))
        await asyncio.to_thread(base.remove, [number])
        viewer = self._page.viewer
        if viewer.document is not None and viewer.document.id == number:
            viewer.close()
        self._page.desk.tell(self._page.key, self._page.collection, "documents")

    def act_add_path(self, said: Said) -> None:
        """A folder, or a file, of this machine: for who sits at it alone."""
        text = str(said.get("text", "")).strip().strip("\"'")
        if not text:
            return
        if not self._page.here:
            raise UserError(self._words("Folders are added where the server runs; drop the files here instead."))
        path = Path(text).expanduser()
        if not path.is_absolute():
            raise UserError(self._words("Give the whole path, from the root: /home/me/papers"))
        self._writing().add(path)
        self._page.script("document.querySelector('#kb-path').value = ''")

    def act_look_again(self, said: Said) -> None:
        known = {document.folder for document in self._found}
        if self._page.here and said.get("path") in known:
            self._writing().add(Path(str(said["path"])))

    def act_halt(self, _: Said) -> None:
        self._writing().stop()

    def act_forget(self, _: Said) -> None:
        self._writing().forget()

    def _writing(self) -> Intake:
        """What brings files in.

        Raises:
            UserError: nothing may be changed here.
        """
        page = self._page
        if not page.writable:
            raise UserError(self._words("This server only answers questions."))
        return page.desk.intake(page.key, page.collection)
