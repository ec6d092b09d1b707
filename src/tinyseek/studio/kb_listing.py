"""Documents as HTML: how they are added, what is being brought in, the list. Text is escaped where it enters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.index.base import StoredDocument
from tinyseek.studio.kb_intake import Intake, Line
from tinyseek.studio.pieces import button, icon, pill
from tinyseek.studio.words import Words

MOST_ROWS = 200  # documents that are listed at once


def adding(collection: str, most_mb: float, suffixes: Sequence[str], here: bool, words: Words) -> Html:
    """Where files are dropped or chosen, and on this machine folders named."""
    said = {
        "data_waiting": words("waiting"),
        "data_sending": words("sending"),
        "data_lost": words("the connection was lost; choose the file again"),
        "data_large": words("is larger than {size} MB; split it", size=f"{most_mb:,.0f}"),
        "data_left": words("{count} files of no known kind were left out"),
        "data_stop": words("Stop"),
    }
    drop = el(
        "div",
        icon("up"),
        el("b", words("Drop files or folders here")),
        el("span", words("or")),
        el("button", words("Choose files"), type="button", class_="pill", data_act="choose-files"),
        el("button", words("Choose a folder"), type="button", class_="pill plain", data_act="choose-folder"),
        el(
            "input", type="file", multiple="", hidden="", id="kb-files", aria_label=words("Choose files"), tabindex="-1"
        ),
        el(
            "input",
            type="file",
            multiple="",
            hidden="",
            webkitdirectory="",
            id="kb-folder",
            aria_label=words("Choose a folder"),
            tabindex="-1",
        ),
        class_="drop",
        id="kb-drop",
        data_to=f"/kb/upload/{quote(collection, safe='')}",
        data_most=str(int(most_mb * 1e6)),
        data_kinds=" ".join(suffixes),
        **said,
    )
    path = ""
    if here:
        field = el(
            "input",
            id="kb-path",
            class_="path-text",
            placeholder=words("/home/me/papers — a folder or a file of this computer"),
            aria_label=words("A folder or a file of this computer"),
            autocomplete="off",
            spellcheck="false",
            maxlength=4000,
        )
        path = el(
            "div",
            icon("folder"),
            field,
            el("button", words("Add"), type="button", class_="pill plain", data_act="add-path"),
            class_="path",
        )
    return join(drop, path, el("div", id="kb-sending", class_="lines", role="status"))


def folders(known: Sequence[str], words: Words) -> Html:
    """The folders of this machine that were added, each to be looked through again."""
    if not known:
        return Html("")
    rows = [
        el(
            "div",
            icon("folder"),
            el("span", folder, title=folder),
            button("look-again", words("Look for changes"), icon("again"), data_path=folder),
            class_="folder",
        )
        for folder in known[:50]
    ]
    return el("div", *rows, class_="folders")


def intake(now: Intake, words: Words) -> Html:
    """What is being brought in, and what could not be."""
    parts: list[str] = []
    waiting = now.waiting
    if now.now is not None:
        parts.append(_reading(now.now, now.said, words))
    if waiting:
        more = words("{count} more waiting", count=f"{len(waiting):,}")
        parts.append(
            el("div", el("span", more), el("button", words("Stop"), type="button", class_="quiet", data_act="halt"))
        )
    said = _tally(now.tally, words)
    if said and not now.busy:
        parts.append(
            el("div", icon("check"), el("span", said), button("forget", words("Close"), icon("close")), class_="good")
        )
    for line in now.failed[-100:][::-1]:
        parts.append(
            el("div", icon("alert"), el("b", line.name), el("span", line.why), class_="bad", data_file=line.name)
        )
    if now.failed:
        clear = el("button", words("Clear these lines"), type="button", class_="quiet", data_act="forget")
        parts.append(el("div", clear, class_="clear"))
    return el("div", *parts, class_="lines") if parts else Html("")


def _reading(line: Line, said: str, words: Words) -> Html:
    share = line.done / line.total if line.total else None
    about = said or (
        words("{done} of {total} files", done=f"{line.done:,}", total=f"{line.total:,}")
        if line.total > 1
        else words("reading")
    )
    bar = el(
        "span",
        el("i", style=f"width:{100 * share:.0f}%" if share is not None else None),
        class_="bar" if share is not None else "bar busy",
    )
    stop = el("button", words("Stop"), type="button", class_="quiet", data_act="halt") if line.total > 1 else ""
    return el("div", el("b", line.name), bar, el("span", about, class_="state"), stop, class_="now")


def _tally(counts: Mapping[str, int], words: Words) -> str:
    """`12 added, 3 unchanged`."""
    phrases = {
        "added": words("{count} added", count=f"{counts.get('added', 0):,}"),
        "changed": words("{count} changed", count=f"{counts.get('changed', 0):,}"),
        "moved": words("{count} moved", count=f"{counts.get('moved', 0):,}"),
        "removed": words("{count} removed", count=f"{counts.get('removed', 0):,}"),
        "unchanged": words("{count} known already", count=f"{counts.get('unchanged', 0):,}"),
    }
    return ", ".join(phrase for name, phrase in phrases.items() if counts.get(name))


def documents_find(find: str, words: Words) -> Html:
    """The box to narrow the list down."""
    field = el(
        "input",
        type="search",
        value=find,
        class_="find-documents",
        placeholder=words("Name, title or tag"),
        aria_label=words("Narrow the list down"),
        maxlength=200,
    )
    return el("div", icon("search"), field, class_="find")


def documents_told(count: int, shown: int, narrowed: bool, words: Words) -> Html:
    """How many there are."""
    told = words("{count} documents", count=f"{count:,}") if shown == count else f"{shown:,} / {count:,}"
    only = pill("scope", words("Ask only these"), "pill plain") if narrowed and shown else ""
    together = pill("summarise", words("Summarise them"), "pill plain") if shown > 1 else ""
    return el("div", el("span", told), only, together, class_="told")


def documents(found: Sequence[StoredDocument], tagging: int | None, most: int, writable: bool, words: Words) -> Html:
    """The list."""
    if not found:
        return el("p", words("Nothing found."), class_="none")
    head = [words(name) for name in ("Document", "Kind", "Pages", "Size", "Date", "Tags", "Passages")]
    rows = [_document(document, document.id == tagging, writable, words) for document in found[:most]]
    more = ""
    if len(found) > most:
        label = words("Show {count} more", count=f"{min(MOST_ROWS, len(found) - most):,}")
        more = el("button", label, type="button", class_="pill plain more", data_act="more-documents")
    cells = [el("th", name, scope="col") for name in head]
    hidden = el("th", el("span", words("Actions"), class_="unseen"), scope="col")
    table = el("table", el("thead", el("tr", cells, hidden)), el("tbody", rows), class_="documents")
    return join(table, more)


def _document(document: StoredDocument, tagging: bool, writable: bool, words: Words) -> Html:
    name = el(
        "button",
        kind_mark(document.kind),
        el("span", el("b", document.name), el("small", document.title) if document.title else ""),
        type="button",
        class_="name",
        data_act="view",
        data_id=document.id,
        title=document.source,
    )
    notes = [el("p", icon("alert"), el("span", note), class_="note") for note in document.notes[:6]]
    if not document.chunks:
        notes.append(el("p", icon("alert"), el("span", words("No text was found in it.")), class_="note"))
    label = {name: words(name) for name in ("Kind", "Pages", "Size", "Date", "Tags", "Passages")}
    return el(
        "tr",
        el("td", name, *notes, class_="first"),
        el("td", kind_name(document, words), data_label=label["Kind"], class_="plain"),
        el("td", f"{document.pages:,}" if document.pages else "", data_label=label["Pages"], class_="n"),
        el("td", size(document.size), data_label=label["Size"], class_="n plain"),
        el("td", date(document), data_label=label["Date"], class_="n plain"),
        el("td", _tags(document, tagging, writable, words), data_label=label["Tags"]),
        el("td", f"{document.chunks:,}", data_label=label["Passages"], class_="n"),
        el(
            "td",
            button("summarise", words("Summarise"), icon("list"), data_id=document.id) if document.chunks else "",
            button("again", words("Read again"), icon("again"), data_id=document.id) if writable else "",
            button("remove", words("Remove"), icon("bin"), data_id=document.id) if writable else "",
            class_="acts",
        ),
        data_document=document.id,
    )


def _tags(document: StoredDocument, tagging: bool, writable: bool, words: Words) -> Html:
    if tagging:
        return el(
            "input",
            class_="tag-text",
            value=", ".join(document.tags),
            data_tags="tagged",
            data_id=document.id,
            placeholder=words("tags, with commas between"),
            aria_label=words("Tags of {name}", name=document.name),
            maxlength=2000,
        )
    chips = [el("button", tag, type="button", class_="tag", data_act="by-tag", data_tag=tag) for tag in document.tags]
    return el(
        "span",
        *chips,
        button(
            "tags", words("Change tags"), icon("pen" if chips else "plus"), class_="quiet small", data_id=document.id
        )
        if writable
        else "",
        class_="tags",
    )


def kind_mark(kind: str) -> Html:
    """A small coloured sign for a kind of file."""
    names = {"markdown": "MD", "text": "TXT", "code": "</>", "image": "IMG", "mail": "@", "html": "WEB"}
    return el("i", names.get(kind, kind[:4].upper()), class_=f"kind {kind}", aria_hidden="true")


def kind_name(document: StoredDocument, words: Words) -> str:
    """A kind in words."""
    plain = {
        "pdf": "PDF",
        "docx": "Word",
        "xlsx": "Excel",
        "pptx": "PowerPoint",
        "csv": "CSV",
        "markdown": "Markdown",
        "html": words("web page"),
        "mail": words("e-mail"),
        "text": words("text"),
        "image": words("picture"),
        "code": document.language or words("code"),
    }
    return plain.get(document.kind, document.kind)


def size(count: int) -> str:
    """`812 kB`, `1.3 MB`."""
    for unit, large in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= large:
            return f"{count / large:.3g} {unit}"
    return f"{count} B"


def date(document: StoredDocument) -> str:
    """The day of a document: its own, else its file's."""
    if document.date:
        return document.date[:10]
    return datetime.fromtimestamp(document.modified, UTC).strftime("%Y-%m-%d") if document.modified else ""
