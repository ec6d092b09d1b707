"""What stands around a conversation, as HTML: the list of all of them, the top, the box to write in."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from tinyseek.evaluate.page import Html, el, join
from tinyseek.studio.chats import LONGEST_MESSAGE, Conversation
from tinyseek.studio.pieces import MARK, button, icon
from tinyseek.studio.words import Words

THEMES = {"auto": ("half", "Theme: as the system"), "light": ("sun", "Theme: light"), "dark": ("moon", "Theme: dark")}


def side_top(words: Words, knowledge: bool = False) -> Html:
    """The name, the way to a new conversation, and to the documents where there is a page of them; the search."""
    field = el(
        "input", type="search", placeholder=words("Search"), aria_label=words("Search conversations"), maxlength=200
    )
    return join(
        el("div", MARK, "tinyseek", button("close-drawer", words("Close"), icon("close")), class_="brand"),
        el("button", icon("plus"), words("New chat"), type="button", class_="new", data_act="new"),
        el("a", icon("book"), words("Ask my documents"), href="/kb", class_="new to-kb") if knowledge else "",
        el("div", icon("search"), field, class_="find"),
    )


def side_foot(model: str, theme: str, words: Words) -> Html:
    """The model's name, the theme, the language."""
    drawing, label = THEMES[theme]
    return join(
        el("span", model, class_="model", title=model),
        button("theme", words(label), icon(drawing)),
        button("language", words("Language"), "中文" if words.language == "en" else "EN", class_="quiet lang"),
    )


def top(title: str, looks: bool, panel: str | None, words: Words) -> Html:
    """The conversation's title, and the panel's two faces; `looks`: whether the model can be looked into."""
    inside = button(
        "inside",
        words("Look inside"),
        icon("eye"),
        el("span", words("Look inside")),
        class_="quiet labelled on" if panel == "inside" else "quiet labelled",
    )
    settings = button(
        "settings", words("Settings"), icon("sliders"), class_="quiet on" if panel == "settings" else "quiet"
    )
    burger = button("drawer", words("Conversations"), icon("menu"), class_="quiet burger")
    return join(burger, el("h1", title), inside if looks else "", settings)


def composer(words: Words) -> Html:
    """The box to write in, with what sends and what stops."""
    area = el(
        "textarea",
        id="ask",
        rows=1,
        placeholder=words("Ask anything"),
        aria_label=words("Message"),
        maxlength=LONGEST_MESSAGE,
        autocomplete="off",
    )
    return join(
        area,
        button("send", words("Send"), icon("up"), class_="go send"),
        button("stop", words("Stop"), el("i"), class_="go stop"),
        button("down", words("To the end"), icon("down"), class_="down"),
    )


def hint(words: Words) -> Html:
    """The keys."""
    keys = [("Enter", words("sends")), ("Shift+Enter", words("new line")), ("Esc", words("stops"))]
    return join(*(el("span", el("kbd", key), " ", does, "  ") for key, does in keys))


def listed(
    conversations: Sequence[Conversation],
    here: str | None,
    live: Collection[str],
    words: Words,
    searched: bool = False,
    renaming: str | None = None,
) -> Html:
    """The conversations by when they were used last; of those in `live` an answer is being written."""
    if not conversations:
        return el("p", words("Nothing found." if searched else "No conversations yet."), class_="none")
    groups: dict[str, list[Html]] = {}
    for conversation in conversations:
        item = (
            _renamed(conversation, words)
            if conversation.id == renaming
            else _item(conversation, conversation.id == here, conversation.id in live, words)
        )
        groups.setdefault(_day(conversation.updated), []).append(item)
    return join(*(join(el("h3", words(day)), *items) for day, items in groups.items()))


def _item(conversation: Conversation, current: bool, live: bool, words: Words) -> Html:
    title = conversation.title
    return el(
        "div",
        el(
            "button",
            title,
            type="button",
            class_="open",
            data_act="open",
            data_id=conversation.id,
            title=title,
            aria_current="page" if current else None,
        ),
        el("i", class_="live", title=words("Writing")) if live else "",
        button("rename", words("Rename"), icon("pen"), data_id=conversation.id),
        button("delete", words("Delete"), icon("bin"), data_id=conversation.id),
        class_="item here" if current else "item",
    )


def _renamed(conversation: Conversation, words: Words) -> Html:
    """A conversation whose title is being typed."""
    title = el(
        "input",
        class_="rename-text",
        value=conversation.title,
        data_id=conversation.id,
        aria_label=words("Rename"),
        maxlength=120,
    )
    return el("div", title, class_="item")


def _day(moment: float) -> str:
    today = time.localtime()
    then = time.localtime(moment)
    midnight = time.mktime((*today[:3], 0, 0, 0, *today[6:]))
    if then[:3] == today[:3] or moment >= midnight:
        return "Today"
    if moment >= midnight - 86_400:
        return "Yesterday"
    return "Last seven days" if moment >= midnight - 6 * 86_400 else "Earlier"
