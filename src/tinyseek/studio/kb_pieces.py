"""What stands around questions and documents, as HTML: collections, the top, the welcome. Text is escaped where it enters."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio.chats import Conversation
from tinyseek.studio.frame import THEMES
from tinyseek.studio.kb_desk import Task
from tinyseek.studio.pieces import MARK, button, icon, pill, segments
from tinyseek.studio.words import Words

TABS = ("ask", "documents", "search", "facts")


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
    held = el("small", f"{count[0]:,}") if count[0] else ""
    names = {
        "ask": words("Ask"),
        "documents": join(words("Documents"), held),
        "search": words("Search"),
        "facts": words("Remembered"),
    }
    burger = button("drawer", words("Collections"), icon("menu"), class_="quiet burger")
    return join(burger, el("h1", collection), segments("tab", names, tab, class_="segments tabs", tabs=True))


def dock(tasks: Sequence[Task], task: Task, only: str, words: Words) -> Html:
    """What stands above the box: how the next question is answered, and of which documents alone."""
    names = {"text": words("Answer"), "tables": words("Tables"), "summary": words("Summary")}
    chosen: dict[str, str] = {name: names[name] for name in tasks}
    chip = el(
        "div",
        el("span", words("Only: {what}", what=only)),
        el("button", words("Ask all"), type="button", class_="quiet", data_act="unscope"),
        class_="chip",
    )
    ways = segments("task", chosen, task, words("How it is answered"), "segments tasks") if len(tasks) > 1 else ""
    return join(ways, chip if only else "")


def confirm(question: str, act: str, label: str, words: Words, **data: str | float | None) -> Html:
    """A question before something that cannot be undone."""
    return el(
        "div",
        el("p", question),
        el(
            "div",
            pill("no", words("Cancel"), "pill plain"),
            pill(act, label, "pill danger", **data),
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
