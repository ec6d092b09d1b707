"""`tinyseek kb add|watch|list|show|open|tag|correct|remove|collections|drop`: what is in the knowledge base."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyseek.commands import say
from tinyseek.commands.kb import (
    add_filters,
    filters_of,
    home_of,
    is_terminal,
    parsed,
    parser_for,
    print_json,
    text_of,
)
from tinyseek.errors import UserError
from tinyseek.knowledge.plain import plain_chunk, plain_document, plain_progress

if TYPE_CHECKING:
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.index.base import StoredChunk, StoredDocument

_CHUNKS_SHOWN = 20


def add(arguments: list[str]) -> int:
    """Read files and folders into a collection. 1 if some could not be read."""
    parser = parser_for(
        "add",
        "Read files and folders into the collection: PDF, Word, Excel, PowerPoint, HTML, Markdown, text, CSV, e-mail, code,\n"
        "pictures. Files that were added before are read only if they have changed; those that are gone are forgotten.",
    )
    parser.add_argument(
        "words", nargs="+", metavar="PATH", help="files and folders; - reads their names from standard input"
    )
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="for each document; may be repeated")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each file")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.commands.kb_progress import Reading, sizes_of

    paths = _paths(chosen.words)
    reading = Reading(sizes_of(paths), each=chosen.options.verbose)
    with chosen.open(make=True) as base, reading:
        try:
            for one in base.add(paths, chosen.options.tag, reading.say):
                reading.tell(one)
                if chosen.options.json:
                    print_json(plain_progress(one))
        except KeyboardInterrupt:
            reading.say("stopped; what was read is kept, and the same command goes on from there")
            return 130
    if not chosen.options.json:
        print(reading.summary(chosen.options.collection))
    return 1 if reading.outcomes["failed"] else 0


def _paths(words: list[str]) -> list[Path]:
    if not words:
        raise UserError("name files or folders: tinyseek kb add my-docs/")
    if words == ["-"]:
        words = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    return [Path(word) for word in words]


def watch(arguments: list[str]) -> int:
    """Follow a folder until Ctrl-C."""
    parser = parser_for("watch", "Read a folder into the collection, and go on while files in it change, until Ctrl-C.")
    parser.add_argument("words", nargs="+", metavar="FOLDER")
    chosen, _ = parsed(parser, arguments)
    if len(chosen.words) != 1:
        raise UserError("one folder is followed at a time: tinyseek kb watch my-docs/")
    stop = threading.Event()
    with chosen.open(make=True) as base:
        say(f"following {chosen.words[0]} into the collection {base.collection}; Ctrl-C ends")
        try:
            for one in base.watch(chosen.words[0], stop, say):
                if chosen.options.json:
                    print_json(plain_progress(one))
                else:
                    passages = f", {one.chunks:,} passages" if one.outcome in ("added", "changed") else ""
                    why = f" ({one.why})" if one.why else ""
                    print(f"{time.strftime('%H:%M:%S')}  {one.outcome:<9} {one.file}{passages}{why}", flush=True)
        except KeyboardInterrupt:
            stop.set()
            say("stopped; what was read is kept")
    return 0


# ---- looking ---------------------------------------------------------------------------------------------------------------------


def list_documents(arguments: list[str]) -> int:
    """What is in a collection. 1 if nothing is."""
    parser = parser_for("list", "What is in the collection, by name.", knowledge=False)
    parser.add_argument("words", nargs="*", metavar="PATTERN", help="names (report*.pdf)")
    add_filters(parser)
    chosen, _ = parsed(parser, arguments)
    chosen.options.file += chosen.words
    with chosen.open() as base:
        documents = base.documents(filters_of(chosen.options))
        if chosen.options.json:
            for document in documents:
                print_json(with_source(plain_document(document), document))
            return 0 if documents else 1
        if not documents:
            print(
                f"nothing in the collection {base.collection}"
                + (" matches" if arguments else "; add documents: kb add")
            )
            return 1
        _table(documents)
        chunks = sum(document.chunks for document in documents)
        print(f"\n{len(documents):,} documents, {chunks:,} passages (collection {base.collection})")
    return 0


def _table(documents: list[StoredDocument]) -> None:
    from rich.table import Table
    from rich.text import Text

    from tinyseek import terminal
    from tinyseek.commands.kb_places import link, size

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("document", overflow="fold")
    made.add_column("kind")
    for name in ("pages", "passages", "size"):
        made.add_column(name, justify="right")
    made.add_column("added")
    tagged, noted = any(d.tags for d in documents), any(d.notes for d in documents)
    for name, there in (("tags", tagged), ("to note", noted)):
        if there:
            made.add_column(name, overflow="fold")
    for document in documents:
        address = link(document)
        row: list[Text | str] = [
            Text.assemble((document.name, f"link {address}" if address and is_terminal() else "")),
            document.kind,
            f"{document.pages:,}" if document.pages else "",
            f"{document.chunks:,}",
            size(document.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(document.added)),
        ]
        row += [", ".join(document.tags)] if tagged else []
        row += ["; ".join(document.notes)] if noted else []
        made.add_row(*row)
    terminal.console().print(made)


def with_source(plain: dict[str, Any], document: StoredDocument) -> dict[str, Any]:
    """What JSON says of a document, or of a passage of it, with its file on this computer."""
    (plain["document"] if isinstance(plain.get("document"), dict) else plain)["source"] = document.source
    return plain


def show(arguments: list[str]) -> int:
    """One document: what is known of it, and its passages."""
    parser = parser_for(
        "show", "One document: what is known of it, and how it was read, passage by passage.", knowledge=False
    )
    parser.add_argument("words", nargs="+", metavar="NAME")
    parser.add_argument("--pages", metavar="A-B", help="passages of these pages alone")
    parser.add_argument("--all", action="store_true", help=f"every passage, not the first {_CHUNKS_SHOWN} alone")
    chosen, _ = parsed(parser, arguments)
    with chosen.open() as base:
        document = one_document(base, " ".join(chosen.words))
        chunks = [stored for stored in base.chunks_of(document.id) if _on_pages(stored, chosen.options.pages)]
        if chosen.options.json:
            plain = {**plain_document(document), "chunks": [plain_chunk(stored) for stored in chunks]}
            print_json(with_source(plain, document))
            return 0
        _tell_document(document)
        shown = chunks if chosen.options.all or chosen.options.pages else chunks[:_CHUNKS_SHOWN]
        for stored in shown:
            _tell_chunk(stored)
        if len(shown) < len(chunks):
            print(
                f"\n... and {len(chunks) - len(shown):,} more passages: --all shows them, --pages 3-5 those of some pages"
            )
    return 0


def one_document(base: KnowledgeBase, name: str) -> StoredDocument:
    """The one document that a name, a part of it, a path or an id means.

    Raises:
        UserError: none, or several.
    """
    from tinyseek.knowledge.index.base import Filters
    from tinyseek.settings import suggestion

    exact = base.index.by_name(name) or base.index.by_source([str(Path(name).expanduser().absolute())])
    if not exact and name.isdecimal():
        exact = base.documents(Filters(documents=(int(name),)))
    if exact:
        return exact[0]
    everything = base.documents()
    near = [d for d in everything if name.casefold() in d.name.casefold()]
    if len(near) == 1:
        return near[0]
    if near:
        raise UserError(
            f"{name}: which of them? {', '.join(d.name for d in near[:8])}{' ...' if len(near) > 8 else ''}"
        )
    hint = suggestion(name, [d.name for d in everything]) if len(everything) <= 50 else "tinyseek kb list shows them"
    raise UserError(f"{name}: no document of the collection {base.collection} is called so; {hint}")


def _on_pages(stored: StoredChunk, pages: str | None) -> bool:
    if not pages:
        return True
    first, _, last = pages.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise UserError(f"--pages {pages}: give a page, or the first and the last: 3-7")
    return any(p.page is not None and int(first) <= p.page <= int(last or first) for p in stored.chunk.places)


def _tell_document(document: StoredDocument) -> None:
    from tinyseek.commands.kb_places import size
    from tinyseek.terminal import console

    out = console()
    out.print(document.name, style="bold")
    facts = {
        "title": document.title,
        "author": document.author,
        "date": document.date,
        "kind": document.kind + (f", {document.pages:,} pages" if document.pages else ""),
        "file": f"{document.source} ({size(document.size)})",
        "passages": f"{document.chunks:,}",
        "tags": ", ".join(document.tags),
        "id": str(document.id),
    }
    for name, value in facts.items():
        if value:
            out.print(f"  {name:<9} {value}", soft_wrap=True)
    for note in document.notes:
        out.print(f"  note      {note}", style="yellow", soft_wrap=True)


def _tell_chunk(stored: StoredChunk) -> None:
    from rich.text import Text

    from tinyseek.commands.kb_places import heading
    from tinyseek.knowledge.answer.prompt import places_text
    from tinyseek.terminal import console

    chunk = stored.chunk
    facts = [f"passage {stored.id}", places_text(chunk.places), heading(chunk), f"{chunk.tokens} tokens"]
    facts += ["corrected"] if chunk.corrected else []
    out = console()
    out.print()
    out.print(Text(" · ".join(filter(None, facts)), style="cyan"))
    out.print(chunk.text)


def open_page(arguments: list[str]) -> int:
    """A page of a PDF as a picture file, a passage marked on it."""
    parser = parser_for(
        "open", "Write a page of a PDF as a picture, a passage of it marked, and say where it is.", knowledge=False
    )
    parser.add_argument("words", nargs="+", metavar="NAME [PAGE]")
    parser.add_argument("--passage", type=int, metavar="ID", help="mark this passage; the page is its own then")
    parser.add_argument("--out", metavar="FILE.png", help="where to write; by default NAME-page-N.png here")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.knowledge.documents.read import Readers
    from tinyseek.knowledge.pages import page_picture

    words = list(chosen.words)
    page = int(words.pop()) if len(words) > 1 and words[-1].isdecimal() else None
    with chosen.open() as base:
        document = one_document(base, " ".join(words))
        places = []
        if chosen.options.passage is not None:
            found = base.index.chunks([chosen.options.passage])
            if not found or found[0].document != document.id:
                raise UserError(f"{document.name} has no passage {chosen.options.passage}; kb show lists them")
            places = list(found[0].chunk.places)
            page = page or next((place.page for place in places if place.page), None)
        page = page or 1
        with Readers(1, base.settings.limits) as readers:
            picture = page_picture(readers.render_page, document, page, places)
        out = Path(chosen.options.out or f"{Path(document.name).stem}-page-{page}.png")
        try:
            out.write_bytes(picture)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    print_json({"file": str(out), "page": page}) if chosen.options.json else print(out)
    return 0


# ---- changing --------------------------------------------------------------------------------------------------------------------


def tag(arguments: list[str]) -> int:
    """Give documents tags."""
    parser = parser_for(
        "tag",
        "Add tags to a document, or to those that a pattern names; -TAG takes one away (after --).",
        knowledge=False,
    )
    parser.add_argument("words", nargs="+", metavar="NAME TAG")
    chosen, _ = parsed(parser, arguments)
    if len(chosen.words) < 2:
        raise UserError("give a document and its tags: tinyseek kb tag report.pdf 2026 draft")
    from tinyseek.knowledge.index.base import Filters

    name, *tags = chosen.words
    away = {word[1:] for word in tags if word.startswith("-")}
    more = [word for word in tags if not word.startswith("-")]
    with chosen.open() as base:
        documents = base.documents(Filters(names=(name,))) or [one_document(base, name)]
        for document in documents:
            kept = [one for one in (*document.tags, *more) if one not in away]
            changed = base.set_tags(document.id, list(dict.fromkeys(kept)))
            if chosen.options.json:
                print_json(with_source(plain_document(changed), changed))
            else:
                print(f"{changed.name}: {', '.join(changed.tags) or 'no tags'}")
    return 0


def correct(arguments: list[str]) -> int:
    """Replace a passage's text."""
    parser = parser_for(
        "correct",
        "Replace the text of a passage that was read wrong; kb show and kb search --json tell its id. Without TEXT, or with -,\n"
        "standard input is read. The passage stays corrected when its file is read again.",
        knowledge=False,
    )
    parser.add_argument("passage", type=int, metavar="ID")
    parser.add_argument("words", nargs="*", metavar="TEXT")
    chosen, _ = parsed(parser, arguments)
    text = text_of(chosen.words or ["-"])
    with chosen.open() as base:
        stored = base.correct(chosen.options.passage, text)
        print_json(plain_chunk(stored)) if chosen.options.json else print(f"passage {stored.id} is corrected")
    return 0


def remove(arguments: list[str]) -> int:
    """Forget documents."""
    parser = parser_for(
        "remove", "Forget documents, by name or pattern. Files of yours stay where they are.", knowledge=False
    )
    parser.add_argument("words", nargs="+", metavar="NAME")
    chosen, _ = parsed(parser, arguments)
    with chosen.open() as base:
        for document in base.remove(chosen.words):
            print_json(with_source(plain_document(document), document)) if chosen.options.json else print(
                f"forgot {document.name}"
            )
    return 0


def collections(arguments: list[str]) -> int:
    """The collections that there are. 1 if there are none."""
    parser = parser_for("collections", "What collections there are.", knowledge=False)
    parser.add_argument("words", nargs="*", help="settings (index.where=...)", metavar="key=value")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.knowledge.base import KnowledgeBase
    from tinyseek.knowledge.base import collections as all_of
    from tinyseek.knowledge.options import knowledge_home
    from tinyseek.terminal import table

    home, settings = home_of(chosen.options), chosen.settings()
    rows: list[tuple[str, int, int, str]] = []
    for name in all_of(home or knowledge_home(), settings):
        with KnowledgeBase.open(home, name, settings) as base:
            rows.append((name, *base.index.count(), base.index.embedder() or ""))
    if chosen.options.json:
        for name, documents, chunks, embedder in rows:
            print_json({"name": name, "documents": documents, "passages": chunks, "embedder": embedder})
    elif rows:
        table(
            ("collection", "documents", "passages", "embedder"),
            [(n, f"{d:,}", f"{c:,}", e) for n, d, c, e in rows],
            (1, 2),
        )
    else:
        print("there is none yet; tinyseek kb add my-docs/ makes one")
    return 0 if rows else 1


def drop(arguments: list[str]) -> int:
    """Delete a collection."""
    parser = parser_for(
        "drop", "Delete a collection for good, with what was uploaded to it. Files of yours stay.", knowledge=False
    )
    parser.add_argument("words", nargs="+", metavar="COLLECTION")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    chosen, _ = parsed(parser, arguments)
    from tinyseek.knowledge.base import KnowledgeBase

    for name in chosen.words:
        if not chosen.options.yes and sys.stdin.isatty():
            said = input(f'delete the collection "{name}" for good? [y/N] ')
            if said.strip().lower() not in ("y", "yes"):
                print("kept")
                return 1
        elif not chosen.options.yes:
            raise UserError(f'to delete the collection "{name}" for good, say --yes')
        KnowledgeBase.delete_collection(name, home_of(chosen.options), chosen.settings())
        print_json({"dropped": name}) if chosen.options.json else print(f"deleted the collection {name}")
    return 0
