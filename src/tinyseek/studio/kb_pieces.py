"""The knowledge page's own HTML, from plain values: collections, documents, what is found. Text is escaped where it enters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from tinyseek.evaluate.page import Html, el, join
from tinyseek.knowledge.index.base import StoredDocument
from tinyseek.studio import kb_text
from tinyseek.studio.chats import Conversation
from tinyseek.studio.frame import THEMES
from tinyseek.studio.kb_intake import Intake, Line
from tinyseek.studio.kb_text import where
from tinyseek.studio.pieces import MARK, button, icon
from tinyseek.studio.words import Words

if TYPE_CHECKING:
    from tinyseek.knowledge.retrieve import Hit

TABS = ("ask", "documents", "search")
MOST_ROWS = 200  # documents that are listed at once
_SNIPPET = 420  # characters of a passage in a list


# ---- around --------------------------------------------------------------------------------------------------------------------


def side_top(with_chat: bool, words: Words) -> Html:
    """The name, and the way to the chat."""
    back = el("a", icon("left"), words("Back to the chat"), href="/", class_="new") if with_chat else ""
    return join(
        el("div", MARK, "tinyseek", button("close-drawer", words("Close"), icon("close")), class_="brand"), back
    )


def side(
    collections: Sequence[str],
    here: str,
    making: bool,
    talks: Sequence[Conversation],
    place: str | None,
    live: Collection[str],
    words: Words,
    writable: bool,
) -> Html:
    """The collections, and what was asked of this one."""
    items = [_collection(name, name == here, writable, words) for name in collections]
    if making:
        field = el(
            "input",
            class_="make-text rename-text",
            placeholder=words("name, like my-notes"),
            aria_label=words("Name of the new collection"),
            maxlength=64,
        )
        items.append(el("div", field, class_="item"))
    make = button("make", words("New collection"), icon("plus"))
    asked = [_talk(talk, talk.id == place, talk.id in live, words) for talk in talks]
    return join(
        el("h3", words("Collections"), make if writable else "", class_="with-button"),
        *items,
        el("h3", words("Asked before"), button("new", words("New questions"), icon("plus")), class_="with-button"),
        *(asked or [el("p", words("Nothing yet."), class_="none")]),
    )


def _collection(name: str, current: bool, writable: bool, words: Words) -> Html:
    return el(
        "div",
        el(
            "button",
            icon("stack"),
            el("span", name),
            type="button",
            class_="open",
            data_act="collection",
            data_name=name,
            title=name,
            aria_current="page" if current else None,
        ),
        button("drop", words("Delete the collection"), icon("bin"), data_name=name) if writable else "",
        class_="item here" if current else "item",
    )


def _talk(talk: Conversation, current: bool, live: bool, words: Words) -> Html:
    return el(
        "div",
        el(
            "button",
            el("span", talk.title),
            type="button",
            class_="open",
            data_act="open",
            data_id=talk.id,
            title=talk.title,
            aria_current="page" if current else None,
        ),
        el("i", class_="live", title=words("Writing")) if live else "",
        button("delete", words("Delete"), icon("bin"), data_id=talk.id),
        class_="item here" if current else "item",
    )


def side_foot(writers: Sequence[str], chosen: str, theme: str, words: Words) -> Html:
    """Who writes answers, the theme, the language."""
    drawing, label = THEMES[theme]
    options = [
        el("option", name or words("quotes, no model"), value=name, selected="" if name == chosen else None)
        for name in (*writers, "")
    ]
    who = (
        el("select", options, class_="who", aria_label=words("Who answers"))
        if writers
        else el("span", words("quotes, no model"), class_="model")
    )
    return join(
        who,
        button("theme", words(label), icon(drawing)),
        button("language", words("Language"), "中文" if words.language == "en" else "EN", class_="quiet lang"),
    )


def top(collection: str, count: tuple[int, int], tab: str, words: Words) -> Html:
    """The collection's name, how much is in it, and the page's three faces."""
    names = {"ask": words("Ask"), "documents": words("Documents"), "search": words("Search")}
    tabs = [
        el(
            "button",
            names[name],
            el("small", f"{count[0]:,}") if name == "documents" and count[0] else "",
            type="button",
            role="tab",
            data_act="tab",
            data_name=name,
            aria_selected="true" if name == tab else "false",
            class_="on" if name == tab else None,
        )
        for name in TABS
    ]
    burger = button("drawer", words("Collections"), icon("menu"), class_="quiet burger")
    return join(burger, el("h1", collection), el("div", tabs, class_="segments tabs", role="tablist"))


def confirm(question: str, act: str, label: str, words: Words, **data: str | float | None) -> Html:
    """A question before something that cannot be undone."""
    return el(
        "div",
        el("p", question),
        el(
            "div",
            el("button", words("Cancel"), type="button", class_="pill plain", data_act="no"),
            el("button", label, type="button", class_="pill danger", data_act=act, **data),
            class_="actions",
        ),
        class_="confirm",
        role="alertdialog",
        aria_label=question,
    )


def welcome(has_documents: bool, tries: Sequence[str], writable: bool, quoted: bool, words: Words) -> Html:
    """What there is before the first question."""
    if not has_documents and not writable:
        return el("div", MARK, el("h2", words("Nothing is in this collection yet.")), class_="welcome")
    if not has_documents:
        return el(
            "div",
            MARK,
            el("h2", words("Which documents shall it know?")),
            el(
                "p",
                words("Drop files anywhere on this page: PDF, Word, Excel, PowerPoint, web pages, e-mail, text, code."),
            ),
            el(
                "div",
                button("tab", words("Add documents"), words("Add documents"), class_="pill", data_name="documents"),
            ),
            class_="welcome",
        )
    how = (
        words("The answer is quoted from the documents, with the page of every sentence.")
        if quoted
        else words("Every sentence of the answer says where it stands. Click a number to see the page.")
    )
    return el(
        "div",
        MARK,
        el("h2", words("What do you want to find out?")),
        el("p", how),
        el("div", [_try(text) for text in tries], class_="tries") if tries else "",
        class_="welcome",
    )


def _try(text: str) -> Html:
    return el("button", text, type="button", data_act="try", data_text=text)


# ---- documents -----------------------------------------------------------------------------------------------------------------


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
    only = el("button", words("Ask only these"), type="button", class_="pill plain", data_act="scope")
    return el("div", el("span", told), only if narrowed and shown else "", class_="told")


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


# ---- search --------------------------------------------------------------------------------------------------------------------


def search_box(text: str, how: str, words: Words) -> Html:
    """What is searched for, and how."""
    kinds = {"hybrid": words("Both"), "lexical": words("By words"), "dense": words("By meaning")}
    choices = [
        el(
            "button",
            label,
            type="button",
            class_="on" if name == how else None,
            data_act="how",
            data_name=name,
            aria_pressed="true" if name == how else "false",
        )
        for name, label in kinds.items()
    ]
    field = el(
        "input",
        type="search",
        id="kb-search",
        value=text,
        placeholder=words("Words, or a question"),
        aria_label=words("Search the passages"),
        maxlength=4000,
    )
    go = button("search", words("Search"), icon("search"), class_="go")
    return el("div", el("div", field, go, class_="line"), el("div", choices, class_="segments"), class_="searching")


def hits(found: Sequence[Hit], asked: str, seconds: float, words: Words) -> Html:
    """Passages with the scores of both halves."""
    if not found:
        return el("p", words("Nothing found."), class_="none")
    best_words = max((hit.lexical or 0.0 for hit in found), default=0.0)
    told = words("{count} passages in {time} ms", count=len(found), time=f"{1000 * seconds:,.0f}")
    cards = [_hit(number, hit, asked, best_words, words) for number, hit in enumerate(found, 1)]
    return join(el("p", told, class_="told"), el("ol", cards, class_="hits"))


def _hit(number: int, hit: Hit, asked: str, best_words: float, words: Words) -> Html:
    chunk = hit.chunk.chunk
    place = where(chunk.places, hit.document.kind, words)
    return el(
        "li",
        el(
            "button",
            el("span", str(number), class_="rank"),
            kind_mark(hit.document.kind),
            el("b", hit.document.name),
            el("span", place, class_="place") if place else "",
            type="button",
            class_="head",
            data_act="hit",
            data_id=hit.chunk.id,
        ),
        el("p", " › ".join(chunk.path), class_="path-of") if chunk.path else "",
        el("p", emphasised(snippet(chunk.text, asked), asked), class_="text"),
        el(
            "dl",
            _score(words("Words"), hit.lexical, best_words, "words"),
            _score(words("Meaning"), hit.dense, 1.0, "meaning"),
            el("div", el("dt", words("Score")), el("dd", f"{hit.score:.3f}")),
            class_="scores",
        ),
    )


def _score(name: str, value: float | None, most: float, kind: str) -> Html:
    shown = "–" if value is None else f"{value:.2f}" if kind == "words" else f"{value:.3f}"
    share = 0.0 if value is None or most <= 0 else value / most
    if kind == "meaning":  # cosines of unlike texts are about 0.7
        share = max(0.0, (share - 0.7) / 0.3)
    bar = el("span", el("i", style=f"width:{100 * min(share, 1):.0f}%"), class_=f"bar {kind}", aria_hidden="true")
    return el("div", el("dt", name), el("dd", bar, shown))


def snippet(text: str, asked: str, longest: int = _SNIPPET) -> str:
    """The part of a passage where most of the words stand, on one line."""
    flat = " ".join(flattened(text).split())
    if len(flat) <= longest:
        return flat
    starts = [match.start() for match in _words_in(flat, asked)]
    best = max(starts, key=lambda at: sum(at <= other < at + longest - 60 for other in starts), default=0)
    begin = max(0, min(best - 60, len(flat) - longest))
    cut = flat[begin : begin + longest]
    return ("… " if begin else "") + cut.strip() + (" …" if begin + longest < len(flat) else "")


def flattened(text: str) -> str:
    """A passage's text with the rows of its tables as plain lines."""
    if "|" not in text:
        return text
    lines = []
    for line in text.splitlines():
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line.strip()):
            continue
        row, bar, rest = line.rpartition("|")
        if not line.startswith("|") or not row:
            lines.append(line)
        else:
            lines.append(" · ".join(filter(None, kb_text.split_row(row + bar))) + (rest or " —"))
    return "\n".join(lines).removesuffix(" —")


def emphasised(text: str, asked: str) -> Html:
    """A text with the words of a question marked."""
    parts: list[str] = []
    at = 0
    for match in _words_in(text, asked):
        parts += [text[at : match.start()], el("mark", match.group())]
        at = match.end()
    return join(*parts, text[at:])


def _words_in(text: str, asked: str) -> list[re.Match[str]]:
    """Where the words of a question stand, or such as begin like them; Chinese ones as they are."""
    from tinyseek.knowledge.stopwords import content_words

    wanted = sorted({word for word in content_words(asked[:500]) if word.strip()}, key=len, reverse=True)[:40]
    if not wanted:
        return []
    parts = [re.escape(word) if _is_han(word) else rf"\b{re.escape(word)}\w*" for word in wanted]
    return list(re.finditer("|".join(parts), text, re.IGNORECASE))


def _is_han(word: str) -> bool:
    return any("\u3400" <= letter <= "\u9fff" for letter in word)
